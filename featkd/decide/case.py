"""The business case of a student in the teacher's place: pure arithmetic on rates, prices and volumes.

    seconds per request = input tokens / prefill rate + output tokens / decode rate
    machines            = ceil(requests per second * peak factor * seconds per request / utilisation)
    monthly cost        = machines * price per hour * 730.5; of a hosted model its tokens at their prices
    errors              = share of answers that are wrong where the teacher's are right * requests * cost of an error
    saving              = teacher's monthly cost - student's - upkeep - errors - re-distillations / 12
    re-distillation     = training hours * price per hour + evaluation
    one-off cost        = engineering + evaluation + training hours * price per hour
    NPV                 = sum of saving / (1 + yearly rate)^(month / 12) over the horizon - one-off cost
    return              = (saving * months of the horizon - one-off cost) / one-off cost

`utilisation` is the share of a machine that may be used at peak. All money is in the spec's currency.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from featkd import spec
from featkd.result import Scenario, Sensitivity

HOURS_PER_MONTH = 365.25 * 24 / 12
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
ROUNDING = 1 - 1e-9  # of machines, before these are rounded up
MOST_STEPS = 1_000_000  # of machines that a break-even is looked for at
Months = float | Literal["never"]


class Machine(NamedTuple):
    """Tokens per second of one machine, of all requests that it serves side by side. price_per_hour: None for the
    spec's `cost.price_per_hour`."""

    prefill: float
    decode: float
    price_per_hour: float | None = None

    def month(self, cost: spec.Cost) -> float:
        """What it costs."""
        return (cost.price_per_hour.value if self.price_per_hour is None else self.price_per_hour) * HOURS_PER_MONTH


class Hosted(NamedTuple):
    """Prices of a million tokens."""

    input: float
    output: float


def seconds_per_request(rates: tuple[float, ...], cost: spec.Cost) -> float:
    """rates: prefill and decode, tokens per second."""
    return cost.input_tokens_per_request.value / rates[0] + cost.output_tokens_per_request.value / rates[1]


def machines(at: Machine, cost: spec.Cost) -> int:
    """Whole machines that carry the peak."""
    return math.ceil(cost.requests_per_month.value / capacity(at, cost) * ROUNDING)


def capacity(at: Machine, cost: spec.Cost) -> float:
    """Requests per month that one machine carries, at the usual ratio of peak and mean."""
    seconds = seconds_per_request(at[:2], cost)
    return math.inf if seconds == 0 else SECONDS_PER_MONTH * cost.utilisation.value / cost.peak_factor.value / seconds


def monthly_cost(served: Machine | Hosted, cost: spec.Cost) -> float:
    if isinstance(served, Machine):
        return machines(served, cost) * served.month(cost)
    return cost.requests_per_month.value * _price_per_request(served, cost)


def _price_per_request(served: Hosted, cost: spec.Cost) -> float:
    tokens = cost.input_tokens_per_request.value, cost.output_tokens_per_request.value
    return (tokens[0] * served.input + tokens[1] * served.output) / 1e6


def payback_months(saving: float, one_off_cost: float) -> Months:
    """Months until the monthly saving has returned the one-off cost, undiscounted; 'never' when there is no saving."""
    return one_off_cost / saving if saving > 0 else "never"


def cash_flow(saving: float, one_off_cost: float, cost: spec.Cost) -> list[float]:
    """Cumulative, undiscounted, month 0 to the horizon."""
    return [month * saving - one_off_cost for month in range(cost.horizon_months + 1)]


def npv(saving: float, one_off_cost: float, cost: spec.Cost) -> float:
    """Net present value over the horizon; monthly rate (1 + r)^(1/12) - 1, payments at the end of each month."""
    return saving * _annuity(cost) - one_off_cost


def _annuity(cost: spec.Cost) -> float:
    """What 1 per month over the horizon is worth today."""
    return sum((1 + cost.discount_rate.value) ** (-month / 12) for month in range(1, cost.horizon_months + 1))


class Case(NamedTuple):
    """lost: share of answers that are wrong where the teacher's are right, less those that are right where its are
    wrong. training_hours: what it took to make the student, its share of the teacher included."""

    student: Machine
    teacher: Machine | Hosted
    cost: spec.Cost
    training_hours: float
    lost: float = 0.0

    @property
    def training(self) -> float:
        return self.training_hours * self.cost.training_price_per_hour.value

    @property
    def one_off_cost(self) -> float:
        return self.cost.engineering_cost.value + self.cost.evaluation_cost.value + self.training

    @property
    def running(self) -> float:
        """Per month, whatever the volume: upkeep and re-distillations."""
        again = self.training + self.cost.evaluation_cost.value
        return self.cost.monthly_upkeep.value + self.cost.redistillations_per_year.value / 12 * again

    @property
    def errors(self) -> float:
        return self.lost * self.cost.error_cost.value * self.cost.requests_per_month.value

    @property
    def saving(self) -> float:
        served = monthly_cost(self.teacher, self.cost) - monthly_cost(self.student, self.cost)
        return served - self.running - self.errors

    @property
    def npv(self) -> float:
        return npv(self.saving, self.one_off_cost, self.cost)

    def break_even(self) -> Months:
        """The fewest requests per month with an NPV of at least 0; 'never' where no volume has one.

        The saving jumps up where the teacher needs one machine more, and falls from there to its next: looked at are
        the volumes right above the jumps. Beside a hosted teacher it rises from one jump of the student to the next.
        """
        cost, needed = self.cost, self.running + self.one_off_cost / _annuity(self.cost)
        error, month = self.lost * cost.error_cost.value, self.student.month(cost)
        step = capacity(self.student, cost) / ROUNDING
        if not math.isfinite(step):
            return "never"
        if isinstance(self.teacher, Hosted):
            gain = _price_per_request(self.teacher, cost) - error
            if gain <= 0:
                return "never"
            before = np.arange(_steps(needed, gain * step - month, 0.0), dtype=float)
            volume = np.maximum(np.ceil((needed + (before + 1) * month) / gain), np.floor(before * step) + 1)
            pays = volume <= (before + 1) * step
        else:
            its_month, its_step = self.teacher.month(cost), capacity(self.teacher, cost) / ROUNDING
            gain = its_month - (month / step + error) * its_step
            before = np.arange(_steps(needed + month, gain, its_month), dtype=float)
            volume = np.floor(before * its_step) + 1
            pays = (before + 1) * its_month - np.ceil(volume / step) * month - error * volume >= needed
        return float(volume[pays.argmax()]) if pays.any() else "never"

    def sensitivities(self, rates: tuple[Machine, Machine] | None) -> list[Sensitivity]:
        """NPV with one assumption off at a time by `cost.spread`, the most telling first. rates: the student's at the
        ends of their measured interval."""
        found = []
        for name, (low, high) in self._off().items():
            ends = [self._replace(cost=_with(self.cost, **{name: value})).npv for value in (low, high)]
            found.append(Sensitivity(name=name, low=low, high=high, npv_low=ends[0], npv_high=ends[1]))
        if rates is not None:
            ends = [self._replace(student=machine).npv for machine in rates]
            speeds = [machine.decode for machine in rates]
            told = {"low": speeds[0], "high": speeds[1], "npv_low": ends[0], "npv_high": ends[1]}
            found.append(Sensitivity(name="throughput", **told))
        return sorted(found, key=lambda one: -abs(one.npv_high - one.npv_low))

    def scenarios(self, sensitivities: list[Sensitivity]) -> list[Scenario]:
        """As assumed; and all that the spec assumes off at once, each to its worse side, or to its better one."""
        told = []
        for name in ("pessimistic", "expected", "optimistic"):
            values = {}
            for one in sensitivities:
                if one.name != "throughput" and name != "expected":
                    low_is_worse = one.npv_low <= one.npv_high
                    values[one.name] = one.low if low_is_worse == (name == "pessimistic") else one.high
            case = self._replace(cost=_with(self.cost, **values))
            saving, one_off = case.saving, case.one_off_cost
            told.append(
                Scenario(name=name, monthly_saving=saving, npv=case.npv, payback_months=payback_months(saving, one_off))
            )
        return told

    def _off(self) -> dict[str, tuple[float, float]]:
        """Assumptions to their values at both ends."""
        spread = self.cost.spread
        found = {}
        for name in ASSUMED:
            value = getattr(self.cost, name).value
            if value:
                low, high = value * (1 - spread), value * (1 + spread)
                found[name] = (max(1.0, low), high) if name == "peak_factor" else (low, high)
        if "utilisation" in found:
            found["utilisation"] = (found["utilisation"][0], min(1.0, found["utilisation"][1]))
        return found


ASSUMED = (
    "requests_per_month", "input_tokens_per_request", "output_tokens_per_request", "price_per_hour", "utilisation",
    "peak_factor", "engineering_cost", "evaluation_cost", "monthly_upkeep", "redistillations_per_year",
    "training_price_per_hour", "error_cost",
)  # fmt: skip


def _with(cost: spec.Cost, **values: float) -> spec.Cost:
    return cost.model_copy(
        update={name: getattr(cost, name).model_copy(update={"value": value}) for name, value in values.items()}
    )


def _steps(needed: float, gain: float, jump: float) -> int:
    """How many machines to look at. gain: of each, on average; jump: what the first may save at most."""
    if gain == 0:
        return MOST_STEPS if jump else 0
    enough = needed / gain if gain > 0 else jump / -gain
    return math.ceil(min(MOST_STEPS, enough)) + 2
