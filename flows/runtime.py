"""What must stand before Prefect, MLflow or a Hugging Face library is imported, and what must end with the command.

    with session(home, "run", hub=needs_hub(spec)) as runtime:
        from flows.poc import run     # imports while the server starts
        runtime.ready()
        run(...)

`home` is the `.featkd` folder of the working folder. Prefect's API runs in a child process (flows/server.py) for as
long as the session is open, and no longer, whatever ends us. Where PREFECT_API_URL is set, that server is used and
none is started.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from featkd.errors import InputError, RunError
from featkd.spec import Spec

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 5
LOGS_KEPT = 40
MADE_TASKS = "heldout_"
TASK_NAME = re.compile(r"^(?:task|group|tag): *['\"]?([\w.-]+)", re.MULTILINE)


def needs_hub(spec: Spec) -> bool:
    """Does the spec name something that lies on the Hugging Face hub? A stock lm-eval task brings its data set."""
    own = _task_names(Path(spec.quality.include)) if spec.quality.include else set()
    stock_tasks = [name for name in spec.quality.tasks if not name.startswith(MADE_TASKS) and name not in own]
    models = [spec.teacher.model, *(size.model for size in spec.students)]
    return bool(spec.data.hub or any((model or "").startswith("hub:") for model in models) or stock_tasks)


def _task_names(folder: Path) -> set[str]:
    """Tasks, groups and tags that the YAML files of a folder define."""
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in folder.rglob("*.yaml"))
    return {name for text in texts for name in TASK_NAME.findall(text)}


def quiet_environment(hub: bool = False) -> dict[str, str]:
    """Telemetry off, downloads off unless `hub`, no progress bars. What the user has set stays."""
    wanted = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }
    offline = "0" if hub else "1"
    wanted |= {name: offline for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def prefect_environment(home: Path) -> dict[str, str]:
    """Settings of a private Prefect. An environment that names a server is left as it is, but for the console."""
    console = {"PREFECT_LOGGING_SETTINGS_PATH": str(Path(__file__).with_name("logging.yml"))}
    if os.environ.get("PREFECT_API_URL"):
        return console
    loopback = "127.0.0.1,localhost"
    return console | {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_TIMEOUT_S),
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        # a proxy must not swallow what goes to our own server
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy")), loopback])),
    }


class Server:
    """Prefect's API in a child process, on a loopback port that the kernel chose."""

    def __init__(self, home: Path, log_path: Path):
        home.mkdir(parents=True, exist_ok=True)
        self.log_path = log_path
        self.migrated = home / "migrated"
        self.lock = FileLock(home / "start.lock")
        if not self.migrated.exists():
            # two first starts would both migrate the same SQLite file
            self.lock.acquire(timeout=START_TIMEOUT_S)
        with socket.socket() as listener, log_path.open("ab") as log:
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
            )

    def ready(self) -> None:
        """Wait until it answers. The kernel keeps the request until then; a dead server resets it."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            direct.open(f"{self.url}/health", timeout=START_TIMEOUT_S).close()
        except OSError as error:
            raise RunError(f"Prefect's local server did not start ({error}); its output: {self.log_path}") from None
        if self.lock.is_locked:
            self.migrated.touch()
            self.lock.release()

    def stop(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.lock.release()


class Runtime:
    """An open session."""

    def __init__(self, log_path: Path, server: Server | None):
        self.log_path = log_path
        self._server = server

    def ready(self) -> None:
        """Call before the first flow runs."""
        if self._server:
            self._server.ready()
        if "prefect" in sys.modules:
            # imported before the session opened (in a test): read the environment again
            from prefect.context import refresh_global_settings_context

            refresh_global_settings_context()


@contextlib.contextmanager
def session(home: Path, command: str = "run", hub: bool = False) -> Iterator[Runtime]:
    """Everything a flow needs around it; on leaving, the server ends and the environment is as before."""
    home = Path(home).resolve()
    before = dict(os.environ)
    with _log_file(home, command) as log_path, signals_raise():
        server = None
        try:
            os.environ.update(quiet_environment(hub) | prefect_environment(home))
            if not os.environ.get("PREFECT_API_URL"):
                server = Server(home / "prefect", log_path)
                os.environ["PREFECT_API_URL"] = server.url
            yield Runtime(log_path, server)
        finally:
            if server:
                _drain_events()
                server.stop()
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For commands that ask MLflow, and run no flow."""
    before = dict(os.environ)
    os.environ.update(quiet_environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _drain_events() -> None:
    """Prefect sends task states in the background: let it finish while its server still listens."""
    if worker := sys.modules.get("prefect.events.worker"):
        with contextlib.suppress(Exception):
            worker.EventsWorker.drain_all(timeout=STOP_TIMEOUT_S)


@contextlib.contextmanager
def _log_file(home: Path, command: str) -> Iterator[Path]:
    """One log per command under .featkd/logs: Prefect's records, warnings, tracebacks, the server's output."""
    path = log_path(home, command)
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logger = logging.getLogger()
    logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield path
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)
        handler.close()


def made(home: Path) -> Path:
    """`home`, made. Raises InputError where nothing can be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        raise InputError(
            f"--root: nothing can be kept in {home} ({error.strerror}); write --root FOLDER, one that you may write to"
        ) from None
    return home


def log_path(home: Path, command: str) -> Path:
    """A new log's path; the oldest logs are removed."""
    folder = made(home) / "logs"
    folder.mkdir(exist_ok=True)
    for old in sorted(folder.glob("*.log"))[:-LOGS_KEPT]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{command}-{os.getpid()}.log"


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM and a closed terminal end us by an exception, so that every child process is ended on the way out.

    What is ignored stays ignored: nohup has asked for it.
    """

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, leave) for number in numbers}
    except ValueError:
        # not the main thread: whoever owns it owns the signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
