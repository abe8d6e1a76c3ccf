"""The training child: `python -m featkd.distill JOB`.

Job {"mode": "teacher", "tokenizer", ...} trains a teacher from nothing, {"mode": "students", "teacher", "students"}
a group of students on one teacher pass. Folders are written under "out", one per model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featkd import spec
from featkd.child import serve
from featkd.distill import engine
from featkd.distill.runtime import runtime
from featkd.models import given
from featkd.models import student as students
from featkd.models.llama import llama_config
from featkd.store import file_sha256

Emit = Callable[..., None]


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Returns {"models": {name: meta}, "teacher_seconds"}; meta is a result.Training less the teacher's share."""
    from transformers import AutoTokenizer

    run = runtime(spec.Compute.model_validate(job["compute"]))
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    train_blocks, valid_blocks = (np.load(Path(job["tokens"]) / f"{part}.npy") for part in ("train", "valid"))
    teacher, learners = _from_nothing(job, tokenizer) if job["mode"] == "teacher" else _students(job)
    summary = engine.train(
        learners,
        teacher,
        train_blocks,
        valid_blocks,
        spec.Optimisation.model_validate(job["training"]),
        spec.Distillation.model_validate(job.get("distillation", {})),
        run,
        lambda **fields: emit("progress", **fields),
    )
    models = {learner.name: _save(learner, tokenizer, summary, Path(job["out"])) for learner in learners}
    return {"models": models, "teacher_seconds": summary["teacher_seconds"], "bf16": run.bf16, "device": run.device}


def _from_nothing(job: dict[str, Any], tokenizer: Any) -> tuple[None, list[engine.Learner]]:
    import torch
    from transformers import AutoModelForCausalLM

    config = llama_config(
        spec.Shape.model_validate(job["shape"]), len(tokenizer), job["positions"], tokenizer.eos_token_id
    )
    torch.manual_seed(job["seed"])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return None, [engine.Learner("teacher", "sft", model, job["seed"])]


def _students(job: dict[str, Any]) -> tuple[Any, list[engine.Learner]]:
    teacher = given.load(job["teacher"])
    learners = []
    for wanted in job["students"]:
        size = spec.Student.model_validate(wanted["size"])
        model, copied = students.build(size, teacher, wanted["seed"])
        learners.append(engine.Learner(wanted["name"], wanted["arm"], model, wanted["seed"], size.name, copied))
    return teacher, learners


def _save(learner: engine.Learner, tokenizer: Any, summary: dict[str, Any], out: Path) -> dict[str, Any]:
    """The plain model and its tokenizer, and nothing of the projectors."""
    folder = out / learner.name
    learner.model.eval().to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = sorted(folder.glob("*.safetensors"))
    return {
        "seconds": learner.seconds,
        "tokens": summary["tokens"],
        "steps": summary["steps"],
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "copied_share": learner.copied_share,
        "weights_sha256": file_sha256(weights[0]) if len(weights) == 1 else None,
        "curve": learner.curve,
        "alignment": learner.alignment and learner.alignment.record(),
    }


if __name__ == "__main__":
    serve(main)
