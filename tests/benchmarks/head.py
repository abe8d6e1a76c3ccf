"""The distillation head: logits of both models, loss and gradients. featkd against plain PyTorch and its peers.

`make bench-head`. Every contender (rivals.py) gets the same tensors; a step is its loss and its backward pass, to the
gradients of the student's states and weight. Steps run in turns, in another order each round; a ratio is taken within
a round, then the median. The first round's gradients are compared with float64's. Where half is masked, there are
twice as many positions as valid tokens, and the valid ones are those of the case without a mask. The floor is the time
of the four bare matrix products (logits of student and teacher, both gradients) on the valid tokens, into buffers made
before, whole or in chunks of 512 tokens, whichever is faster in that round.

Memory: one step, of a fresh process for each contender; the peak above what the process takes with the inputs in
memory and the libraries warm (`step_bytes`), and that less the two gradients, which have to be there (`extra_bytes`).
On an accelerator the same, told by the allocator, of a step before those that are timed.
"""

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from evidence import DEVICE, QUICK, write
from rivals import CONTENDERS, IGNORED, Loss, Tensors, errors, reference, tensors

from featkd.distill.runtime import fast_bf16
from featkd.measure.latency import _rss_bytes

LEAD = (
    "Language-model head and distillation loss, forward and backward: featkd's fused head and its peers. Student 512 "
    "wide, teacher 1,024. `time_vs_featkd`: median of the ratios within rounds; above 1 is slower than featkd. Memory "
    "of one step in a process of its own: `extra_bytes` above inputs and gradients, `step_bytes` with the gradients, "
    "`all_bytes` with the inputs too. Errors are relative to float64. bf16 only where the processor multiplies it fast."
)
FLOOR, FLOOR_CHUNK = "matrix products", 512
SMALL, LARGE = 50_257, 151_936
# (vocabulary, valid tokens): {positions: rounds}. Half masked: who selects no tokens takes twice as long.
CASES = {
    (SMALL, 512): {512: 3, 1024: 3},
    (SMALL, 2048): {2048: 3, 4096: 3},
    (LARGE, 512): {512: 3, 1024: 3},
    (LARGE, 2048): {2048: 3},
}
GROWTH = [8192, 32_768]  # tokens; with few, noise (1 MB) outweighs growth
DTYPES = ["float32", *(["bfloat16"] if fast_bf16(DEVICE) else [])]
if DEVICE == "cuda":
    CASES = {(v, n): {n: 5} for v in (SMALL, LARGE) for n in (8192, 16_384, 32_768)}
    CASES[SMALL, 8192][16_384] = 5
    DTYPES = ["bfloat16"]
COSTLY = (LARGE, 2048)  # half a minute a step: without those that are slow in all other cells, and without memory
FAST = ("featkd", "plain", "liger-compiled")
if QUICK:
    CASES, GROWTH = {(SMALL, 256): {256: 3}}, [1024, 4096]


def step(loss: Loss, given: Tensors) -> torch.Tensor:
    given.x.grad = given.weight.grad = None
    value = loss(given)
    value.backward()
    return value.detach()


def clocked(act: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds, and what it returns."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    value = act(*given)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def products(given: Tensors, chunk: int) -> Callable[[], None]:
    """The floor: the bare products on the valid tokens, `chunk` at a time, into buffers made here."""
    valid = given.labels != IGNORED
    x, y, weight = given.x.detach()[valid], given.y[valid], given.weight.detach()
    student, teacher = (torch.zeros(chunk, len(weight), dtype=x.dtype, device=DEVICE) for _ in range(2))
    by_states, by_weight = torch.zeros_like(x), torch.zeros_like(weight)

    def act() -> None:
        for start in range(0, len(x), chunk):
            rows = slice(start, start + chunk)
            torch.mm(x[rows], weight.T, out=student)
            torch.mm(y[rows], given.teacher_weight.T, out=teacher)
            torch.mm(student, weight, out=by_states[rows])
            torch.addmm(by_weight, student.T, x[rows], beta=float(start > 0), out=by_weight)

    return act


def timed(given: Tensors, exact: dict[str, torch.Tensor], rounds: int, names: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each contender and one for the floor."""
    found, losses = ready(given, names)
    names, least, valid = list(losses), [], len(exact["x"])
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            taken, value = clocked(step, losses[name], given)
            found[name]["seconds"].append(taken)
            if not number:
                found[name] |= errors(value, given, exact, CONTENDERS[name].cross)
        given.x.grad = given.weight.grad = None
        least.append(min(clocked(products(given, chunk))[0] for chunk in {valid, min(valid, FLOOR_CHUNK)}))
    rows = [*found.values(), {"contender": FLOOR, "seconds": least}]
    for row in (row for row in rows if row["seconds"]):
        row["median_s"] = statistics.median(row["seconds"])
        row["time_vs_featkd"] = _ratio(row["seconds"], found["featkd"]["seconds"])
    return rows


def ready(given: Tensors, names: Iterable[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Loss]]:
    """Rows to fill and the losses of those who can run, warm: a first call with few tokens, or all if it compiles."""
    torch._dynamo.reset()  # compiled for these shapes, not for any
    few = given._replace(x=given.x.detach()[:64].requires_grad_(), y=given.y[:64], labels=given.labels[:64])
    found, losses = {}, {}
    for name in names:
        contender = CONTENDERS[name]
        row = found[name] = {"contender": name, "version": contender.version, "note": contender.note, "seconds": []}
        try:
            loss = contender.load()
            taken, _ = clocked(step, loss, given if contender.compiles or DEVICE == "cuda" else few)
        except (ImportError, RuntimeError) as error:  # also too little memory on an accelerator
            row["note"] = f"cannot run: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            given.x.grad = given.weight.grad = None
            torch.cuda.empty_cache()
            continue
        losses[name] = loss
        if DEVICE == "cuda":
            row |= allocated(loss, given)
        if contender.compiles:
            row["first_call_s"] = taken
    return found, losses


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def memory(name: str, vocabulary: int, tokens: int, dtype: str) -> dict[str, int]:
    """One step in a process of its own; {} where the contender cannot run."""
    if DEVICE == "cuda":
        return allocated(CONTENDERS[name].load(), tensors(vocabulary, tokens, tokens, dtype))
    given = {"MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    command = [sys.executable, __file__, name, str(vocabulary), str(tokens), dtype]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=os.environ | given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"no memory of {name}: {done.stderr.strip()[-500:] or done.returncode}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, vocabulary: int, tokens: int, dtype: str) -> None:
    loss = CONTENDERS[name].load()
    for size in (32, 64):  # what libraries take when first used; from two shapes on they compile for any
        step(loss, tensors(256 * size, size, size, dtype))
    given = tensors(vocabulary, tokens, tokens, dtype)
    before = _rss_bytes("VmRSS")
    step(loss, given)
    print(json.dumps(_sizes(_rss_bytes("VmHWM") - before, given)))


def allocated(loss: Loss, given: Tensors) -> dict[str, int]:
    """One step on an accelerator, by its allocator."""
    given.x.grad = given.weight.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(loss, given)
    return _sizes(torch.cuda.max_memory_allocated() - before, given)


def _sizes(step_bytes: int, given: Tensors) -> dict[str, int]:
    outputs, inputs = given.x.nbytes + given.weight.nbytes, sum(tensor.nbytes for tensor in given)
    return {"extra_bytes": step_bytes - outputs, "step_bytes": step_bytes, "all_bytes": step_bytes + inputs}


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def picked(key: str, *contenders: str, dtype: str = "") -> list[float]:
        return [r[key] for r in rows if key in r and r["contender"] in contenders and r["dtype"].startswith(dtype)]

    peers = [name for name in CONTENDERS if name != "featkd"]
    memories = {
        (r["dtype"], r["vocabulary"], r["valid"], r["contender"]): r
        for r in rows
        if "step_bytes" in r and r["positions"] == r["valid"] and r.get("note") != "growth"
    }

    def memory_ratios(key: str, *others: str) -> list[float]:
        return [memories[*case, "featkd"][key] / r[key] for (*case, name), r in memories.items() if name in others]

    own = picked("states_gradient_error", "featkd") + picked("weight_gradient_error", "featkd")
    grown = [(r["valid"], r["extra_bytes"]) for r in rows if r.get("note") == "growth"]
    return {
        "speed_vs_best_peer": min(picked("time_vs_featkd", *peers)),
        "speed_vs_best_peer_bf16": min(picked("time_vs_featkd", *peers, dtype="bf"), default=None),
        "time_vs_matmul_floor_fp32": max((1 / r for r in picked("time_vs_featkd", FLOOR, dtype="fl")), default=None),
        "speed_vs_liger": min(picked("time_vs_featkd", "liger", "liger-compiled")),
        "memory_vs_liger": max(memory_ratios("step_bytes", "liger", "liger-compiled"), default=None),
        "memory_vs_plain": max(memory_ratios("step_bytes", "plain")),
        "memory_vs_best_peer": max(memory_ratios("step_bytes", *peers)),
        "memory_vs_plain_with_inputs": max(memory_ratios("all_bytes", "plain")),
        "extra_bytes": max(picked("extra_bytes", "featkd")),
        "bytes_per_extra_token": statistics.linear_regression(*zip(*grown, strict=True)).slope,
        "max_relative_gradient_error": max(own),
    }


def main() -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # or its first call would find what an earlier run left
    rows = []
    for tokens in GROWTH:
        case = {"dtype": DTYPES[0], "vocabulary": SMALL, "valid": tokens, "positions": tokens, "contender": "featkd"}
        rows.append(case | {"note": "growth"} | memory("featkd", SMALL, tokens, DTYPES[0]))
    for dtype, ((vocabulary, valid), rounds) in itertools.product(DTYPES, CASES.items()):
        exact = reference(tensors(vocabulary, valid, valid, dtype))
        for positions, number in rounds.items():
            start = time.perf_counter()
            costly = (vocabulary, valid) == COSTLY and DEVICE == "cpu"
            found = timed(tensors(vocabulary, valid, positions, dtype), exact, number, FAST if costly else CONTENDERS)
            torch.cuda.empty_cache()  # does nothing without an accelerator
            measured = () if costly or DEVICE == "cuda" else ("featkd", "plain") if QUICK else CONTENDERS
            for row in found if positions == valid else []:
                if row["contender"] in measured and row["seconds"]:
                    row |= memory(row["contender"], vocabulary, valid, dtype)
            case = {"dtype": dtype, "vocabulary": vocabulary, "valid": valid, "positions": positions}
            rows += [case | row for row in found]
            print(f"{case}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
            write("head", rows, summarised(rows), LEAD)  # so far: machines are lent, and sessions end


if __name__ == "__main__":
    child(sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]) if len(sys.argv) > 1 else main()
