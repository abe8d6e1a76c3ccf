"""What every stage of one run needs: the spec, the store, the log, and where to compute."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from featkd import environment
from featkd.spec import Spec
from featkd.store import Store
from tasks.stages import StageLog

LOCK = "in-use.lock"


@dataclass
class Context:
    spec: Spec
    root: Path
    log: StageLog = field(default_factory=StageLog)

    @property
    def home(self) -> Path:
        """Where everything that is kept lies: .featkd in the working folder."""
        return self.root / ".featkd"

    @property
    def store(self) -> Store:
        return Store(self.home / "store")

    @property
    def threads(self) -> int:
        return environment.threads(self.spec.compute)

    @property
    def device(self) -> str:
        return environment.device(self.spec.compute)

    @contextlib.contextmanager
    def workdir(self) -> Iterator[Path]:
        """A scratch folder on the store's file system, gone afterwards; its lock tells that it is in use."""
        with self._scratch() as parent:
            folder = Path(tempfile.mkdtemp(dir=parent))
            lock = FileLock(folder / LOCK)
            lock.acquire()
        try:
            yield folder
        finally:
            lock.release()
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed runs left: half-built artefacts and scratch folders. What is in use is locked."""
        self.store.sweep()
        with self._scratch() as parent:
            for folder in parent.iterdir():
                with contextlib.suppress(Timeout), FileLock(folder / LOCK).acquire(timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """The folder of scratch folders, held for a moment: none is between being made and being locked."""
        parent = self.home / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.home / "tmp.lock"):
            yield parent
