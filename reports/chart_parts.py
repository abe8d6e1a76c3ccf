"""What charts share: the chart with its data table, and small readings of the result."""

import math
from typing import Any, NamedTuple

from markupsafe import Markup

from featkd.result import Candidate, Interval, Result
from reports import numbers
from reports.text import Text
from reports.view import shared_reason, students


class Table(NamedTuple):
    """The data behind a chart. The first columns are words, the rest numbers."""

    columns: list[str]
    rows: list[list[str]]
    words: int = 1


class Chart(NamedTuple):
    key: str
    panels: list[tuple[str, Markup]]
    reason: str | None
    table: Table | None


def finish(
    key: str, panels: list, rows: list, columns: list[str], result: Result, t: Text, section: str, words: int = 1
) -> Chart:
    if not panels:
        return Chart(key, [], shared_reason(result, section), None)
    return Chart(key, panels, None, Table([t(f"charts.columns.{column}") for column in columns], rows, words))


def by_size(result: Result) -> dict[str | None, dict[str, Candidate]]:
    """Students by size; with a single size the panel needs no title, so its key is None."""
    sizes = list(dict.fromkeys(c.size for c in students(result).values()))
    if len(sizes) < 2:
        return {None: students(result)}
    return {size: {name: c for name, c in students(result).items() if c.size == size} for size in sizes}


def once_per_training(members: dict[str, Candidate]) -> dict[str, Candidate]:
    """Precisions of one student share their training."""
    first: dict[tuple, str] = {}
    for name, candidate in members.items():
        first.setdefault((candidate.arm, candidate.size, candidate.seed), name)
    return {name: members[name] for name in first.values()}


def arm_label(candidate: Candidate, points: dict[str, Any], result: Result) -> str:
    several = len({result.candidates[name].precision for name in points}) > 1
    return f"{candidate.arm} {candidate.precision}" if several else candidate.arm


def bounds(result: Result, *metrics: str) -> list[float | None]:
    all_gates = [gate for c in result.candidates.values() for gate in c.verdict.gates]
    gates = {gate.metric: gate.at_least for gate in all_gates if gate.against == "teacher"}
    return [gates.get(metric) for metric in metrics]


def finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def shown(interval: Interval | None, t: Text, scale: float = 1) -> str:
    return str(numbers.figure(interval, t, scale)) if interval else numbers.DASH


def raw(values: list[float]) -> str:
    return " ".join(numbers.significant(value) for value in values)
