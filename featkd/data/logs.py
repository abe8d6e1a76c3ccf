"""What a model answered in service: logs of any size are read once, in a memory that does not grow with them.

    {"time": "2026-11-26T08:00:00Z", "prompt": "...", "response": "...", "feedback": 1}

One line each, in UTF-8; .gz is read, too. Of the prompts some are drawn, all different ones with equal chances: those
whose keyed hashes are the smallest (a bottom-k sample, Cohen & Kaplan 2007, 10.1145/1281100.1281133); of each the
first answer. Nobody who asks the same again and again outweighs the others.
"""

import gzip
import hashlib
import heapq
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from featkd.data.load import MISSING, field_value
from featkd.errors import InputError
from featkd.judging import Audit

LONGEST_LINE = 8 * 2**20
CLOCKS = timedelta(days=1)  # that a clock may be ahead, its time zone forgotten
MILLISECONDS = 1e11  # seconds since 1970 above which a number is meant in milliseconds
WANTED = "write one JSON object per line, in UTF-8"
Row = dict[str, Any]


COUNTS = ("records", "earlier", "others", "without_prompt")


class Sample(NamedTuple):
    """rows: prompt, response, feedback, time (ISO 8601), file, line. files: name, bytes, sha256 of what was read.
    counts: all records, those not after the last audit, those that audit.where leaves out, those without a prompt.
    first, last: times of the records that count."""

    rows: list[Row]
    files: list[dict[str, Any]]
    counts: dict[str, int]
    first: str | None
    last: str | None


def draw(files: list[Path], audit: Audit, after: datetime | None, key: bytes) -> Sample:
    """One answer of each of `audit.examples` prompts.

    Args:
        after: records of that time and before it are counted as `earlier` and left out, whatever else they hold.
        key: at most 64 bytes; with another one, other prompts are drawn.

    Raises InputError that names file and line: not UTF-8, not JSON, a field that is missing or is no text or time, a
    time to come. A last line that has no end yet, and is no JSON, is being written: it is left out.
    """
    kept: dict[int, Row] = {}
    heap: list[int] = []
    counts = dict.fromkeys(COUNTS, 0)
    span: list[datetime] = []
    read = []
    latest = datetime.now(UTC) + CLOCKS
    for file in files:
        told: dict[str, Any] = {}
        for number, line in _lines(file, told):
            where = f"LOGS: {file}, line {number}"
            row = _object(line, where)
            if row is None:
                continue
            counts["records"] += 1
            time = _time(row, audit.time_field, latest, where)
            if after and time <= after:
                counts["earlier"] += 1
                continue
            if any(field_value(row, name) != value for name, value in audit.where.items()):
                counts["others"] += 1
                continue
            prompt = _text(row, audit.prompt_field, "prompt_field", where)
            response = _text(row, audit.response_field, "response_field", where)
            span = [min([time, *span]), max([time, *span])]
            if not prompt.strip():
                counts["without_prompt"] += 1
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
    return Sample([kept[place] for place in sorted(kept)], read, counts, first, last)


def _lines(file: Path, told: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank with their numbers. At the end `told` has bytes and sha256 of the file."""
    digest, packed = hashlib.sha256(), file.suffix == ".gz"
    try:
        with file.open("rb") as raw:
            opened = gzip.open(raw) if packed else raw
            number = 0
            while line := opened.readline(LONGEST_LINE):
                number += 1
                digest.update(line)
                if len(line) == LONGEST_LINE:
                    raise InputError(f"LOGS: {file}, line {number}: longer than 8 MiB; {WANTED}")
                if line.strip():
                    yield number, line
            size = opened.tell()
        if packed:
            with file.open("rb") as raw:
                digest, size = hashlib.file_digest(raw, "sha256"), file.stat().st_size
        told |= {"bytes": size, "sha256": digest.hexdigest()}
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"LOGS: {file} cannot be read: {error}") from None


def _object(line: bytes, where: str) -> Row | None:
    """None for a line that is being written."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            return None
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{where}: not UTF-8 (byte {error.start}); {WANTED}") from None
        raise InputError(f"{where}: not JSON ({str(error)[:80]}); {WANTED}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, no object; {WANTED}")
    return row


def _missing(row: Row, name: str, setting: str, where: str) -> InputError:
    return InputError(f"{where}: field {name!r} is missing, it has {', '.join(row)}; write its name in audit.{setting}")


def _text(row: Row, name: str, setting: str, where: str) -> str:
    """Nothing where it is null: no answer was given."""
    value = field_value(row, name)
    if value is MISSING:
        raise _missing(row, name, setting, where)
    if value is None:
        return ""
    if not isinstance(value, str):
        example = f"{name}.0.content" if isinstance(value, list) else f"{name}.text"
        raise InputError(
            f"{where}: field {name!r} is no text but a {type(value).__name__}; name what is in it: "
            f"audit.{setting}: {example}"
        )
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of characters that were cut


def as_time(value: str | float) -> datetime:
    """ISO 8601, without a zone UTC; or seconds or milliseconds since 1970. Raises ValueError."""
    if isinstance(value, str):
        time = datetime.fromisoformat(value)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    return datetime.fromtimestamp(value / 1000 if value > MILLISECONDS else value, UTC)


def _time(row: Row, name: str, latest: datetime, where: str) -> datetime:
    """What is no time may be what a user wrote: it is not shown."""
    value = field_value(row, name)
    if value is MISSING:
        raise _missing(row, name, "time_field", where)
    try:
        time = as_time(value)
    except (ValueError, OverflowError, OSError, TypeError):
        raise InputError(
            f"{where}: field {name!r} is no time but {_shape(value)}; write e.g. 2026-11-26T08:00:00Z"
        ) from None
    if time > latest:
        raise InputError(
            f"{where}: field {name!r} is a time to come, {time.isoformat()}; the clock that wrote it is wrong"
        )
    return time


def _feedback(row: Row, name: str | None, where: str) -> float | None:
    value = field_value(row, name) if name else None
    if value is MISSING or value is None:
        return None
    try:
        if isinstance(value, int | float):
            return float(value)
    except OverflowError:
        pass
    raise InputError(f"{where}: field {name!r} is no number but {_shape(value)}; higher is to be better")


def _shape(value: Any) -> str:
    return f"a text of {len(value)} characters" if isinstance(value, str) else f"a {type(value).__name__}"
