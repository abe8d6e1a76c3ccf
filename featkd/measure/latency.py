"""Latency and memory of exported models, each in a fresh process, generation by generation in turns.

A shared machine changes its pace by tens of percent from one second to the next: whole processes one after another
would compare its moods. So all models of a round are loaded, and each generates once in its turn, while the others
wait; ratios are taken within a turn. Where memory is too small for all, processes follow each other.

`python -m featkd.measure.latency JOB.json` is the process; featkd.child starts it and ends it with its parent.
Time to first token: from the call, prompt already tokenised, to the first token. Decode rate: the other tokens
over their time, batch 1, greedy, the end token ignored, so that every model does the same work.
"""

import itertools
import os
import queue
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkd.child import run_child, serve

if TYPE_CHECKING:  # pydantic stays out of the measured process
    from featkd import result, spec

Raw = dict[str, Any]
LEVEL = 0.95
PRECISE = 0.05  # what a speed-up is to be known to
PAUSE_S = 0.05  # between turns: the threads of ONNX Runtime spin for a while after their work
LOADED = 1.5  # memory of a loaded model over its files, roughly


def measure(
    folders: dict[str, Path],
    latency: "spec.Latency",
    prompt: list[int],
    threads: int,
    device: str,
    on_round: Callable[[str, int], None] = lambda name, number: None,
) -> dict[str, Raw]:
    """Time each folder in `latency.rounds` fresh processes, in turns; the order rotates from round to round.

    Args:
        folders: candidate name to ONNX folder.
        prompt: at least `latency.prompt_tokens` token ids; cut to that.
        threads: CPU threads. device: cpu or cuda.
        on_round: called with (name, round) before each process.

    Returns {name: {provider, threads, prompt_tokens, new_tokens, in_turns, file_bytes, cache_bytes_per_token, rounds:
    [{ttft_ms: [repeats], decode_tokens_per_s: [repeats], load_s, import_rss_bytes, peak_rss_bytes}]}}, plain JSON.
    Raises InputError (the prompt is too short or too long) and RunError (a process died).
    """
    from featkd import environment
    from featkd.errors import InputError

    if len(prompt) < latency.prompt_tokens:
        raise InputError(f"latency.prompt_tokens: {latency.prompt_tokens} is above the probe's {len(prompt)} tokens")
    names = list(folders)
    sizes = {name: sum(file.stat().st_size for file in Path(folders[name]).glob("*.onnx*")) for name in names}
    together = LOADED * sum(sizes.values()) < environment.free_memory_bytes(device)
    rounds: dict[str, list[Raw]] = {name: [] for name in names}
    for number in range(latency.rounds):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        for group in [order] if together else [[name] for name in order]:
            jobs = {}
            for name in group:
                on_round(name, number)
                jobs[name] = {
                    "folder": str(folders[name]),
                    "prompt": [int(token) for token in prompt[: latency.prompt_tokens]],
                    "new_tokens": latency.new_tokens,
                    "warmup": latency.warmup,
                    "repeats": latency.repeats,
                    "threads": threads,
                    "device": device,
                }
            for name, done in _in_turns(jobs, latency.repeats).items():
                rounds[name].append(done)
    return {
        name: {
            "provider": done[0]["provider"],
            "threads": threads,
            "prompt_tokens": latency.prompt_tokens,
            "new_tokens": latency.new_tokens,
            "in_turns": together,
            "file_bytes": sizes[name],
            "cache_bytes_per_token": done[0]["cache_bytes_per_token"],
            "rounds": done,
        }
        for name, done in rounds.items()
    }


def _in_turns(jobs: dict[str, Raw], turns: int) -> dict[str, Raw]:
    """Run a process per job; of those that are loaded and warm, one generates at a time."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()  # an event per turn, of the one process that is at work
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(jobs)) as pool:
        running: dict[str, Future[Raw]] = {}
        pipes: dict[str, int] = {}
        try:
            for index, (name, job) in enumerate(jobs.items()):
                workdir = Path(folder) / str(index)
                workdir.mkdir()
                os.mkfifo(workdir / "turns")
                pipes[name] = os.open(workdir / "turns", os.O_RDWR)  # opening does not wait for a reader
                job = {**job, "turns": str(workdir / "turns")}
                running[name] = pool.submit(run_child, "featkd.measure.latency", job, workdir, ended.put)
                _await(ended, running[name])  # loads alone too
            for _ in range(turns):
                for name in jobs:
                    time.sleep(PAUSE_S)
                    os.write(pipes[name], b".")
                    _await(ended, running[name])
            return {name: future.result() for name, future in running.items()}
        finally:
            for pipe in pipes.values():
                os.close(pipe)  # after an error: who still waits for its turn ends


def _await(ended: queue.SimpleQueue, running: Future[Raw]) -> None:
    """Until the turn has ended; raises what the process did if it died."""
    while True:
        try:
            ended.get(timeout=0.2)
        except queue.Empty:
            if running.done():
                running.result()
                return
        else:
            return


def summarise(raw: Raw, teacher_raw: Raw | None) -> tuple["result.Latency", "result.Memory"]:
    """Medians and ratios to the teacher with 95 % intervals, from `measure`'s raw values.

    Each round, a process of its own, gives one figure: the median of its generations, or for a ratio the median of
    the quotients, turn by turn. The value is the geometric mean over rounds, the interval Student's t (1908)
    of the logarithms with rounds - 1 degrees of freedom: what drifts between rounds widens it, and it keeps its
    coverage with a handful of rounds, where a bootstrap is too narrow. One round, or rounds that all give the same,
    have no bounds. Without `teacher_raw` there are no ratios; of a model to itself they are exactly 1.
    """
    import numpy as np

    from featkd.result import Latency, Memory

    ttft, rate = _table(raw, "ttft_ms"), _table(raw, "decode_tokens_per_s")
    peak = _table(raw, "peak_rss_bytes")
    above = np.maximum(peak - _table(raw, "import_rss_bytes"), 1)  # a logarithm is taken
    base = teacher_raw
    decode_speedup = _interval(rate, _table(base, "decode_tokens_per_s")) if base else None
    latency = Latency(
        provider=raw["provider"],
        ttft_ms=_interval(ttft),
        decode_tokens_per_s=_interval(rate),
        prefill_tokens_per_s=_interval(1e3 * raw["prompt_tokens"] / ttft),
        ttft_speedup=_interval(_table(base, "ttft_ms"), ttft) if base else None,
        decode_speedup=decode_speedup,
        rounds_needed=_rounds_needed(decode_speedup, len(rate)) if decode_speedup else None,
        generations=ttft.size,
        ttft_ms_quantiles={"p50": float(np.quantile(ttft, 0.5)), "p90": float(np.quantile(ttft, 0.9))},
        raw_ttft_ms=[float(value) for value in ttft.ravel()],
        raw_decode_tokens_per_s=[float(value) for value in rate.ravel()],
    )
    memory = Memory(
        peak_rss_bytes=_interval(peak),
        rss_above_import_bytes=_interval(above),
        rss_ratio=_interval(peak, _table(base, "peak_rss_bytes")) if base else None,
        file_bytes=raw["file_bytes"],
        cache_bytes_per_token=raw["cache_bytes_per_token"],
    )
    return latency, memory


def _table(raw: Raw, key: str) -> Any:
    """[rounds, values per round]"""
    import numpy as np

    return np.array([np.atleast_1d(done[key]) for done in raw["rounds"]], np.float64)


def _interval(table: Any, over: Any = None) -> "result.Interval":
    """Medians of the rounds of `table` [rounds, turns], divided by `over`, turn by turn, if given; see summarise."""
    import numpy as np
    from scipy.stats import t

    from featkd.result import Interval

    if over is not None:
        if np.array_equal(table, over):
            return Interval(value=1.0, low=1.0, high=1.0)
        table = table / over
    logs = np.log(np.median(table, axis=1))
    rounds, mean = len(logs), logs.mean()
    if np.ptp(logs) < 1e-12:  # rounding
        return Interval(value=float(np.exp(mean)))
    half = t.ppf((1 + LEVEL) / 2, rounds - 1) * logs.std(ddof=1) / np.sqrt(rounds)
    return Interval(value=float(np.exp(mean)), low=float(np.exp(mean - half)), high=float(np.exp(mean + half)))


def _rounds_needed(found: "result.Interval", rounds: int) -> int | None:
    """How many would bring the interval to `PRECISE` on both sides, at the spread that these rounds had."""
    import math

    from scipy.stats import t

    if found.low is None or found.low == found.high or found.high / found.value <= 1 + PRECISE:
        return None

    def width(of: float) -> float:
        return float(t.ppf((1 + LEVEL) / 2, of - 1)) / math.sqrt(of)

    spread = math.log(found.high / found.value) / width(rounds)
    return next(n for n in itertools.count(rounds + 1) if spread * width(n) <= math.log1p(PRECISE))


def _child(job: dict[str, Any], emit: Callable[..., None]) -> Raw:
    """The measured process: load, warm up, generate once in each of its turns."""
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401

    from featkd.deploy.generate import Generator
    from featkd.errors import RunError

    import_rss_bytes = _rss_bytes("VmRSS")
    start = time.perf_counter()
    model = Generator(Path(job["folder"]), job["threads"], job["device"])
    load_s = time.perf_counter() - start
    prompt, new_tokens = job["prompt"], job["new_tokens"]
    for _ in range(job["warmup"]):
        model.generate(prompt, new_tokens)
    runs = []
    with open(job["turns"], "rb", buffering=0) as turns:
        emit("ready")
        for _ in range(job["repeats"]):
            if not turns.read(1):
                raise RunError("the measurement was broken off")
            model.generate(prompt, 2)  # the caches are full of another model
            runs.append(model.generate(prompt, new_tokens))
            emit("generated")
    return {
        "ttft_ms": [1e3 * ttft_s for _, ttft_s, _ in runs],
        "decode_tokens_per_s": [(new_tokens - 1) / decode_s for _, _, decode_s in runs],
        "load_s": load_s,
        "import_rss_bytes": import_rss_bytes,
        "peak_rss_bytes": _rss_bytes("VmHWM"),
        "provider": model.provider,
        "cache_bytes_per_token": model.cache_bytes_per_token,
        "threads": model.threads,
    }


def _rss_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process.

    Not ru_maxrss where /proc is there: on Linux it outlives exec and starts at the parent's size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text())[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve(_child)
