"""The identity of a user's own lm-eval tasks: their folder, and the files outside it that their YAMLs name."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from featkd.spec import digest
from featkd.store import file_sha256


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's `!function`, and any other tag, as nothing."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: None)


def tasks_digest(folder: str | Path) -> str:
    """Digest of every file below a folder, and of those that its YAMLs include or take data from.

    Hidden folders are passed over: they hold what a tool keeps for itself.
    """
    folder = Path(folder)
    inside = [file for file in folder.rglob("*") if file.is_file() and not _kept_by_a_tool(file.relative_to(folder))]
    found = {file.relative_to(folder).as_posix(): file for file in inside}
    configs = [file for file in inside if file.suffix == ".yaml"]
    while configs:
        config = configs.pop()
        tree = _read(config)
        named = [(config.parent / name).resolve() for name in _texts(tree.get("include"))]
        included = [file for file in named if file.is_file() and str(file) not in found]
        configs += included
        found |= {str(file): file for file in [*included, *_data_files(tree)]}
    return digest({name: file_sha256(file) for name, file in found.items()})


def _kept_by_a_tool(file: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in file.parent.parts)


def _read(config: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(config.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _data_files(tree: Any) -> Iterator[Path]:
    """What the `dataset_kwargs` of a task or of a group name, as `datasets` finds it from the working folder."""
    if isinstance(tree, list):
        for part in tree:
            yield from _data_files(part)
    if not isinstance(tree, dict):
        return
    for name, part in tree.items():
        if name == "dataset_kwargs" and isinstance(part, dict):
            base = Path(part.get("data_dir") or "")
            for pattern in _texts(part.get("data_files") or ("**" if part.get("data_dir") else None)):
                there = [base / pattern, *map(Path, glob.glob(str(base / pattern), recursive=True))]
                yield from (file for file in there if file.is_file())
        else:
            yield from _data_files(part)


def _texts(value: Any) -> list[str]:
    """A text, a list of them, or one or several for each split."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []
