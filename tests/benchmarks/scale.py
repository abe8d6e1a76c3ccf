"""How the cost of a training grows, and how well it is estimated beforehand: `make bench-scale`.

One quantity at a time is varied around a base: number of arms, context length, vocabulary, size of the teacher. Every
cell is a fresh process that estimates its time (featkd/distill/pace.py) and its memory (estimate.py), then trains.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import QUICK, write

from featkd import spec
from featkd.distill import engine, pace
from featkd.distill.estimate import student_need, teacher_need, together
from featkd.distill.learner import Learner
from featkd.distill.runtime import runtime
from featkd.measure.latency import _rss_bytes
from featkd.models import student as students
from featkd.models.llama import llama_config
from featkd.teaching import Distillation, recipes
from featkd.training import Shape

LEAD = (
    "Trainings of logit-kd, feature-kd and its ablations on one teacher pass, {steps} steps of 2,048 tokens each and "
    "held-out losses as in a run, float32. `time_ratio`, `memory_ratio`: what was estimated before over what it took."
)
BASE: dict[str, Any] = {  # documents: tokens of each, 0 for one per block; teacher: width, a block for each 64 of it
    "arms": 2,
    "block": 256,
    "documents": 0,
    "vocabulary": 8192,
    "teacher": 384,
    "precision": "fp32",
}
CURVES: dict[str, list[dict[str, Any]]] = {
    "arms": [{"arms": count} for count in (1, 2, 4, 6)],
    "block": [{"block": tokens} for tokens in (128, 256, 1024)],
    "documents": [{"block": block, "documents": tokens} for block in (256, 1024) for tokens in (0, 100)],
    "vocabulary": [{"vocabulary": tokens} for tokens in (2048, 8192, 32768, 131072)],
    "teacher": [{"teacher": width} for width in (192, 384, 768)],
    "precision": [{"precision": name} for name in ("fp32", "bf16")],
}
BATCH_TOKENS, STEPS = 2048, 20
if QUICK:
    BASE |= {"teacher": 128, "vocabulary": 1024}
    CURVES = {"arms": [{"arms": 1}, {"arms": 3}], "vocabulary": [{"vocabulary": 4096}], "teacher": [{"teacher": 192}]}
    STEPS = 6
ABLATIONS = {
    "no-direction": {"direction_weight": 0},
    "no-norm": {"norm_weight": 0},
    "l2": {"direction_weight": 0, "norm_weight": 0, "l2_weight": 1},
    "no-decay": {"decay": 0},
}
SIZE = spec.Student(name="s", layers=3, hidden_size=192, heads=3, intermediate_size=512)


def cell(arms: int, block: int, documents: int, vocabulary: int, teacher: int, precision: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    wanted = list(recipes(["logit-kd", "feature-kd"], Distillation(guard=False), ABLATIONS).items())[:arms]
    batch = BATCH_TOKENS // block
    training = spec.Optimisation(tokens=STEPS * BATCH_TOKENS, batch_size=batch)
    shape = Shape(hidden_size=teacher, layers=teacher // 64, heads=teacher // 64, intermediate_size=teacher * 8 // 3)
    run = runtime(spec.Compute(precision=precision, device="cpu"))
    torch.manual_seed(0)
    config = llama_config(shape, vocabulary, block, 0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    learners = [Learner(name, students.build(SIZE, model, 0)[0], 0, recipe, training) for name, recipe in wanted]
    ids = np.random.default_rng(0).integers(1, vocabulary, (4 * batch, block), dtype=np.int32)
    positions = np.arange(block, dtype=np.int32) % (documents or block)
    blocks = np.stack([ids, ids, np.broadcast_to(positions, ids.shape)])
    start = time.perf_counter()
    estimate = pace.seconds(learners, model, blocks, pace.work(training, block, batch), run)
    probed = time.perf_counter()
    found = engine.train(learners, model, blocks, blocks[:, :batch], run, lambda **fields: None)
    took, peak = time.perf_counter() - probed, _rss_bytes("VmHWM")
    features = any(learner.aligned for learner in learners)
    needs = [
        student_need(learner.model.config, config, recipe, training, block, "cpu", run.bf16)
        for learner, (_, recipe) in zip(learners, wanted, strict=True)
    ]
    expected = together(teacher_need(config, training, block, features, run.bf16), needs, "cpu")
    return {
        "teacher_parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_s": STEPS * BATCH_TOKENS / took,
        "teacher_share": found["teacher_seconds"] / took,
        "seconds": took,
        "estimated_seconds": sum(estimate),
        "time_ratio": sum(estimate) / took,
        "peak_bytes": peak,
        "estimated_bytes": expected,
        "memory_ratio": expected / peak,
        "probe_seconds": probed - start,
    }


def main() -> None:
    rows = []
    for curve, values in CURVES.items():
        for value in values:
            given = BASE | value
            known = next((row for row in rows if all(row[key] == given[key] for key in given)), None)
            if known is None:
                command = [sys.executable, __file__, json.dumps(given)]
                done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
                known = given | json.loads(done.stdout.splitlines()[-1])
            rows.append({"curve": curve} | {key: item for key, item in known.items() if key != "curve"})
            print(rows[-1], file=sys.stderr, flush=True)
    summary = {
        f"estimate_error_{kind}": max(max(row[f"{kind}_ratio"], 1 / row[f"{kind}_ratio"]) for row in rows)
        for kind in ("time", "memory")
    }
    for curve in CURVES:
        summary[f"tokens_per_s_by_{curve}"] = [row["tokens_per_s"] for row in rows if row["curve"] == curve]
    write("scale", rows, summary, LEAD.format(steps=STEPS))


if __name__ == "__main__":
    print(json.dumps(cell(**json.loads(sys.argv[1])))) if len(sys.argv) > 1 else main()
