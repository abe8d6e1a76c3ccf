"""A distillation run as a user would start it: featkd's engine, TRL's GKD trainer, plain PyTorch, and a bare loop.

`make bench-engine`. The same teacher, student and batches, forward KL alone. Every run is a process of its own, of all
contenders in turns, so that its peak memory is its own: above what the process takes with both models in it; on an
accelerator, whose allocator tells, all runs share a process. Time is that of the steps after the first. `bare` runs the
teacher's forward and trains the student on cross-entropy, each through its model class: no distillation loss at all.
`distillkit` is that project's loss, plain PyTorch: both logits whole, softmax, kl_div.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from evidence import DEVICE, QUICK, write

from featkd import spec
from featkd.distill import engine
from featkd.distill.learner import Learner
from featkd.distill.runtime import fast_bf16, runtime
from featkd.measure.latency import _rss_bytes
from featkd.models.llama import llama_config
from featkd.teaching import Distillation
from featkd.training import Shape

VOCABULARY, BATCH, BLOCK = 50_257, 8, 256
TEACHER = {"hidden_size": 640, "layers": 12, "heads": 10, "intermediate_size": 1728}
STUDENT = {"hidden_size": 256, "layers": 8, "heads": 4, "intermediate_size": 688}
STEPS, ROUNDS = (4, 3)
if DEVICE == "cuda":
    BATCH, BLOCK, STEPS = 32, 512, 12
LEAD = (
    f"Training steps of a whole distillation run. `tokens_per_s`: median over rounds of {BATCH * BLOCK:,}-token steps "
    "after the first; `peak_bytes`: highest memory of the process, or on the accelerator, above what it takes with "
    "both models loaded."
)
if QUICK:
    VOCABULARY, STEPS, ROUNDS = 2048, 3, 1
    TEACHER, STUDENT = ({"hidden_size": w, "layers": 2, "heads": 2, "intermediate_size": 2 * w} for w in (64, 32))
RATE = 1e-4


def models() -> tuple[Any, Any]:
    """(teacher, student), float32, where they run."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    made = (llama_config(Shape(**shape), VOCABULARY, BLOCK, 0) for shape in (TEACHER, STUDENT))
    with torch.device(DEVICE):
        teacher, student = (AutoModelForCausalLM.from_config(config, dtype=torch.float32) for config in made)
    return teacher.eval().requires_grad_(False), student.train()


def batches() -> np.ndarray:
    """int [3, blocks, block]: ids, labels and positions."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (STEPS * BATCH, BLOCK), dtype=np.int32)
    return np.stack([ids, ids, np.broadcast_to(np.arange(BLOCK), ids.shape)])


def featkd(teacher: Any, student: Any, bf16: bool, mark: Callable[[], None]) -> None:
    blocks = batches()
    training = spec.Optimisation(tokens=blocks[0].size, batch_size=BATCH, learning_rate=RATE)
    recipe = Distillation(ce_weight=0).outputs_only()
    learner = Learner("logit-kd", student, 0, recipe, training)
    run = runtime(spec.Compute(device=DEVICE, precision="bf16" if bf16 else "fp32", threads=os.cpu_count()))
    engine.train([learner], teacher, blocks, blocks[:, :1, :8], run, lambda **fields: mark())


def trl(teacher: Any, student: Any, bf16: bool, mark: Callable[[], None]) -> None:
    """lmbda 0: off-policy; beta 0: forward KL. Its data side is passed by: a collator that hands over the tokens."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Clock(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            mark()

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "labels": ids, "attention_mask": mask, "prompts": ids[:, :1],
                "prompt_attention_mask": mask[:, :1]}  # fmt: skip

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"x": 0}, [])), pad_token="x")
    config = GKDConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=RATE,
        lmbda=0.0, beta=0.0, temperature=1.0, use_cpu=DEVICE == "cpu", bf16=bf16, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": batches()[0].tolist()})
    GKDTrainer(
        student, teacher, args=config, train_dataset=data, data_collator=collate, processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()  # fmt: skip


def _loop(loss: Callable[..., torch.Tensor]) -> Callable[..., None]:
    def run(teacher: Any, student: Any, bf16: bool, mark: Callable[[], None]) -> None:
        optimiser = torch.optim.AdamW(student.parameters(), lr=RATE, fused=True)
        for ids in torch.from_numpy(batches()[0].astype(np.int64)).to(DEVICE).split(BATCH):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                with torch.no_grad():
                    taught = teacher(input_ids=ids, use_cache=False).logits
                value = loss(student, ids, taught)
            value.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            mark()

    return run


def _no_distillation(student: Any, ids: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    return student(input_ids=ids, labels=ids, use_cache=False).loss


def _plain(student: Any, ids: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    own = student(input_ids=ids, use_cache=False).logits[:, :-1]
    log_q, p = F.log_softmax(own.float(), -1), F.softmax(taught[:, :-1].float(), -1)
    return F.kl_div(log_q, p, reduction="none").sum(-1).mean()


CONTENDERS = {"featkd": featkd, "trl-gkd": trl, "distillkit": _loop(_plain), "bare": _loop(_no_distillation)}


def run(name: str, dtype: str) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    teacher, student = models()
    marks: list[float] = []

    def mark() -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if DEVICE == "cuda" else _rss_bytes("VmRSS")
    CONTENDERS[name](teacher, student, dtype == "bfloat16", mark)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else _rss_bytes("VmHWM")
    seconds = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    return {"seconds": seconds, "peak_bytes": peak - before}


def one(name: str, dtype: str) -> dict[str, Any]:
    if DEVICE == "cuda":
        gc.collect()
        return run(name, dtype)
    given = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}  # as tasks/train.py does
    done = subprocess.run(
        [sys.executable, __file__, name, dtype], cwd=Path(__file__).parent, env=os.environ | given,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(dtype: str) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for number in range(ROUNDS):
        for name in names[number:] + names[:number]:
            found[name].append(one(name, dtype))
            print(dtype, name, found[name][-1], file=sys.stderr)
    step_s = {name: [statistics.median(run["seconds"]) for run in runs] for name, runs in found.items()}
    return [
        {
            "dtype": dtype,
            "contender": name,
            "tokens_per_s": BATCH * BLOCK / statistics.median(step_s[name]),
            "time_vs_featkd": statistics.median(a / b for a, b in zip(step_s[name], step_s["featkd"], strict=True)),
            "peak_bytes": max(run["peak_bytes"] for run in runs),
            "seconds": [run["seconds"] for run in runs],
        }
        for name, runs in found.items()
    ]


def main() -> None:
    dtypes = ["float32"] if DEVICE == "cpu" else []
    dtypes += ["bfloat16"] if fast_bf16(DEVICE) else []
    rows = [row for dtype in dtypes for row in measured(dtype)]
    summary = {}
    for dtype in dtypes:
        of = {row["contender"]: row for row in rows if row["dtype"] == dtype}
        suffix = "" if dtype == "float32" else "_bf16"
        summary[f"tokens_per_s_vs_trl{suffix}"] = of["trl-gkd"]["time_vs_featkd"]
        summary[f"peak_memory_vs_trl{suffix}"] = of["featkd"]["peak_bytes"] / of["trl-gkd"]["peak_bytes"]
        summary[f"tokens_per_s_vs_bare{suffix}"] = of["bare"]["time_vs_featkd"]
        summary[f"tokens_per_s_vs_distillkit{suffix}"] = of["distillkit"]["time_vs_featkd"]
    write("engine", rows, summary, LEAD)


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:]))) if len(sys.argv) > 1 else main()
