"""Latency and memory of exported models, each in a fresh process, generation by generation in turns.

A shared machine changes its pace by tens of percent from one second to the next: whole processes one after another
would compare its moods. So all models of a round are loaded, and each generates once in its turn, while the others
wait; ratios are taken within a turn (timings.py). Where memory is too small for all, processes follow each other.

`python -m featkd.measure.latency JOB.json` is the process; featkd.child starts it and ends it with its parent.
Time to first token: from the call, prompts already tokenised, until every request has its first token. Greedy, the end
token ignored, so that every model does the same work. First requests one at a time, then in batches.
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
from featkd.errors import ModelFailed, RunError
from featkd.measure import energy

if TYPE_CHECKING:  # pydantic stays out of the measured process
    from featkd import spec

Raw = dict[str, Any]
PAUSE_S = 0.05  # between turns: the threads of ONNX Runtime spin for a while after their work
LOADED = 1.5  # memory of a loaded model over its files, roughly
ENERGY_S = 3.0  # a counter is renewed once a millisecond, or on a GPU ten times a second
BATCH_REPEATS = 3  # generations of each batch size per process


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

    Returns {name: {provider, threads, prompt_tokens, new_tokens, in_turns, file_bytes, cache_bytes_per_token,
    energy: rapl, nvml or the code of why it was not read, rounds: [{batches: {size: {ttft_ms: [turns], inter_token_ms:
    [turns, new_tokens - 1]}}, load_s, import_rss_bytes, peak_rss_bytes, device_bytes, joules, energy_requests}]}},
    plain JSON.
    device_bytes: what became free memory of an accelerator no more, from the start of the process to the end of its
    warm-up. Memory and energy are those of one request at a time; energy that of `energy_requests` one after another.
    Raises InputError (the prompt is too short or too long) and ModelFailed (the process of one of them failed).
    """
    from featkd import environment
    from featkd.errors import InputError

    if len(prompt) < latency.prompt_tokens:
        raise InputError(f"latency.prompt_tokens: {latency.prompt_tokens} is above the probe's {len(prompt)} tokens")
    names = list(folders)
    sizes = {name: sum(file.stat().st_size for file in Path(folders[name]).glob("*.onnx*")) for name in names}
    together = LOADED * sum(sizes.values()) < environment.free_memory_bytes(device)
    found = energy.meter(device)
    meter = found if isinstance(found, energy.Meter) else None
    job = {
        "prompt": [int(token) for token in prompt[: latency.prompt_tokens]],
        "new_tokens": latency.new_tokens,
        "warmup": latency.warmup,
        "batches": [1] * latency.repeats + [size for size in latency.batch_sizes for _ in range(BATCH_REPEATS)],
        "threads": threads,
        "device": device,
        "energy": meter is not None,
    }
    rounds: dict[str, list[Raw]] = {name: [] for name in names}
    for number in range(latency.rounds):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        for group in [order] if together else [[name] for name in order]:
            for name in group:
                on_round(name, number)
            jobs = {name: {**job, "folder": str(folders[name])} for name in group}
            for name, done in _in_turns(jobs, meter).items():
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
            "energy": energy.source(found),
            "rounds": done,
        }
        for name, done in rounds.items()
    }


def _in_turns(jobs: dict[str, Raw], meter: energy.Meter | None) -> dict[str, Raw]:
    """Run a process per job; of those that are loaded and warm, one generates at a time."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()  # an event per turn, of the one process that is at work
    turns = max(len(job["batches"]) for job in jobs.values())
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(jobs)) as pool:
        running: dict[str, Future[Raw]] = {}
        pipes: dict[str, int] = {}
        facts: dict[str, Raw] = {}

        def awaited(name: str) -> None:
            try:
                _await(ended, running[name])
            except RunError as error:
                raise ModelFailed(name, str(error)) from error

        try:
            for index, (name, job) in enumerate(jobs.items()):
                workdir = Path(folder) / str(index)
                workdir.mkdir()
                os.mkfifo(workdir / "turns")
                pipes[name] = os.open(workdir / "turns", os.O_RDWR)  # opening does not wait for a reader
                job = {**job, "turns": str(workdir / "turns")}
                before = _device_free_bytes(job["device"])
                running[name] = pool.submit(run_child, "featkd.measure.latency", job, workdir, ended.put)
                awaited(name)  # loads alone too
                taken = None if before is None else max(0, before - _device_free_bytes(job["device"]))
                facts[name] = {"device_bytes": taken, "joules": None}
            for _, name in itertools.product(range(turns), jobs):
                time.sleep(PAUSE_S)
                os.write(pipes[name], b".")
                awaited(name)
            for name in jobs if meter else ():
                time.sleep(PAUSE_S)
                meter.joules()
                os.write(pipes[name], b".")
                awaited(name)
                facts[name]["joules"] = meter.joules()
            return {name: future.result() | facts[name] for name, future in running.items()}
        finally:
            for pipe in pipes.values():
                os.close(pipe)  # after an error: who still waits for its turn ends


def _device_free_bytes(device: str) -> int | None:
    """What is free on the accelerator; None on the processor, where the process tells what it takes."""
    from featkd import environment

    return environment.free_memory_bytes(device) if device == "cuda" else None


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


def _child(job: dict[str, Any], emit: Callable[..., None]) -> Raw:
    """The measured process: load, warm up, generate once in each of its turns."""
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401

    from featkd.deploy.generate import Generator

    import_rss_bytes = peak_rss_bytes = _rss_bytes("VmRSS")
    start = time.perf_counter()
    model = Generator(Path(job["folder"]), job["threads"], job["device"])
    load_s = time.perf_counter() - start

    def timed(size: int, new_tokens: int) -> list[float]:
        """Milliseconds to the first token of each request, then to each further one."""
        times = [time.perf_counter()]
        for _ in model.batch([job["prompt"]] * size, new_tokens):
            times.append(time.perf_counter())
        return [1e3 * (later - earlier) for earlier, later in itertools.pairwise(times)]

    for _ in range(job["warmup"]):
        timed(1, job["new_tokens"])
    batches: dict[int, Raw] = {size: {"ttft_ms": [], "inter_token_ms": []} for size in job["batches"]}
    with open(job["turns"], "rb", buffering=0) as turns:
        emit("ready")
        for size in job["batches"]:
            if not turns.read(1):
                raise RunError("the measurement was broken off")
            timed(size, 2)  # the caches are full of another model
            first, *others = timed(size, job["new_tokens"])
            batches[size]["ttft_ms"].append(first)
            batches[size]["inter_token_ms"].append(others)
            if size == 1:
                peak_rss_bytes = _rss_bytes("VmHWM")
            emit("generated")
        requests = 0
        if job["energy"] and turns.read(1):
            end = time.perf_counter() + ENERGY_S
            while time.perf_counter() < end:
                timed(1, job["new_tokens"])
                requests += 1
            emit("generated")
    return {
        "energy_requests": requests,
        "batches": batches,
        "load_s": load_s,
        "import_rss_bytes": import_rss_bytes,
        "peak_rss_bytes": peak_rss_bytes,
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
