"""`featkd ui`: MLflow's own pages, served as long as the command runs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from featkd.errors import InputError
from tasks.tracking import client, tracking_uri

STOP_TIMEOUT_S = 10


def serve(home: Path, port: int) -> int:
    """MLflow's own pages on loopback until interrupted, however we end. Raises InputError when the port is taken."""
    uri = tracking_uri(home)
    if uri.startswith(("http://", "https://")):
        raise InputError(f"MLFLOW_TRACKING_URI: {uri} has pages of its own; open them in a browser")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(f"--port {port}: in use; write another one") from None
    client(home)
    places = ["--backend-store-uri", uri, "--artifacts-destination", str(home / "mlartifacts")]
    command = [sys.executable, "-P", "-m", "tasks.watched", "mlflow", "server", *places]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        cwd=home,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(STOP_TIMEOUT_S)
        process.stdin.close()
