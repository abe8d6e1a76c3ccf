"""The training child: `python -m featkd.distill JOB`.

Job {"mode": "teacher", "tokenizer", ...} trains a teacher from nothing, {"mode": "students", "teacher", "students"}
a group of students on one teacher pass; where they have "signal" and "parts", on what {"mode": "signal", "parts"} has
kept of it. Folders are written under "out", one per model or part. Checkpoints, if wanted, are written to and looked
for in the folder "checkpoints"; "identity" is the digest of what the job's weights depend on.
With "compute": {"processes": N} it starts N of itself (launch.py), and the first of them tells.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featkd import spec
from featkd.distill import engine, launch, make_cache, pace, parallel
from featkd.distill.alignment import PROBE_TOKENS
from featkd.distill.batches import first_epoch, probe
from featkd.distill.cache import Cache
from featkd.distill.checkpoint import Checkpoints
from featkd.distill.learner import Learner
from featkd.distill.runtime import Runtime, runtime
from featkd.models import given
from featkd.models import student as students
from featkd.models.llama import llama_config
from featkd.store import file_sha256
from featkd.teaching import Distillation, TeacherSignal
from featkd.training import Compute, Optimisation, Shape

Emit = Callable[..., None]


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Returns {"models": {name: meta}, "teacher_seconds"}; meta is a result.Training less the teacher's share.

    Beside it the number of processes and, per model, how many parameters are of which type, as found after training.
    """
    from transformers import AutoTokenizer

    compute = Compute.model_validate(job["compute"])
    run = runtime(compute)
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    train_blocks, valid_blocks = (np.load(Path(job["tokens"]) / f"{part}.npy") for part in ("train", "valid"))
    if job["mode"] == "signal":
        return _signal(job, len(tokenizer), train_blocks, run, emit)
    teacher, learners = _from_nothing(job, tokenizer) if job["mode"] == "teacher" else _students(job, train_blocks)
    checkpoints = failed = None
    if job.get("checkpoints"):
        folder = Path(job["checkpoints"])
        checkpoints = Checkpoints(folder, job["identity"], 60 * compute.checkpoint_minutes)
        failed = folder / "failed-batch.npy"
    cache = Cache(TeacherSignal.model_validate(job["signal"]), job["parts"]) if job.get("signal") else None
    if (estimate := _estimate(learners, teacher, train_blocks, valid_blocks, run, cache, checkpoints)) is not None:
        emit("estimate", seconds=estimate)
    summary = engine.train(
        learners,
        teacher,
        train_blocks,
        valid_blocks,
        run,
        lambda **fields: emit("progress", **fields),
        checkpoints,
        failed,
        cache,
    )
    trained = {learner.name: learner.model for learner in learners} | ({"teacher": teacher} if teacher else {})
    found = {
        "teacher_seconds": summary["teacher_seconds"],
        "bf16": run.bf16,
        "device": run.device,
        "world_size": parallel.world_size(),
        "parameter_types": {name: parallel.parameter_types(model) for name, model in trained.items()},
    }
    models = {learner.name: _save(learner, tokenizer, summary, Path(job["out"])) for learner in learners}
    run.processes.leave()
    return {"models": models, **found}


def _estimate(
    learners: list[Learner],
    teacher: Any,
    train_blocks: np.ndarray,
    valid_blocks: np.ndarray,
    run: Runtime,
    cache: Cache | None,
    checkpoints: Checkpoints | None,
) -> float | None:
    """Seconds of the whole training; None for a short one, one that goes on, or one of several processes."""
    times = pace.work(learners[0].training, train_blocks.shape[2], valid_blocks.shape[1])
    if times.updates < pace.FEWEST_STEPS or run.processes.count > 1 or (checkpoints and checkpoints.begun):
        return None
    try:
        of_teacher, of_students = pace.seconds(learners, teacher, train_blocks, times, run)
    except Exception as error:  # whatever a family of models raises: no estimate is no reason not to train
        print(f"no estimate of the time: {error!r}", file=sys.stderr)
        return None
    return of_students + (0.0 if cache and cache.outputs and cache.features else of_teacher)


def _from_nothing(job: dict[str, Any], tokenizer: Any) -> tuple[None, list[Learner]]:
    import torch
    from transformers import AutoModelForCausalLM

    config = llama_config(Shape.model_validate(job["shape"]), len(tokenizer), job["positions"], tokenizer.eos_token_id)
    torch.manual_seed(job["seed"])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return None, [Learner("teacher", model, job["seed"], None, Optimisation.model_validate(job["training"]))]


def _students(job: dict[str, Any], blocks: np.ndarray) -> tuple[Any, list[Learner]]:
    teacher, training = given.load(job["teacher"]), Optimisation.model_validate(job["training"])
    text = probe(blocks, PROBE_TOKENS, Runtime("cpu", bf16=False))
    learners, built = [], {}
    for wanted in job["students"]:
        size, recipe = spec.Student.model_validate(wanted["size"]), wanted["recipe"]
        start = (size.name, wanted["seed"])
        if start not in built:
            built[start] = students.build(size, teacher, wanted["seed"], text)
        model, copied = copy.deepcopy(built[start])
        recipe = Distillation.model_validate(recipe) if recipe is not None else None
        learners.append(Learner(wanted["name"], model, wanted["seed"], recipe, training, size.name, copied))
    return teacher, learners


def _signal(job: dict[str, Any], tokens: int, blocks: np.ndarray, run: Runtime, emit: Emit) -> dict[str, Any]:
    """Returns {"parts": {name: what make_cache tells}, "seconds"}."""
    start, teacher = run.clock(), given.load(job["teacher"])
    chosen = first_epoch(blocks.shape[1], Optimisation.model_validate(job["training"]), blocks.shape[2])
    vocabulary, told = min(tokens, teacher.config.vocab_size), lambda **fields: emit("progress", **fields)
    made = make_cache.make(job["parts"], teacher, vocabulary, blocks, chosen, run, Path(job["out"]), told)
    return {"parts": made, "seconds": run.clock() - start}


def _save(learner: Learner, tokenizer: Any, summary: dict[str, Any], out: Path) -> dict[str, Any]:
    """The plain model and its tokenizer, and nothing of the projectors. Of several processes the first writes."""
    folder, memory_bytes, model = out / learner.name, learner.memory_bytes(), learner.model.eval()
    if learner.processes.mesh is None:
        model.to("cpu")
    whole = learner.processes.gathered(model.state_dict())
    if learner.processes.rank:
        return {}
    model.save_pretrained(folder, state_dict=whole)
    tokenizer.save_pretrained(folder)
    weights = sorted(folder.glob("*.safetensors"))
    return {
        "seconds": learner.seconds,
        "tokens": summary["tokens"],
        "steps": summary["steps"],
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "memory_bytes": memory_bytes,
        "copied_share": learner.copied_share,
        "weights_sha256": file_sha256(weights[0]) if len(weights) == 1 else None,
        "curve": learner.curve,
        "alignment": learner.alignment and learner.alignment.record(),
    }


if __name__ == "__main__":
    launch.run("featkd.distill", main)
