"""How candidates behave beside the teacher: agreement, guardrails, and the steps of putting one into service."""

from typing import NamedTuple

from featkd.result import Agreement, Check, Interval, Result, Tokens
from reports import numbers, view
from reports.numbers import Figure
from reports.text import Text


class Row(NamedTuple):
    name: str
    task: str
    examples: str
    figures: list[Figure]


class Table(NamedTuple):
    columns: list[str]
    rows: list[Row]


LEANING = ("stereotype", "_bias")
COLUMNS = ("agreement", "on_right", "on_wrong", "lost", "won", "kl", "ece", "worst")


def agreement(result: Result, t: Text) -> Table:
    """One row per student and multiple-choice task, and one for the next tokens of held-out text."""
    rows = []
    for name, candidate in view.students(result).items():
        if found := candidate.fidelity.held_out:
            rows.append(
                Row(
                    name,
                    t.task("held_out"),
                    t("fidelity.tokens", count=numbers.exact(found.tokens)),
                    _of_tokens(found, t),
                )
            )
        rows += [
            Row(name, t.task(task), t("fidelity.examples", count=numbers.exact(found.examples)), _figures(found, t))
            for task, found in candidate.fidelity.tasks.items()
        ]
    return Table([t(f"fidelity.{column}") for column in COLUMNS], rows)


class Plan(NamedTuple):
    lead: str
    steps: list[str]


def rollout(result: Result, t: Text) -> Plan | None:
    """The steps of putting the recommended student into service; None where there is none, or no plan."""
    plan = result.recommendation.rollout
    if plan is None:
        return None
    shown = {
        "task": t.task(plan.task),
        "margin": numbers.significant(100 * plan.margin, 2),
        "expected": numbers.significant(100 * plan.expected, 2),
        "shadow": numbers.exact(float(f"{plan.shadow_requests:.2g}")),
        "canary": numbers.exact(float(f"{plan.canary_requests:.2g}")),
    }
    steps = [t(f"rollout.{step}", **shown) for step in ("shadow", "canary", "full", "fail_safe")]
    return Plan(t("rollout.lead", **shown), steps)


class CheckRow(NamedTuple):
    """`figures`: the teacher's, then each student's; of students also how much worse, and what that says."""

    name: str
    ideal: str
    teacher: Figure
    students: list[tuple[Figure, Figure, str]]


class Checks(NamedTuple):
    names: list[str]
    rows: list[CheckRow]


def guardrails(result: Result, t: Text) -> Checks:
    """One row per figure of the suites; students as columns."""
    teacher = view.teacher_of(result)
    students = {name: c for name, c in view.students(result).items() if c.guardrails.checks}
    found = teacher.guardrails.checks if teacher else {}
    rows = [
        CheckRow(
            view.check_name(name, t),
            _ideal(name, check, t),
            _check_figure(name, check.estimate, t),
            [_beside(name, student.guardrails.checks.get(name), t) for student in students.values()],
        )
        for name, check in found.items()
    ]
    return Checks(list(students), rows)


def reading(name: str, worse: Interval | None) -> str:
    """What the whole interval of the difference to the teacher says: worse, better, open; of a bias more, less."""
    if worse is None or worse.low is None or worse.high is None or worse.low <= 0 <= worse.high:
        return "open"
    leaning = name.endswith(LEANING)
    if worse.low > 0:
        return "more" if leaning else "worse"
    return "less" if leaning else "better"


def _beside(name: str, check: Check | None, t: Text) -> tuple[Figure, Figure, str]:
    if check is None:
        return Figure(numbers.DASH), Figure(numbers.DASH), "open"
    worse = _check_figure(name, check.worse, t, points=True) if check.worse else Figure(numbers.DASH)
    by = worse._replace(value=worse.value.lstrip("\N{MINUS SIGN}"))
    return _check_figure(name, check.estimate, t), by, reading(name, check.worse)


def _check_figure(name: str, interval: Interval, t: Text, points: bool = False) -> Figure:
    """Shares in percent, their differences in points; a bias, from -1 to 1, as it is."""
    if name.endswith("_bias") or "." not in name:
        return numbers.figure(interval, t)
    if not points:
        return numbers.percent(interval, t)
    shown = numbers.figure(interval, t, 100)
    return shown._replace(value=t("format.points", value=shown.value))


def _ideal(name: str, check: Check, t: Text) -> str:
    if check.ideal is None:
        return t("rows.higher_better" if check.higher_is_better else "rows.lower_better")
    plain = name.endswith("_bias")
    shown = numbers.exact(check.ideal if plain else 100 * check.ideal)
    return t("guardrails.ideal", value=shown if plain else t("format.percent", value=shown))


def _figures(found: Agreement, t: Text) -> list[Figure]:
    shares = (found.agreement, found.on_right, found.on_wrong, found.correct_to_wrong, found.wrong_to_correct)
    return [
        *(_percent(share, t) for share in shares),
        numbers.figure(found.kl, t) if found.kl else Figure(numbers.DASH),
        _percent(found.calibration and found.calibration.ece, t),
        _worst(found, t),
    ]


def _of_tokens(found: Tokens, t: Text) -> list[Figure]:
    known = {"agreement": numbers.percent(found.agreement, t), "kl": numbers.figure(found.kl, t)}
    return [known.get(column, Figure(numbers.DASH)) for column in COLUMNS]


def _percent(share: Interval | None, t: Text) -> Figure:
    return numbers.percent(share, t) if share else Figure(numbers.DASH)


def _worst(found: Agreement, t: Text) -> Figure:
    if not found.worst_class:
        return Figure(numbers.DASH)
    shown = numbers.figure(found.worst_class.difference, t, 100)
    value = t("format.points", value=shown.value)
    return Figure(f"{found.worst_class.name}: {value}", shown.range)
