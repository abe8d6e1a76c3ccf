"""Content-addressed artefact folders. A folder is done when its manifest.json lies in it; else it does not exist.

    store = Store(".featkd/store")
    key = artefact_key({"data": spec.section("data")}, rooms=["data"], packages=["tokenizers"])
    artefact = store.get("data", key) or store.make("data", key, build)

A folder is built beside its final place and renamed into it whole, so a killed run leaves nothing half done.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from featkd.spec import digest

ROOM_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Artefact:
    """A finished folder. What tasks pass to each other: a path and a digest, never tensors."""

    kind: str
    key: str
    path: Path
    meta: dict[str, Any]

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def artefact_key(inputs: dict[str, Any], rooms: list[str], packages: list[str] | None = None) -> str:
    """Digest of what makes an artefact: inputs (plain JSON), the source of `rooms`, versions of `packages`."""
    versions = {name: importlib.metadata.version(name) for name in packages or []}
    return digest({"inputs": inputs, "source": {room: _source_digest(room) for room in rooms}, "versions": versions})


@functools.cache
def _source_digest(room: str) -> str:
    path = ROOM_ROOT / room
    files = sorted([*path.rglob("*.py"), *path.rglob("*.yaml")]) if path.is_dir() else [path.with_suffix(".py")]
    return digest({str(file.relative_to(ROOM_ROOT)): file_sha256(file) for file in files})


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    def __init__(self, root: str | Path):
        self.root = Path(root).resolve()

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:20]

    def get(self, kind: str, key: str) -> Artefact | None:
        """The artefact, if it is finished and every file still has its sha256; a damaged one is set aside."""
        folder = self.path(kind, key)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            manifest = {}
        if (
            not isinstance(manifest, dict)
            or manifest.get("key") != key
            or not _intact(folder, manifest.get("files", {}))
        ):
            self._set_aside(folder)
            return None
        return Artefact(kind, key, folder, manifest["meta"])

    def make(self, kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> Artefact:
        """Build the artefact unless another process has just done so. `build` fills a folder, returns its meta."""
        folder = self.path(kind, key)
        with self.lock(kind, key):
            if found := self.get(kind, key):
                return found
            return self._build(kind, key, folder, build)

    def lock(self, kind: str, key: str) -> FileLock:
        """Held while an artefact is being made, by whichever process makes it."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{kind}-{key[:20]}.lock")

    def sweep(self) -> None:
        """Remove what killed builders left. An artefact whose lock is taken is being built, here or in a container."""
        for leftover in self.root.glob("*/*.partial-*"):
            lock = self.lock(leftover.parent.name, leftover.name.partition(".")[0])
            with contextlib.suppress(Timeout), lock.acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)

    def _build(self, kind: str, key: str, folder: Path, build: Callable[[Path], dict[str, Any]]) -> Artefact:
        self._sweep(folder)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        partial.mkdir(parents=True)
        try:
            meta = build(partial)
            _write_manifest(partial, kind, key, meta)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return Artefact(kind, key, folder, meta)

    def _sweep(self, folder: Path) -> None:
        """Remove what a killed builder of this artefact left; its lock is ours now."""
        for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _set_aside(self, folder: Path) -> None:
        try:
            folder.rename(folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:8]}"))
        except FileNotFoundError:
            pass


def _intact(folder: Path, files: dict[str, str]) -> bool:
    try:
        return bool(files) and all(file_sha256(folder / name) == sha for name, sha in files.items())
    except OSError:
        return False


def _write_manifest(folder: Path, kind: str, key: str, meta: dict[str, Any]) -> None:
    files = {
        file.relative_to(folder).as_posix(): file_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }
    if not files:
        raise RuntimeError(f"{kind}: the stage wrote no file")
    manifest = {"schema": "featkd.artefact/1", "kind": kind, "key": key, "files": files, "meta": meta}
    path = folder / "manifest.json"
    with path.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
