"""What feature alignment costs on top of logit distillation: time and memory of one whole training step.

`make bench-features`. Both arms in turns on the same batches: teacher pass, student's forward, losses, backward,
optimiser. Memory in a fresh process per arm: the peak above what the imports take.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import QUICK, write

from featkd import spec
from featkd.distill import engine
from featkd.distill.batches import micro_batches
from featkd.distill.forward import Forward
from featkd.distill.learner import Learner
from featkd.distill.runtime import Runtime, runtime
from featkd.measure.latency import _rss_bytes
from featkd.models import student as students
from featkd.models.llama import llama_config
from featkd.teaching import Distillation, recipes
from featkd.training import Shape

ARMS = ("logit-kd", "feature-kd")
REPEATS = 3 if QUICK else 41
BATCH, BLOCK = (2, 128) if QUICK else (4, 256)
TRAINING = spec.Optimisation(tokens=1, batch_size=BATCH, learning_rate=1e-3)
CASES = {
    "large": {
        "vocabulary": 50_257,
        "teacher": {"hidden_size": 512, "layers": 6, "heads": 8, "intermediate_size": 1376},
        "student": {"hidden_size": 384, "layers": 4, "heads": 6, "intermediate_size": 1024},
    },
    "small": {  # that of the default PoC
        "vocabulary": 2048,
        "teacher": {"hidden_size": 128, "layers": 4, "heads": 4, "intermediate_size": 344},
        "student": {"hidden_size": 96, "layers": 4, "heads": 4, "intermediate_size": 256},
    },
}


def prepared(case: dict[str, Any], arms: tuple[str, ...]) -> tuple[Forward, list[Learner], Runtime]:
    from transformers import AutoModelForCausalLM

    run = runtime(spec.Compute())
    torch.manual_seed(0)
    config = llama_config(Shape(**case["teacher"]), case["vocabulary"], BLOCK, 0)
    teacher = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    size = spec.Student(name="s", **case["student"])
    learners = [
        Learner(arm, students.build(size, teacher, 0)[0], 0, recipe, TRAINING, size.name)
        for arm, recipe in recipes(list(arms), Distillation(), {}).items()
    ]
    ids = np.random.default_rng(0).integers(1, case["vocabulary"], (4, BLOCK))
    return engine._ready(teacher, learners, blocks_of(ids), run), learners, run


def blocks_of(ids: np.ndarray) -> np.ndarray:
    """[3, blocks, block]: ids, labels and positions."""
    return np.stack([ids, ids, np.broadcast_to(np.arange(BLOCK), ids.shape)])


def step(forward: Any, learner: Learner, ids: np.ndarray, run: Runtime, number: int) -> float:
    """Seconds of a whole step of one arm."""
    start = time.perf_counter()
    (batch,) = micro_batches(blocks_of(ids), None, run)
    signal = engine._signal(forward, [learner], batch, number / 1000, run)
    learner.add_gradients(signal, batch, number, 1000, run)
    learner.update(number, 1000)
    return time.perf_counter() - start


def timed(name: str, case: dict[str, Any]) -> list[dict[str, Any]]:
    forward, learners, run = prepared(case, ARMS)
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(REPEATS + 2):
        ids = rng.integers(1, case["vocabulary"], (BATCH, BLOCK))
        for learner in learners if number % 2 else learners[::-1]:
            seconds[learner.name].append(step(forward, learner, ids, run, number))
    return [
        {
            "case": name,
            "arm": learner.name,
            "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
            "layer_pairs": len(learners[1].alignment.pairs),
            "tokens": BATCH * BLOCK,
            "bf16": run.bf16,
            "median_s": statistics.median(seconds[learner.name][2:]),
            "seconds": seconds[learner.name][2:],
        }
        for learner in learners
    ]


def interval(ratios: list[float]) -> list[float]:
    """95 % bootstrap interval of the median: machines are noisy."""
    drawn = np.random.default_rng(0).choice(ratios, (5000, len(ratios)))
    return [float(bound) for bound in np.quantile(np.median(drawn, axis=1), [0.025, 0.975])]


def peak_bytes(name: str, arm: str) -> int:
    done = subprocess.run(
        [sys.executable, __file__, name, arm], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


def child(name: str, arm: str) -> None:
    before = _rss_bytes("VmRSS")
    forward, (learner,), run = prepared(CASES[name], (arm,))
    ids = np.random.default_rng(0).integers(1, CASES[name]["vocabulary"], (BATCH, BLOCK))
    for number in range(3):
        step(forward, learner, ids, run, number)
    print(json.dumps(_rss_bytes("VmHWM") - before))


def main() -> None:
    rows, summary = [], {}
    for name, case in CASES.items():
        found = timed(name, case)
        for row in found:
            row["peak_bytes"] = peak_bytes(name, row["arm"])
        logit, feature = found
        ratios = [f / g for f, g in zip(feature["seconds"], logit["seconds"], strict=True)]
        suffix = "" if name == "large" else f"_{name}"
        summary[f"step_time_vs_logit_kd{suffix}"] = statistics.median(ratios)
        summary[f"step_time_vs_logit_kd{suffix}_interval"] = interval(ratios)
        summary[f"memory_vs_logit_kd{suffix}"] = feature["peak_bytes"] / logit["peak_bytes"]
        rows += found
    write(
        "features", rows, summary, "One training step of feature-kd against one of logit-kd, in turns on one machine."
    )


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
