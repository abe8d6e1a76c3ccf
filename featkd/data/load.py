"""Documents in: the built-in corpus, local files or a hub dataset, as plain dicts.

documents = list(read(spec.data))      # [{"prompt": "", "text": "...", "label": None}, ...]
"""

import glob
import importlib.metadata
import logging
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featkd import spec
from featkd.data import docstrings
from featkd.errors import InputError
from featkd.store import file_sha256

READERS = {
    ".txt": ("text", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    # an answer may be the word None or NA
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".parquet": ("parquet", {}),
}


def source_identity(data: spec.Data) -> dict[str, Any]:
    """What tells, without reading the documents, whether the source has changed: versions, hashes or a revision."""
    if data.builtin:
        return {package: _package_version(package) for package in data.packages}
    if data.files:
        return {"files": sorted([file.suffix.lower(), file_sha256(file)] for file in _local_files(data.files))}
    return {"hub": data.hub, "revision": _hub_revision(data.hub or "")}


def read(data: spec.Data, processes: int = 1) -> Iterator[dict[str, Any]]:
    """Documents {prompt, text, label}: `prompt` is '' for plain text, `label` None where there is no class.

    Raises InputError for a missing file, an unreadable one, or a column that is not there.
    """
    if data.builtin:
        for document in docstrings.read(data.packages, data.min_chars, processes):
            yield {"prompt": "", **document}
        return
    for row in _rows(data):
        text = _text(row, data.response_field or data.text_field)
        prompt = _text(row, data.prompt_field) if data.prompt_field else ""
        label = _text(row, data.label_field).strip() if data.label_field else None
        yield {"prompt": prompt, "text": text, "label": label or None}


def _rows(data: spec.Data) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs it also raises
    with tempfile.TemporaryDirectory() as cache:
        if data.hub:
            yield from _load(datasets, data.hub, name=data.hub_config, split=data.split)
            return
        by_reader: dict[str, list[Path]] = {}
        for file in _local_files(data.files):
            by_reader.setdefault(file.suffix.lower(), []).append(file)
        for suffix, files in sorted(by_reader.items()):
            reader, options = READERS[suffix]
            options = {**options, "sample_by": data.sample_by} if reader == "text" else options
            paths = [str(file) for file in files]
            yield from _load(datasets, reader, data_files=paths, split="train", cache_dir=cache, **options)


def _load(datasets: Any, path: str, **options: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from datasets.load_dataset(path, **options)
    except Exception as error:  # datasets raises many kinds; all of them mean that this input cannot be read
        cause = error.__cause__ or error
        message = " ".join(str(cause).split())[:300]
        if isinstance(cause, UnicodeDecodeError):
            message += "; save it as UTF-8"
        where = options.get("data_files", [path])[0]
        raise InputError(f"data: {where} cannot be read by datasets ({path}): {message}") from None


def _local_files(patterns: list[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise InputError(f"data.files: no file {pattern}")
        files += found
    for file in files:
        if file.suffix.lower() not in READERS:
            raise InputError(f"data.files: {file}: unknown ending; use one of {', '.join(READERS)}")
        if file.stat().st_size == 0:
            raise InputError(f"data.files: {file} is empty")
    return files


def _text(row: dict[str, Any], field: str) -> str:
    value: Any = row
    for part in [field] if field in row else field.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise InputError(f"data: no field {field!r}; the rows have {', '.join(map(str, row))}")
    if isinstance(value, dict | list):
        raise InputError(f"data: field {field!r} is not text but a {type(value).__name__}; write e.g. {field}.0")
    return "" if value is None else str(value)


def _package_version(package: str) -> str:
    if package == "stdlib":
        return platform.python_version()
    distributions = importlib.metadata.packages_distributions().get(package)
    if not distributions:
        raise InputError(f"data.packages: no installed package {package!r}; write import names, e.g. sklearn")
    return importlib.metadata.version(distributions[0])


def _hub_revision(dataset: str) -> str | None:
    import huggingface_hub

    try:
        return huggingface_hub.dataset_info(dataset).sha
    except Exception as error:  # offline, gated, missing: all mean that it cannot be had
        raise InputError(f"data.hub: {dataset} cannot be reached: {' '.join(str(error).split())[:200]}") from None
