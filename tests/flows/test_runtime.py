"""Prefect around a flow: quiet, private, and gone when the command is gone, whatever ended it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from featkd import specfile
from flows import runtime

FLOW = """
import sys, time
from pathlib import Path
from flows.runtime import session

with session(Path(sys.argv[1]) / ".featkd") as opened:
    from prefect import flow
    from featkd.errors import InputError
    from tasks.stages import stage

    opened.ready()

    @stage("wait")
    def wait(what):
        print("running", flush=True)
        if what == "wrong":
            raise InputError("data.files: no such file")
        if what == "long":
            time.sleep(60)

    @flow(persist_result=False, validate_parameters=False)
    def waiting(what):
        wait(what)

    try:
        waiting(sys.argv[2])
    except InputError as error:
        print("told", error, flush=True)
"""


def start(folder: Path, what: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    # a background job of a shell ignores Ctrl-C, and a test run may be one
    return subprocess.Popen(
        [sys.executable, "-c", FLOW, str(folder), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


def test_two_first_runs_at_once_in_one_folder(folder):
    both = [start(folder, "wrong"), start(folder, "short")]
    outputs = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [out.splitlines() for out, _ in outputs] == [["running", "told data.files: no such file"], ["running"]]
    # neither Prefect's messages nor its tracebacks reach the terminal
    assert [err for _, err in outputs] == ["", ""]
    logs = "".join(path.read_text() for path in (folder / ".featkd" / "logs").glob("*.log"))
    assert "database is locked" not in logs and "InputError" in logs


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, -2)], ids=lambda x: str(x)
)
def test_no_server_is_left(folder, number, status):
    process = start(folder, "long")
    assert process.stdout.readline() == "running\n"
    (server,) = [child for child in psutil.Process(process.pid).children() if "flows.server" in child.cmdline()]
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode in (status, 130 if number == signal.SIGINT else status)
    deadline = time.monotonic() + 8
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_a_server_that_the_user_named_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    monkeypatch.setenv("PREFECT_HOME", "/somewhere")
    with runtime.session(tmp_path):
        assert os.environ["PREFECT_API_URL"] == "http://prefect.example:4200/api"
        assert os.environ["PREFECT_HOME"] == "/somewhere"
        assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PREFECT_HOME"] == "/somewhere"


def test_offline_unless_the_spec_names_the_hub(tmp_path):
    tree = {
        "name": "a",
        "data": {"builtin": "docstrings", "packages": ["stdlib"]},
        "teacher": {"model": "folder"},
        "students": [{"name": "s", "layers": 1}],
        "training": {"tokens": 1000},
    }
    assert not runtime.needs_hub(specfile.validate(tree))
    assert runtime.needs_hub(specfile.validate(tree | {"data": {"hub": "owner/name"}}))
    assert runtime.needs_hub(specfile.validate(tree | {"teacher": {"model": "hub:owner/name"}}))
    assert runtime.needs_hub(specfile.validate(tree | {"students": [{"name": "s", "model": "hub:owner/name"}]}))
    assert runtime.needs_hub(specfile.validate(tree | {"quality": {"tasks": ["arc_easy"]}}))
    (tmp_path / "mine.yaml").write_text("task: my_pairs\ndataset_path: json\n")
    own = {"include": str(tmp_path), "tasks": ["my_pairs"]}
    assert not runtime.needs_hub(specfile.validate(tree | {"quality": own}))
    assert runtime.needs_hub(specfile.validate(tree | {"quality": own | {"tasks": ["my_pairs", "arc_easy"]}}))
    assert runtime.quiet_environment(hub=False)["HF_HUB_OFFLINE"] == "1"


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with runtime.signals_raise():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(SystemExit):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
