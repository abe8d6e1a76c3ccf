"""Six arms on one pass of the teacher against six runs of their own: wall time, and peak memory.

`make bench-arms`. The limit is what nothing but the models costs: (T + 6 S) / 6 (T + S), with T the teacher's pass and
S the mean step of a student, timed for themselves. A round is one run together, six alone and one timing of T and S,
in turns; ratios are taken within a round. Memory: a fresh process for all arms together, and for each alone.
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
from featkd.distill.learner import Learner
from featkd.distill.runtime import Runtime, runtime
from featkd.measure.latency import _rss_bytes
from featkd.models import student as students
from featkd.models.llama import llama_config
from featkd.teaching import Distillation, recipes
from featkd.training import Shape

LEAD = (
    "Six arms trained together on one teacher pass, and each in a run of its own, the same number of steps. "
    "`limit`: (T + 6 S) / 6 (T + S) of teacher pass T and student step S, timed for themselves in the same round."
)
VOCABULARY, BATCH, BLOCK = 4096, 8, 256
TEACHER = {"hidden_size": 768, "layers": 12, "heads": 12, "intermediate_size": 2048}
SIZE = {"hidden_size": 128, "layers": 3, "heads": 4, "intermediate_size": 344}
STEPS, ROUNDS = (8, 3)
if QUICK:
    TEACHER = {"hidden_size": 128, "layers": 6, "heads": 4, "intermediate_size": 344}
    SIZE = {"hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 176}
    VOCABULARY, BATCH, STEPS = 1024, 4, 4
ABLATIONS = {
    "no-direction": {"direction_weight": 0},
    "no-norm": {"norm_weight": 0},
    "l2": {"direction_weight": 0, "norm_weight": 0, "l2_weight": 1},
    "no-decay": {"decay": 0},
}
ARMS = recipes(["logit-kd", "feature-kd"], Distillation(guard=False), ABLATIONS)
TRAINING = spec.Optimisation(tokens=STEPS * BATCH * BLOCK, batch_size=BATCH)


def prepared(arms: list[str]) -> tuple[Any, list[Learner], np.ndarray]:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = llama_config(Shape(**TEACHER), VOCABULARY, BLOCK, 0)
    teacher = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    size = spec.Student(name="s", **SIZE)
    learners = [Learner(arm, students.build(size, teacher, 0)[0], 0, ARMS[arm], TRAINING) for arm in arms]
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (4 * BATCH, BLOCK), dtype=np.int32)
    return teacher, learners, np.stack([ids, ids, np.broadcast_to(np.arange(BLOCK), ids.shape)])


def run_s(arms: list[str], run: Runtime) -> float:
    """Seconds of a whole training, with what it prepares; without looks at held-out text but the last (one block)."""
    teacher, learners, blocks = prepared(arms)
    start = time.perf_counter()
    engine.train(learners, teacher, blocks, blocks[:, :1], run, lambda **fields: None)
    return time.perf_counter() - start


def parts_s(run: Runtime) -> dict[str, float]:
    """Median seconds of the teacher's pass, with its states, and of a step of each arm."""
    teacher, learners, blocks = prepared(list(ARMS))
    forward = engine._ready(teacher, learners, blocks, run)
    (batch,) = micro_batches(blocks[:, :BATCH], None, run)
    found: dict[str, list[float]] = {name: [] for name in ["teacher", *ARMS]}
    for step in range(5):
        start = time.perf_counter()
        signal = engine._signal(forward, learners, batch, 0.5, run)
        found["teacher"].append(time.perf_counter() - start)
        for learner in learners:
            start = time.perf_counter()
            learner.add_gradients(signal, batch, step, 10, run)
            learner.update(step, 10)
            found[learner.name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def peak_bytes(arms: list[str]) -> int:
    command = [sys.executable, __file__, *arms]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def child(arms: list[str]) -> None:
    run = runtime(spec.Compute())
    before = _rss_bytes("VmRSS")
    run_s(arms, run)
    print(json.dumps(_rss_bytes("VmHWM") - before))


def main() -> None:
    run, rows = runtime(spec.Compute()), []
    run_s(["logit-kd"], run)
    for number in range(ROUNDS):
        parts = parts_s(run)
        together = run_s(list(ARMS), run)
        alone = {arm: run_s([arm], run) for arm in ARMS}
        students_s = sum(parts[arm] for arm in ARMS)
        row = {
            "round": number,
            "teacher_s": parts["teacher"],
            "student_s": students_s / len(ARMS),
            "together_s": together,
            "separate_s": sum(alone.values()),
            "shared_vs_separate": together / sum(alone.values()),
            "limit": (parts["teacher"] + students_s) / (len(ARMS) * parts["teacher"] + students_s),
        }
        rows.append(row | {"vs_limit": row["shared_vs_separate"] / row["limit"], "seconds": [*alone.values()]})
        print(row, file=sys.stderr)
    memory = {"together": peak_bytes(list(ARMS)), **{arm: peak_bytes([arm]) for arm in ARMS}}
    rows += [{"memory_of": name, "peak_bytes": size} for name, size in memory.items()]

    def median(key: str) -> float:
        return statistics.median(row[key] for row in rows if key in row)

    summary = {
        "shared_vs_separate_wall": median("shared_vs_separate"),
        "shared_vs_limit": median("vs_limit"),
        "teacher_vs_student": median("teacher_s") / median("student_s"),
        "memory_vs_largest_alone": memory["together"] / max(memory[arm] for arm in ARMS),
    }
    write("arms", rows, summary, LEAD)


if __name__ == "__main__":
    child(sys.argv[1:]) if len(sys.argv) > 1 else main()
