"""Work in a process of its own: JSON lines out, a clean death whatever happens to the parent.

    # parent
    done = run_child("featkd.distill.worker", job, workdir, on_event=progress)

    # featkd/distill/worker.py
    def main(job: dict, emit: Callable[..., None]) -> dict:
        emit("progress", step=1, steps=100, loss=4.2, tokens_per_s=9000.0)
        return {"weights": "..."}

    if __name__ == "__main__":
        serve(main)

The child holds the read end of a pipe (its stdin) whose write end dies with the parent, also on kill -9.
PR_SET_PDEATHSIG would not do: it fires when the *thread* that started the child ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from featkd.errors import InputError, RunError

Event = dict[str, Any]
MARK = "FEATKD_CHILD"
TAIL_LINES = 30
EXIT_WAIT_S = 20.0


def run_child(
    module: str,
    job: dict[str, Any],
    workdir: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run `python -m MODULE job.json` to its end; return what its main returned.

    Writes job.json and child.log (the child's stderr and its stray prints) into `workdir`, which must exist.
    `on_event` gets every event but the last: {"event": "progress", ...}. If it raises, the child is killed.

    Raises InputError or RunError as the child did, RunError when the child died (its stderr's tail is the
    exception's note).
    """
    workdir = Path(workdir)
    job_path, log_path = workdir / "job.json", workdir / "child.log"
    job_path.write_text(json.dumps(job), encoding="utf-8")
    # -P: a folder named tasks or featkd in the user's working folder must not be taken for ours
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(job_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(env or {}), MARK: "1"},
            start_new_session=True,
        )
    try:
        last = _follow(process, on_event)
        code = _wait(process, finished=last is not None)
    finally:
        _end(process)
    if last is None:
        raise _died(module, code, log_path)
    if last["event"] == "error":
        error = InputError if last.get("kind") == "input" else RunError
        raise _with_tail(error(last["message"]), log_path)
    return {key: value for key, value in last.items() if key != "event"}


def _follow(process: subprocess.Popen, on_event: Callable[[Event], None]) -> Event | None:
    """Hand on events until done or error; None if the child's output ends before."""
    for event in _events(process):
        if event["event"] in ("done", "error"):
            return event
        on_event(event)
    return None


def _events(process: subprocess.Popen) -> Iterator[Event]:
    for line in process.stdout:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                yield event


def _wait(process: subprocess.Popen, finished: bool) -> int | None:
    """Exit status. A child that has told its result may hang or crash in the libraries' tear-down: no matter."""
    try:
        return process.wait(EXIT_WAIT_S if finished else None)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen) -> None:
    """Kill the child with all of its process group; a no-op when it has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _died(module: str, code: int | None, log_path: Path) -> RunError:
    how = f"ended with exit status {code}"
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += " (out of memory? lower the batch sizes)"
    tail = _tail(log_path)
    return _with_tail(RunError(f"{module} {how}" + (f": {tail[-1]}" if tail else "")), log_path)


def _with_tail(error: Exception, log_path: Path) -> Any:
    if tail := _tail(log_path):
        error.add_note("last lines of the child process:\n" + "\n".join(tail))
    return error


def _tail(log_path: Path) -> list[str]:
    with log_path.open("rb") as file:
        file.seek(max(0, log_path.stat().st_size - 20_000))
        text = file.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]


def serve(main: Callable[[dict[str, Any], Callable[..., None]], dict[str, Any] | None]) -> None:
    """The child's side: `main(job, emit)` does the work and returns plain JSON values; None where another process of
    the same child tells the result.

    Events go to the real stdout; what libraries print goes to stderr, so that it cannot garble them.
    """
    send = _claim_stdout()
    if os.environ.pop(MARK, None):
        die_with_parent()

    def emit(event: str, **fields: Any) -> None:
        send({"event": event, **fields})

    try:
        job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        result = main(job, emit)
    except InputError as error:
        _fail(emit, "input", str(error))
    except RunError as error:
        _fail(emit, "run", str(error))
    except Exception as error:
        traceback.print_exc()
        _fail(emit, "run", f"{type(error).__name__}: {error}")
    else:
        if result is not None:
            emit("done", **result)


def _fail(emit: Callable[..., None], kind: str, message: str) -> None:
    emit("error", kind=kind, message=" ".join(message.split()))
    sys.exit(1)


def _claim_stdout() -> Callable[[Event], None]:
    """Keep stdout for events and send file descriptor 1 to stderr."""
    sys.stdout.flush()
    # os.dup's copy is not inherited: no grandchild can hold the parent's pipe open
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # a killed child writes no buffers: its last lines say why
    lock = threading.Lock()

    def send(event: Event) -> None:
        with lock:
            events.write(json.dumps(event) + "\n")
            events.flush()

    return send


def die_with_parent() -> None:
    """Kill this process group when the parent's end of our stdin closes."""
    watched = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        while os.read(watched, 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
