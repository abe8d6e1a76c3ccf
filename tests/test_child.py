"""run_child and serve: results, errors, deaths, and no process left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from featkd.child import run_child
from featkd.errors import InputError, RunError

WORKER = """
import os, signal, sys, time
from featkd.child import serve
from featkd.errors import InputError, RunError

def main(job, emit):
    print("a stray print")
    what = job["what"]
    if what == "progress":
        for step in (1, 2):
            emit("progress", step=step, steps=2, loss=1.0)
        return {"weights": "w"}
    if what == "input":
        raise InputError("data.files: no such file")
    if what == "nan":
        raise RunError("loss is NaN at step 3")
    if what == "bug":
        raise KeyError("who")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        print("the reason", file=sys.stderr, flush=True)
        os._exit(7)
    if what == "sleep":
        emit("started", pid=os.getpid())
        time.sleep(60)

if __name__ == "__main__":
    serve(main)
"""


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def test_events_and_result(tmp_path):
    events = []
    assert run_child("some_worker", {"what": "progress"}, tmp_path, events.append) == {"weights": "w"}
    assert [event["step"] for event in events] == [1, 2]
    assert "a stray print" in (tmp_path / "child.log").read_text()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("input", InputError, "data.files: no such file"),
        ("nan", RunError, "loss is NaN at step 3"),
        ("bug", RunError, "KeyError: 'who'"),
        ("killed", RunError, "some_worker was killed by SIGKILL (out of memory?"),
        ("crash", RunError, "some_worker ended with exit status 7: the reason"),
    ],
)
def test_failures(tmp_path, what, error, message):
    with pytest.raises(error) as raised:
        run_child("some_worker", {"what": what}, tmp_path)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert raised.value.__notes__


def test_an_exception_in_the_parent_kills_the_child(tmp_path):
    seen = []

    def stop(event):
        seen.append(event["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child("some_worker", {"what": "sleep"}, tmp_path, stop)
    assert not _alive(seen[0])


def test_the_child_dies_with_a_killed_parent(tmp_path):
    parent = textwrap.dedent(f"""
        from pathlib import Path
        from featkd.child import run_child
        run_child("some_worker", {{"what": "sleep"}}, Path({str(tmp_path)!r}), lambda e: print(e["pid"], flush=True))
    """)
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    pid = int(process.stdout.readline())
    assert _alive(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
