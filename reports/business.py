"""The business case in words and rows: what a student is worth, from which volume on, and what that hangs on."""

from typing import NamedTuple

from featkd.result import Candidate, Result
from reports import numbers, view
from reports.text import Text


class Case(NamedTuple):
    """Of one student. rows: scenario, saving per month, NPV and payback, printed."""

    candidate: str
    sentences: list[str]
    rows: list[tuple[str, str, str, str]]


def whose(result: Result) -> str | None:
    """The recommended student, else the one of the highest NPV; None where none is priced."""
    worth = {name: c.roi.npv.value for name, c in view.students(result).items() if c.roi.npv}
    chosen = result.recommendation.candidate
    return chosen if chosen in worth else max(worth, key=worth.get, default=None)


def case(result: Result, t: Text) -> Case | None:
    name = whose(result)
    if name is None:
        return None
    roi = result.candidates[name].roi
    rows = [
        (
            t(f"business.{one.name}"),
            _money(one.monthly_saving),
            _money(one.npv),
            t("money.never") if one.payback_months == "never" else numbers.significant(one.payback_months, 2),
        )
        for one in roi.scenarios
    ]
    return Case(name, list(_sentences(result, result.candidates[name], t)), rows)


def _sentences(result: Result, candidate: Candidate, t: Text) -> list[str]:
    roi, months = candidate.roi, result.spec.get("cost", {}).get("horizon_months")
    worth = numbers.figure(roi.npv, t)
    told = [t("business.npv", months=months, npv=str(worth._replace(value=t("format.money", value=worth.value))))]
    if roi.return_on_investment:
        told.append(t("business.return", months=months, share=str(numbers.percent(roi.return_on_investment, t))))
    if roi.break_even_requests == "never":
        told.append(t("business.never"))
    elif roi.break_even_requests is not None:
        told.append(t("business.break_even", requests=numbers.significant(roi.break_even_requests, 2)))
        told += [t("business.not_here")] if roi.npv.value < 0 else []
    if roi.sensitivities:
        most = roi.sensitivities[0]
        told.append(t("business.most", name=t.code("assumption_names", most.name)))
    return told


def _money(value: float) -> str:
    return numbers.significant(value, 2)
