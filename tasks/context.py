"""What every stage of one run needs: the spec, the store, the log, and where to compute."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from featkd import environment
from featkd.spec import Spec
from featkd.store import Store
from tasks.stages import StageLog


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

    @contextmanager
    def workdir(self) -> Iterator[Path]:
        """A scratch folder on the store's file system, gone afterwards."""
        parent = self.home / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            yield Path(folder)
