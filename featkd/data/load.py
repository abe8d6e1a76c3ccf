"""Documents in: the built-in corpus, local files or a hub dataset, as plain dicts.

documents = list(read(spec.data))      # [{"prompt": "", "text": "...", "label": None}, ...]

JSON and CSV are read as they stand: `datasets` guesses types, and would turn an answer 01234 into 1234.0 and a date
into a time stamp.
"""

import csv
import glob
import importlib.metadata
import json
import logging
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featkd import spec
from featkd.data import docstrings
from featkd.errors import InputError
from featkd.store import file_sha256

ENDINGS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]
MISSING = object()


def source_identity(data: spec.Data) -> dict[str, Any]:
    """What tells, without reading the documents, whether the source has changed: versions, hashes or a revision."""
    if data.builtin:
        return {package: _package_version(package) for package in data.packages}
    if data.files:
        return {"files": sorted([file.name, file_sha256(file)] for file in _local_files(data.files))}
    return {"hub": data.hub, "revision": data.revision or _hub_revision(data.hub or "")}


def read(data: spec.Data, processes: int = 1, cache: Path | None = None) -> Iterator[dict[str, Any]]:
    """Documents {prompt, text, label, choices, group}: `prompt` is '' for plain text, the others None where not told.

    choices: a JSON list of answers.

    cache: a folder for what `datasets` writes while it reads local files; a temporary one by default.
    Raises InputError for a missing file, an unreadable one, or a field that no row has.
    """
    if data.builtin:
        for document in docstrings.read(data.packages, data.min_chars, processes):
            yield {"prompt": "", **document, "choices": None, "group": None}
        return
    wanted = {"text": data.response_field or data.text_field, "prompt": data.prompt_field, "label": data.label_field,
              "group": data.group_field}  # fmt: skip
    unseen, keys = {field for field in (*wanted.values(), data.choices_field) if field}, ""
    for row in _rows(data, cache):
        keys = keys or ", ".join(map(str, row))
        found = {name: _text(row, field) if field else None for name, field in wanted.items()}
        unseen -= {wanted[name] for name, value in found.items() if value is not None}
        choices = field_value(row, data.choices_field) if data.choices_field else None
        unseen -= {data.choices_field} if choices is not MISSING else set()
        yield {
            "prompt": found["prompt"] or "",
            "text": found["text"] or "",
            "label": (found["label"] or "").strip() or None,
            "choices": _listed(choices, data.choices_field),
            "group": found["group"] or None,
        }
    if unseen and keys:
        raise InputError(f"data: no field {min(unseen)!r}; the rows have {keys}")


def _rows(data: spec.Data, cache: Path | None) -> Iterator[Row]:
    if data.hub:
        yield from _by_datasets(data.hub, name=data.hub_config, split=data.split, revision=data.revision)
        return
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        for file in _local_files(data.files):
            try:
                yield from _file_rows(file, data, folder)
            except UnicodeDecodeError as error:
                raise InputError(f"data: {file} is not UTF-8: {error}; save it as UTF-8") from None


def _file_rows(file: Path, data: spec.Data, cache: str) -> Iterator[Row]:
    ending = file.suffix.lower()
    if ending in (".jsonl", ".json"):
        yield from _json_rows(file)
    elif ending in (".csv", ".tsv"):
        yield from _table_rows(file, ending)
    else:
        options = {"data_files": glob.escape(str(file)), "split": "train", "cache_dir": cache}
        if ending == ".txt":
            options["sample_by"] = data.sample_by
        yield from _by_datasets("text" if ending == ".txt" else "parquet", **options)


def _json_rows(file: Path) -> Iterator[Row]:
    """Objects, one per line, or in one list."""
    with file.open(encoding="utf-8-sig") as lines:
        if file.suffix.lower() == ".json" and lines.read(4096).lstrip().startswith("["):
            lines.seek(0)
            found = enumerate(_parsed(lines.read(), f"data: {file}"), 1)
        else:
            lines.seek(0)
            found = ((n, _parsed(line, f"data: {file}, line {n}")) for n, line in enumerate(lines, 1) if line.strip())
        for number, row in found:
            if not isinstance(row, dict):
                raise InputError(f"data: {file}: row {number} is no object of fields but a {type(row).__name__}")
            yield row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {str(error)[:200]}; write one object per line, or one list") from None


def _table_rows(file: Path, ending: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ending == ".tsv" else {}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        try:
            yield from csv.DictReader(lines, restkey="", **style)
        except csv.Error as error:
            raise InputError(f"data: {file} cannot be read as a table: {error}") from None


def _by_datasets(path: str, **options: Any) -> Iterator[Row]:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs it also raises
    try:
        yield from datasets.load_dataset(path, **options)
    except Exception as error:  # datasets raises many kinds; all of them mean that this input cannot be read
        cause = error.__cause__ or error
        if isinstance(cause, UnicodeDecodeError):
            raise cause from None
        message = " ".join(str(cause).split())[:300] or type(cause).__name__
        where = options.get("data_files", path)
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
        if file.suffix.lower() not in ENDINGS:
            raise InputError(f"data.files: {file}: unknown ending; use one of {', '.join(ENDINGS)}")
        if file.stat().st_size == 0:
            raise InputError(f"data.files: {file} is empty")
    return files


def _text(row: Row, field: str) -> str | None:
    """The field as text, '' where it is null; None where the row has no such field."""
    value = field_value(row, field)
    if isinstance(value, dict | list):
        raise InputError(f"data: field {field!r} is not text but a {type(value).__name__}; write e.g. {field}.0")
    return None if value is MISSING else "" if value is None else str(value)


def _listed(choices: Any, field: str | None) -> str | None:
    """A list of texts as JSON; a text that is such JSON already stays, as in a table."""
    if choices in (None, MISSING, ""):
        return None
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            raise InputError(
                f'data.choices_field: {field}: {choices[:40]!r} is no list; write e.g. ["a", "b"]'
            ) from None
    if not isinstance(choices, list) or any(isinstance(choice, dict | list) for choice in choices):
        raise InputError(f"data.choices_field: {field!r} is no list of texts; write answers as a list")
    return json.dumps([str(choice) for choice in choices if choice is not None], ensure_ascii=False)


def field_value(row: Row, field: str) -> Any:
    """What stands there; MISSING where the row has no such field."""
    value: Any = row
    for part in [field] if field in row else field.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return MISSING
    return value


def _package_version(package: str) -> str:
    if package == "stdlib":
        return platform.python_version()
    distributions = importlib.metadata.packages_distributions().get(package)
    if not distributions:
        raise InputError(f"data.packages: no installed package {package!r}; write import names, e.g. sklearn")
    return importlib.metadata.version(distributions[0])


def _hub_revision(dataset: str) -> str:
    """The newest commit on the hub; offline, the one in the local cache."""
    import huggingface_hub

    try:
        return str(huggingface_hub.dataset_info(dataset).sha)
    except Exception as error:  # offline, gated, missing: all mean that it cannot be asked
        cached = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}" / "refs/main"
        if cached.is_file():
            return cached.read_text().strip()
        raise InputError(f"data.hub: {dataset} cannot be reached: {' '.join(str(error).split())[:200]}") from None
