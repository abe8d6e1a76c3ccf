"""What a model answered in service: logs of any size are read once, in a memory that does not grow with them.

    {"time": "2026-11-26T08:00:00Z", "prompt": "...", "response": "...", "feedback": 1}

One line each, in UTF-8; .gz is read, too. Of the prompts some are drawn, all different ones with equal chances: those
whose keyed hashes are the smallest (a bottom-k sample, Cohen & Kaplan 2007, 10.1145/1281100.1281133); of each the
first answer. Nobody who asks the same again and again outweighs the others.
"""

import gzip
import hashlib
import heapq
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from featkd.data.load import MISSING, field_value
from featkd.errors import InputError
from featkd.judging import Audit

LONGEST_LINE = 8 * 2**20
MILLISECONDS = 1e11  # seconds since 1970 above which a number is meant in milliseconds
WANTED = "write one JSON object per line, in UTF-8"
Row = dict[str, Any]


class Sample(NamedTuple):
    """rows: prompt, response, feedback, time (ISO 8601), file, line. files: name, bytes, sha256 of what was read."""

    rows: list[Row]
    files: list[dict[str, Any]]
    records: int
    earlier: int
    without_prompt: int
    first: str | None
    last: str | None


def draw(files: list[Path], audit: Audit, after: datetime | None, key: bytes) -> Sample:
    """One answer of each of `audit.examples` prompts.

    Args:
        after: records of that time and before it are counted as `earlier` and left out.
        key: at most 64 bytes; with another one, other prompts are drawn.

    Raises InputError that names file and line: not UTF-8, not JSON, a field that is missing or is no text or time.
    """
    kept: dict[int, Row] = {}
    heap: list[int] = []
    records = earlier = without_prompt = 0
    span: list[datetime] = []
    read = []
    for file in files:
        told: dict[str, Any] = {}
        for number, line in _lines(file, told):
            where = f"LOGS: {file}, line {number}"
            row = _object(line, where)
            time = _time(_present(row, audit.time_field, "time_field", where), audit.time_field, where)
            prompt = _text(_present(row, audit.prompt_field, "prompt_field", where), audit.prompt_field, where)
            response = _text(_present(row, audit.response_field, "response_field", where), audit.response_field, where)
            records += 1
            if after and time <= after:
                earlier += 1
                continue
            span = [min([time, *span]), max([time, *span])]
            if not prompt.strip():
                without_prompt += 1
                continue
            place = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8, key=key).digest())
            if place in kept or (len(heap) == audit.examples and place > -heap[0]):
                continue
            kept[place] = {
                "prompt": prompt, "response": response, "time": time.isoformat(), "file": str(file), "line": number,
                "feedback": _feedback(row, audit.feedback_field, where),
            }  # fmt: skip
            heapq.heappush(heap, -place)
            if len(heap) > audit.examples:
                del kept[-heapq.heappop(heap)]
        read.append({"file": str(file), **told})
    first, last = (time.isoformat() for time in span) if span else (None, None)
    return Sample([kept[place] for place in sorted(kept)], read, records, earlier, without_prompt, first, last)


def _lines(file: Path, told: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank with their numbers. At the end `told` has bytes and sha256 of the file."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as raw:
            opened = gzip.open(raw) if file.suffix == ".gz" else raw
            number = 0
            while line := opened.readline(LONGEST_LINE):
                number += 1
                digest.update(line)
                if len(line) == LONGEST_LINE:
                    raise InputError(f"LOGS: {file}, line {number}: longer than 8 MiB; {WANTED}")
                if line.strip():
                    yield number, line
            told |= {"bytes": opened.tell(), "sha256": digest.hexdigest()}
    except (OSError, EOFError, io.UnsupportedOperation) as error:
        raise InputError(f"LOGS: {file} cannot be read: {error}") from None


def _object(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start}); {WANTED}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({str(error)[:80]}); {WANTED}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, no object; {WANTED}")
    return row


def _present(row: Row, name: str, setting: str, where: str) -> Any:
    value = field_value(row, name)
    if value is MISSING or value is None:
        state = "is null" if value is None else "is missing"
        raise InputError(f"{where}: field {name!r} {state}, it has {', '.join(row)}; write its name in audit.{setting}")
    return value


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: field {name!r} is no text but a {type(value).__name__}")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of characters that were cut


def as_time(value: str | float) -> datetime:
    """ISO 8601, without a zone UTC; or seconds or milliseconds since 1970. Raises ValueError."""
    if isinstance(value, str):
        time = datetime.fromisoformat(value)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    return datetime.fromtimestamp(value / 1000 if value > MILLISECONDS else value, UTC)


def _time(value: Any, name: str, where: str) -> datetime:
    try:
        return as_time(value)
    except (ValueError, OverflowError, OSError):
        shown = str(value)[:40]
    raise InputError(f"{where}: field {name!r} is no time: {shown!r}; write e.g. 2026-11-26T08:00:00Z")


def _feedback(row: Row, name: str | None, where: str) -> float | None:
    value = field_value(row, name) if name else None
    if value is MISSING or value is None:
        return None
    if not isinstance(value, int | float):
        raise InputError(f"{where}: field {name!r} is no number: {str(value)[:40]!r}; higher is to be better")
    return float(value)
