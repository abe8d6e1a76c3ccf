"""What a candidate costs and saves: featkd.decide.case on measured throughput and the spec's assumptions.

    cost per million = price per hour / (3600 * rate * utilisation / peak factor) * 1e6

The rates are those of all requests that are served side by side, at the concurrency that `operating_point` chooses. A
month's tokens at the unit prices cost what its machines cost before these are rounded up. What a student is held
against is the teacher as it is served today, `teacher.serving`; else our own export of it on the measured machine.

Intervals come from those of the measured rates, and of the share of answers that are lost. A saving's interval takes
both sides at the same pace of the machine, the slowest and the fastest of the teacher's interval, with the candidate's
speed-up at its best and its worst: the two were measured in turns, and a machine that is slow is slow for both. Where
no speed-up was measured, or the teacher is served elsewhere, it pairs one side's best with the other's worst. All are
wider than 95 %.
"""

from typing import Any

import numpy as np

from featkd import pricing, spec
from featkd.decide.case import Case, Hosted, Machine, cash_flow, machines, monthly_cost, npv, payback_months
from featkd.decide.case import seconds_per_request as seconds
from featkd.measure.timings import over_rounds
from featkd.result import AssumptionRow, Interval, Latency, OperatingPoint, Roi

UNITS = {
    "price_per_hour": "currency/hour",
    "requests_per_month": "1/month",
    "input_tokens_per_request": "tokens",
    "output_tokens_per_request": "tokens",
    "utilisation": "share",
    "peak_factor": "ratio",
    "engineering_cost": "currency",
    "evaluation_cost": "currency",
    "training_price_per_hour": "currency/hour",
    "monthly_upkeep": "currency/month",
    "redistillations_per_year": "1/year",
    "error_cost": "currency",
    "discount_rate": "1/year",
    "max_ttft_ms": "ms",
    "max_inter_token_ms": "ms",
}
OF_SERVING = {
    "price_per_million_input_tokens": "currency/million",
    "price_per_million_output_tokens": "currency/million",
    "prefill_tokens_per_s": "tokens/s",
    "decode_tokens_per_s": "tokens/s",
    "price_per_hour": "currency/hour",
}
Bounds = tuple[float | None, float | None]


def assumptions(cost: spec.Cost, serving: pricing.Serving | None = None) -> list[AssumptionRow]:
    """Every figure of the business case with its unit and source."""
    rows = [_row(name, getattr(cost, name), unit) for name, unit in UNITS.items()]
    rows += [_row(f"serving.{name}", getattr(serving, name, None), unit) for name, unit in OF_SERVING.items()]
    told = {"horizon_months": (cost.horizon_months, "months"), "spread": (cost.spread, "share")}
    own = [AssumptionRow(name=name, value=value, unit=unit, source="the spec") for name, (value, unit) in told.items()]
    return [*filter(None, rows), *own]


def _row(name: str, assumed: pricing.Assumption | None, unit: str) -> AssumptionRow | None:
    return assumed and AssumptionRow(name=name, value=assumed.value, unit=unit, source=assumed.source)


def price(
    candidate: Latency,
    teacher: Latency,
    cost: spec.Cost,
    training_seconds: float,
    is_teacher: bool,
    serving: pricing.Serving | None = None,
    lost: Interval | None = None,
    beside_student: bool = False,
) -> Roi:
    """The ROI section of a candidate. training_seconds: what it took to make it, its share of the teacher included.
    lost: share of answers that are wrong where the teacher's are right, less those that are right where its are wrong.
    beside_student: `teacher` is a student that serves, which has the same upkeep and re-distillations.

    Empty, with a reason, when the rates of either were not measured, or what is lost is not known and costs.
    """
    if is_teacher and serving:
        return _as_served(serving, cost)
    if not candidate.points:
        return Roi(why=candidate.why or "latency-off")
    at, meets_target = operating_point(candidate, cost, is_teacher)
    unit_costs: dict[str, Any] = {
        "concurrency": at.concurrency,
        "meets_target": meets_target,
        "cost_per_million_input_tokens": _interval(lambda rates: _per_million(rates[0], cost), at),
        "cost_per_million_output_tokens": _interval(lambda rates: _per_million(rates[1], cost), at),
        "machines": machines(_machine(at), cost),
        "monthly_cost": _interval(lambda rates: monthly_cost(rates, cost), at),
    }
    if is_teacher:
        return Roi(why="baseline", basis="export", **unit_costs)
    if not teacher.points and not serving:
        return Roi(why="teacher-latency-failed" if teacher.why == "latency-failed" else teacher.why or "latency-off")
    if cost.error_cost.value and lost is None:
        return Roi(why="errors-unknown", **unit_costs)
    base = None if serving else operating_point(teacher, cost, is_teacher=True)[0]
    served = _served(serving) if serving else _machine(base)
    wrong = lost if lost and cost.error_cost.value else Interval(value=0.0, low=0.0, high=0.0)
    case = Case(_machine(at), served, cost, training_seconds / 3600, wrong.value, kept_running=not beside_student)
    return Roi(**unit_costs, **_returns(case, _saving(case, at, base, wrong), at, bool(serving), wrong))


def _returns(case: Case, saving: Interval, at: OperatingPoint, told: bool, lost: Interval) -> dict[str, Any]:
    """told: how the teacher is served is told, not measured."""
    one_off, cost = case.one_off_cost, case.cost
    measured = {"throughput": [_machine(at, bound) for bound in ("low", "high")], "lost": [lost.low, lost.high]}
    sensitivities = case.sensitivities({n: ends for n, ends in measured.items() if None not in ends}, told)
    return {
        "monthly_saving": saving,
        "one_off_cost": one_off,
        "payback_months": payback_months(saving.value, one_off),
        "payback_months_low": None if saving.high is None else payback_months(saving.high, one_off),
        "payback_months_high": None if saving.low is None else payback_months(saving.low, one_off),
        "npv": _of(saving, lambda month: npv(month, one_off, cost)),
        "return_on_investment": _of(saving, lambda month: month * cost.horizon_months / one_off - 1)
        if one_off
        else None,
        "cash_flow": cash_flow(saving.value, one_off, cost),
        "break_even_requests": case.break_even(),
        "sensitivities": sensitivities,
        "scenarios": case.scenarios(told),
    }


def _as_served(serving: pricing.Serving, cost: spec.Cost) -> Roi:
    """The teacher, as the spec tells how it is served."""
    served = _served(serving)
    if isinstance(served, Hosted):
        unit, basis, count = served, "hosted-price", None
    else:
        own = cost.model_copy(update={"price_per_hour": serving.price_per_hour or cost.price_per_hour})
        unit = [_per_million(rate, own) for rate in served[:2]]
        basis, count = "serving-figures", machines(served, cost)
    exact = [Interval(value=one, low=one, high=one) for one in (*unit, monthly_cost(served, cost))]
    return Roi(
        why="baseline", basis=basis, machines=count, cost_per_million_input_tokens=exact[0],
        cost_per_million_output_tokens=exact[1], monthly_cost=exact[2],
    )  # fmt: skip


def _served(serving: pricing.Serving) -> Machine | Hosted:
    if serving.hosted:
        return Hosted(serving.price_per_million_input_tokens.value, serving.price_per_million_output_tokens.value)
    hourly = serving.price_per_hour and serving.price_per_hour.value
    return Machine(serving.prefill_tokens_per_s.value, serving.decode_tokens_per_s.value, hourly)


def operating_point(latency: Latency, cost: spec.Cost, is_teacher: bool) -> tuple[OperatingPoint, bool | None]:
    """At which measured concurrency a model is priced, and whether it keeps the latency targets there.

    The one that serves most requests per second of those whose medians are within the targets, interval and all.
    Without targets (None) one request at a time. Where none is within them (False) a student is priced at one request
    at a time, the teacher, which serves today, at its cheapest: so that missing them saves nothing.
    """
    targets = {"ttft_ms": cost.max_ttft_ms, "inter_token_ms": cost.max_inter_token_ms}
    set_ = {name: target.value for name, target in targets.items() if target is not None}
    if not set_:
        return latency.points[0], None
    within = [point for point in latency.points if all(_longest(point, name) <= most for name, most in set_.items())]
    if not (within or is_teacher):
        return latency.points[0], False
    return min(within or latency.points, key=lambda at: seconds(_machine(at), cost)), bool(within)


def _longest(point: OperatingPoint, name: str) -> float:
    median = getattr(point, name).p50
    return median.value if median.high is None else median.high


def _per_million(rate: float, cost: spec.Cost) -> float:
    mean_use = cost.utilisation.value / cost.peak_factor.value
    return cost.price_per_hour.value / (3600 * rate * mean_use) * 1e6


def _machine(at: OperatingPoint, bound: str = "value") -> Machine | None:
    prefill, decode = getattr(at.prefill_tokens_per_s, bound), getattr(at.decode_tokens_per_s, bound)
    return None if prefill is None or decode is None else Machine(prefill, decode)


def _interval(figure: Any, at: OperatingPoint) -> Interval:
    """A cost with its interval: the quicker the machine, the lower the cost."""
    low, high = (None if (machine := _machine(at, bound)) is None else figure(machine) for bound in ("high", "low"))
    return Interval(value=figure(_machine(at)), low=low, high=high)


def _of(interval: Interval, figure: Any) -> Interval:
    low, high = (None if bound is None else figure(bound) for bound in (interval.low, interval.high))
    return Interval(value=figure(interval.value), low=low, high=high)


def _saving(case: Case, at: OperatingPoint, base: OperatingPoint | None, lost: Interval) -> Interval:
    """base: where the teacher was measured beside it."""
    served = case.saving + case.running + case.errors
    bounds = _in_turns(case, at, base, served) if base else None
    if bounds is None:
        mine = _interval(lambda rates: monthly_cost(rates, case.cost), at)
        its = _interval(lambda rates: monthly_cost(rates, case.cost), base) if base else None
        theirs = (its.low, its.high) if its else [monthly_cost(case.teacher, case.cost)] * 2
        bounds = (_minus(theirs[0], mine.high), _minus(theirs[1], mine.low))
    errors = [None if share is None else case._replace(lost=share).errors for share in (lost.high, lost.low)]
    low, high = (_minus(_minus(bound, wrong), case.running) for bound, wrong in zip(bounds, errors, strict=True))
    return Interval(value=case.saving, low=low, high=high)


def _in_turns(case: Case, at: OperatingPoint, base: OperatingPoint, value: float) -> Bounds | None:
    """Per month before running costs, around `value`: at each pace of the teacher's, with worst and best speed-ups."""
    speedups = _speedups(at, base)
    if any(ratio is None or ratio.low is None or ratio.high is None for ratio in speedups):
        return None
    paces = [pace for bound in ("low", "high") if (pace := _machine(base, bound))] or [_machine(base)]
    savings = [
        [
            monthly_cost(pace, case.cost)
            - monthly_cost(
                Machine(*(rate * getattr(up, bound) for rate, up in zip(pace[:2], speedups, strict=True))), case.cost
            )
            for pace in paces
        ]
        for bound in ("low", "high")
    ]
    return min(value, *savings[0]), max(value, *savings[1])


def _speedups(at: OperatingPoint, base: OperatingPoint) -> list[Interval | None]:
    """Of prefill and decode rates: turn by turn where both serve as many side by side, else round by round."""
    if at.concurrency == base.concurrency:
        return [at.ttft_speedup, at.decode_speedup]  # prompts: the same ratio as of their rates
    names = ("rounds_prefill_tokens_per_s", "rounds_decode_tokens_per_s")
    return [over_rounds(np.divide(getattr(at, name), getattr(base, name))) for name in names]


def _minus(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after
