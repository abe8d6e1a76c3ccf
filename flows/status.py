"""What the command line shows without running anything: finished runs, and this machine."""

import importlib.machinery
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from featkd import environment
from featkd.errors import InputError
from featkd.result import SCHEMA, Result

OURS = Path(__file__).resolve().parent.parent
PACKAGES = ("featkd", "flows", "tasks", "reports")
GB = 1e9
DISK_NEEDED_GB = 2.0
MEMORY_NEEDED_GB = 3.0


def find_run(home: Path, run: str) -> Path:
    """The folder of a run by its id, by its path, or the newest for 'last'. Raises InputError."""
    known = _run_folders(home)
    if run == "last" and known:
        return known[0]
    for folder in (home / "runs" / run, Path(run), Path(run).parent):
        if (folder / "result.json").is_file():
            return folder.resolve()
    shown = ", ".join(folder.name for folder in known[:3]) or "none yet"
    raise InputError(f"RUN: {run!r} is no run of {home / 'runs'}; write one of: {shown}")


def read_result(folder: Path) -> Result:
    path = folder / "result.json"
    try:
        return Result.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(
            f"{path}: not a {SCHEMA} document of this version, run it again: {error.errors()[0]['msg']}"
        ) from None


def runs(home: Path) -> list[dict[str, Any]]:
    """One row per finished run, the newest first; a result that cannot be read is a row that says so."""
    return [_row(folder) for folder in _run_folders(home)]


def _row(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return {
            "run_id": found["run_id"],
            "name": found["name"],
            "created": found["created"],
            "recommendation": found["recommendation"]["code"],
            "verdicts": {name: candidate["verdict"]["verdict"] for name, candidate in found["candidates"].items()},
            "folder": str(folder),
        }
    except (ValueError, KeyError, TypeError):
        unknown = {"name": "", "created": "", "recommendation": "unreadable", "verdicts": {}}
        return {"run_id": folder.name, **unknown, "folder": str(folder)}


def _run_folders(home: Path) -> list[Path]:
    found = [path.parent for path in (home / "runs").glob("*/result.json") if ".partial-" not in path.parent.name]
    return sorted(found, key=_age, reverse=True)


def _age(folder: Path) -> tuple[str, int]:
    """By its name: when it was measured, and how often it was priced since."""
    measured, _, version = folder.name.partition("-priced-")
    return measured, int(version) if version.isdigit() else 0


def diagnose(home: Path) -> dict[str, Any]:
    """Hardware, disk, versions, and `problems`: one line each, with what to do."""
    disk = shutil.disk_usage(next(path for path in (home, *home.parents) if path.exists()))
    memory = psutil.virtual_memory()
    found = {
        "python": platform.python_version(),
        **environment.hardware(),
        "memory_available_bytes": memory.available,
        "disk_free_bytes": disk.free,
        "versions": environment.versions(),
        "source": str(OURS),
    }
    problems = [f"another package '{name}' at {path} shadows ours; rename it or leave that folder"
                for name, path in shadows(sys.path)]  # fmt: skip
    if disk.free < DISK_NEEDED_GB * GB:
        problems.append(f"{disk.free / GB:.1f} GB of disk left at {home.parent}; the PoC wants {DISK_NEEDED_GB}")
    if memory.available < MEMORY_NEEDED_GB * GB:
        problems.append(f"{memory.available / GB:.1f} GB of memory free; the PoC wants {MEMORY_NEEDED_GB}")
    missing = [name for name in ("torch", "transformers", "prefect", "mlflow") if name not in found["versions"]]
    if missing:
        problems.append(f"not installed: {', '.join(missing)}; run make poc, or pip install -c constraints.txt -e .")
    return found | {"problems": problems}


def shadows(path: list[str]) -> list[tuple[str, str]]:
    """(package, folder) of each foreign package that Python finds before ours."""
    found = {}
    for entry in path:
        folder = Path(entry).resolve()
        if folder == OURS:
            break
        for name in PACKAGES:
            spec = importlib.machinery.PathFinder.find_spec(name, [str(folder)])
            if spec and spec.origin and Path(spec.origin).resolve().parent != OURS / name:
                found.setdefault(name, str(Path(spec.origin).parent))
    return list(found.items())
