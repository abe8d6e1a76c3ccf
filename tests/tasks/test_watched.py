"""`featkd ui` with a real MLflow server: it ends with the command, whatever ends that one."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest


def start(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "ui", "--root", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return process
        time.sleep(0.3)
    process.kill()
    pytest.fail(f"no server: {process.communicate()[1].decode()}")


OTHERS = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGKILL, *OTHERS], ids=lambda number: number.name)
def test_no_server_is_left(tmp_path_factory, number):
    process = start(tmp_path_factory.getbasetemp() / "ui")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2, "MLflow and its uvicorn"
    process.send_signal(number)
    _, left = psutil.wait_procs(children, timeout=20)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    process.communicate(timeout=20)
    assert not left
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
