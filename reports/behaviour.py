"""How candidates behave beside the teacher: the table of agreement."""

from typing import NamedTuple

from featkd.result import Agreement, Interval, Result
from reports import numbers, view
from reports.numbers import Figure
from reports.text import Text


class Row(NamedTuple):
    name: str
    task: str
    figures: list[Figure]


class Table(NamedTuple):
    columns: list[str]
    rows: list[Row]


COLUMNS = ("agreement", "on_right", "on_wrong", "lost", "won", "kl", "ece", "worst", "examples")


def agreement(result: Result, t: Text) -> Table:
    """One row per student and multiple-choice task."""
    rows = [
        Row(name, t.task(task), _figures(found, t))
        for name, candidate in view.students(result).items()
        for task, found in candidate.fidelity.tasks.items()
    ]
    return Table([t(f"fidelity.{column}") for column in COLUMNS], rows)


def _figures(found: Agreement, t: Text) -> list[Figure]:
    shares = (found.agreement, found.on_right, found.on_wrong, found.correct_to_wrong, found.wrong_to_correct)
    return [
        *(_percent(share, t) for share in shares),
        numbers.figure(found.kl, t) if found.kl else Figure(numbers.DASH),
        _percent(found.calibration and found.calibration.ece, t),
        _worst(found, t),
        Figure(numbers.exact(found.examples)),
    ]


def _percent(share: Interval | None, t: Text) -> Figure:
    return numbers.percent(share, t) if share else Figure(numbers.DASH)


def _worst(found: Agreement, t: Text) -> Figure:
    if not found.worst_class:
        return Figure(numbers.DASH)
    shown = numbers.figure(found.worst_class.difference, t, 100)
    value = t("format.points", value=shown.value)
    return Figure(f"{found.worst_class.name}: {value}", shown.range)
