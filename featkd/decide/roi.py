"""What a candidate costs and saves. Pure arithmetic on measured throughput and the spec's assumptions.

    seconds per request = input tokens / prefill rate + output tokens / decode rate
    machines            = ceil(requests per second * peak factor * seconds per request / utilisation)
    monthly cost        = machines * price per hour * 730.5
    saving              = teacher's monthly cost - candidate's monthly cost - monthly upkeep
    USD per million     = price per hour / (3600 * rate * utilisation / peak factor) * 1e6

The rates are those of all requests that are served side by side, at the concurrency that `operating_point` chooses.
`utilisation` is the share of a machine that may be used at peak. A month's tokens at the unit prices cost what its
machines cost before these are rounded up. The saving is after upkeep; payback, cash flow and NPV follow from it.

Intervals come from those of the measured rates. A saving's interval takes both sides at the same pace of the machine,
the slowest and the fastest of the teacher's interval, with the candidate's speed-up at its best and its worst: the two
were measured in turns, and a machine that is slow is slow for both. Where no speed-up was measured it pairs one side's
best with the other's worst. Both are wider than 95 %.
"""

import math
from typing import Any, Literal

import numpy as np

from featkd import spec
from featkd.measure.timings import over_rounds
from featkd.result import AssumptionRow, Interval, Latency, OperatingPoint, Roi

HOURS_PER_MONTH = 365.25 * 24 / 12
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
Rates = tuple[float, float]
Months = float | Literal["never"]

UNITS = {
    "usd_per_hour": "USD/hour",
    "requests_per_month": "1/month",
    "input_tokens_per_request": "tokens",
    "output_tokens_per_request": "tokens",
    "utilisation": "share",
    "peak_factor": "ratio",
    "engineering_usd": "USD",
    "training_usd_per_hour": "USD/hour",
    "monthly_upkeep_usd": "USD/month",
    "discount_rate": "1/year",
    "max_ttft_ms": "ms",
    "max_inter_token_ms": "ms",
}


def assumptions(cost: spec.Cost) -> list[AssumptionRow]:
    """Every figure of the business case with its unit and source."""
    rows = [
        AssumptionRow(name=name, value=getattr(cost, name).value, unit=unit, source=getattr(cost, name).source)
        for name, unit in UNITS.items()
        if getattr(cost, name) is not None
    ]
    return [*rows, AssumptionRow(name="horizon_months", value=cost.horizon_months, unit="months", source="the spec")]


def price(candidate: Latency, teacher: Latency, cost: spec.Cost, training_seconds: float, is_teacher: bool) -> Roi:
    """The ROI section of a candidate. `training_seconds`: what it took to make it, its share of the teacher included.

    Empty, with a reason, when the rates of either were not measured.
    """
    if not candidate.points:
        return Roi(why=candidate.why or "latency-off")
    if not teacher.points:
        return Roi(why="teacher-latency-failed" if teacher.why == "latency-failed" else teacher.why or "latency-off")
    at, meets_target = operating_point(candidate, cost, is_teacher)
    monthly = _interval(lambda rates: monthly_cost_usd(rates, cost), at)
    unit_costs: dict[str, Any] = {
        "concurrency": at.concurrency,
        "meets_target": meets_target,
        "usd_per_million_input_tokens": _interval(lambda rates: _per_million(rates[0], cost), at),
        "usd_per_million_output_tokens": _interval(lambda rates: _per_million(rates[1], cost), at),
        "machines": machines(_rates(at, "value"), cost),
        "monthly_cost_usd": monthly,
    }
    if is_teacher:
        return Roi(why="baseline", **unit_costs)
    base, _ = operating_point(teacher, cost, is_teacher=True)
    before = _interval(lambda rates: monthly_cost_usd(rates, cost), base)
    upkeep = cost.monthly_upkeep_usd.value
    value = before.value - monthly.value
    low, high = _saving_bounds(at, base, cost, value) or (
        _minus(before.low, monthly.high),
        _minus(before.high, monthly.low),
    )
    saving = Interval(value=value - upkeep, low=_minus(low, upkeep), high=_minus(high, upkeep))
    one_off = cost.engineering_usd.value + training_seconds / 3600 * cost.training_usd_per_hour.value
    return Roi(
        **unit_costs,
        monthly_saving_usd=saving,
        one_off_usd=one_off,
        payback_months=payback_months(saving.value, one_off),
        payback_months_low=None if saving.high is None else payback_months(saving.high, one_off),
        payback_months_high=None if saving.low is None else payback_months(saving.low, one_off),
        npv_usd=npv_usd(saving.value, one_off, cost),
        cash_flow_usd=cash_flow_usd(saving.value, one_off, cost),
    )


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
    return min(within or latency.points, key=lambda at: seconds_per_request(_rates(at, "value"), cost)), bool(within)


def _longest(point: OperatingPoint, name: str) -> float:
    median = getattr(point, name).p50
    return median.value if median.high is None else median.high


def seconds_per_request(rates: Rates, cost: spec.Cost) -> float:
    """rates: (prefill, decode) in tokens per second."""
    return cost.input_tokens_per_request.value / rates[0] + cost.output_tokens_per_request.value / rates[1]


def machines(rates: Rates, cost: spec.Cost) -> int:
    """Whole machines that carry the peak."""
    mean_load = cost.requests_per_month.value / SECONDS_PER_MONTH * seconds_per_request(rates, cost)
    return math.ceil(mean_load * cost.peak_factor.value / cost.utilisation.value)


def monthly_cost_usd(rates: Rates, cost: spec.Cost) -> float:
    return machines(rates, cost) * cost.usd_per_hour.value * HOURS_PER_MONTH


def payback_months(saving_usd: float, one_off_usd: float) -> Months:
    """Months until the monthly saving has returned the one-off cost, undiscounted; 'never' when there is no saving."""
    return one_off_usd / saving_usd if saving_usd > 0 else "never"


def cash_flow_usd(saving_usd: float, one_off_usd: float, cost: spec.Cost) -> list[float]:
    """Cumulative, undiscounted, month 0 to the horizon."""
    return [month * saving_usd - one_off_usd for month in range(cost.horizon_months + 1)]


def npv_usd(saving_usd: float, one_off_usd: float, cost: spec.Cost) -> float:
    """Net present value over the horizon; monthly rate (1 + r)^(1/12) - 1, payments at the end of each month."""
    rate = (1 + cost.discount_rate.value) ** (1 / 12) - 1
    return sum(saving_usd / (1 + rate) ** month for month in range(1, cost.horizon_months + 1)) - one_off_usd


def _per_million(rate: float, cost: spec.Cost) -> float:
    mean_use = cost.utilisation.value / cost.peak_factor.value
    return cost.usd_per_hour.value / (3600 * rate * mean_use) * 1e6


def _rates(at: OperatingPoint, bound: str) -> Rates | None:
    prefill, decode = getattr(at.prefill_tokens_per_s, bound), getattr(at.decode_tokens_per_s, bound)
    return None if prefill is None or decode is None else (prefill, decode)


def _interval(figure: Any, at: OperatingPoint) -> Interval:
    """A cost with its interval: the quicker the machine, the lower the cost."""
    low, high = (None if (rates := _rates(at, bound)) is None else figure(rates) for bound in ("high", "low"))
    return Interval(value=figure(_rates(at, "value")), low=low, high=high)


def _saving_bounds(
    at: OperatingPoint, base: OperatingPoint, cost: spec.Cost, value: float
) -> tuple[float, float] | None:
    """USD/month before upkeep, around `value`: at each pace of the teacher's, with the worst and best speed-ups."""
    speedups = _speedups(at, base)
    if any(ratio is None or ratio.low is None or ratio.high is None for ratio in speedups):
        return None
    paces = [rates for bound in ("low", "high") if (rates := _rates(base, bound))] or [_rates(base, "value")]
    savings = [
        [
            monthly_cost_usd(rates, cost)
            - monthly_cost_usd((rates[0] * getattr(speedups[0], bound), rates[1] * getattr(speedups[1], bound)), cost)
            for rates in paces
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
