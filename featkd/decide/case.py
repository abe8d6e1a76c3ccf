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
from typing import Any, Literal, NamedTuple

import numpy as np

from featkd import spec
from featkd.result import Scenario, Sensitivity

HOURS_PER_MONTH = 365.25 * 24 / 12
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
ROUNDING = 1 - 1e-9  # of machines, before these are rounded up
MOST_STEPS = 1_000_000  # of machines, up to which a break-even is looked for
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


def monthly_cost(served: Machine | Hosted, cost: spec.Cost, whole: bool = True) -> float:
    """whole: of whole machines."""
    if isinstance(served, Machine):
        count = machines(served, cost) if whole else cost.requests_per_month.value / capacity(served, cost)
        return count * served.month(cost)
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
    wrong. training_hours: what it took to make the student, its share of the teacher included. kept_running: upkeep and
    re-distillations are new; not beside a student, which has them already."""

    student: Machine
    teacher: Machine | Hosted
    cost: spec.Cost
    training_hours: float
    lost: float = 0.0
    kept_running: bool = True

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
        running = self.cost.monthly_upkeep.value + self.cost.redistillations_per_year.value / 12 * again
        return running if self.kept_running else 0.0

    @property
    def errors(self) -> float:
        return self.lost * self.cost.error_cost.value * self.cost.requests_per_month.value

    @property
    def saving(self) -> float:
        return self.saved()

    def saved(self, whole: bool = True) -> float:
        """Per month. whole: of whole machines."""
        served = monthly_cost(self.teacher, self.cost, whole) - monthly_cost(self.student, self.cost, whole)
        return served - self.running - self.errors

    @property
    def npv(self) -> float:
        return npv(self.saving, self.one_off_cost, self.cost)

    def break_even(self) -> Months:
        """The fewest requests per month with an NPV of at least 0; 'never' where no volume has one. More need not pay:
        where each request loses, what whole machines save at a small volume is lost at a large one.

        From one jump of the number of machines to the next, of either side, the saving is a line.
        """
        needed = self.running + self.one_off_cost / _annuity(self.cost)
        month, step = self.student.month(self.cost), capacity(self.student, self.cost) / ROUNDING
        if isinstance(self.teacher, Hosted):
            its_month, its_step, price = 0.0, math.inf, _price_per_request(self.teacher, self.cost)
        else:
            its_month, its_step = self.teacher.month(self.cost), capacity(self.teacher, self.cost) / ROUNDING
            price = 0.0
        slope = price - self.lost * self.cost.error_cost.value
        gain = slope + its_month / its_step - month / step  # of a request, on average
        most = MOST_STEPS * min(step, its_step)
        if gain:
            most = min(most, (needed + its_month + month) / gain if gain > 0 else its_month / -gain)
        if not math.isfinite(most):
            return "never"
        jumps = _jumps(most, step, its_step)
        starts, ends = jumps[:-1], jumps[1:] - 1
        machines_saved = np.ceil(starts / its_step) * its_month - np.ceil(starts / step) * month
        volume = np.maximum(starts, np.ceil((needed - machines_saved) / slope)) if slope > 0 else starts
        pays = (volume <= ends) & (machines_saved + slope * volume >= needed * ROUNDING)
        return float(volume[pays.argmax()]) if pays.any() else "never"

    def sensitivities(self, measured: dict[str, list[Any]], served_is_told: bool) -> list[Sensitivity]:
        """NPV with one assumption off at a time by `cost.spread`, or one measurement at the ends of its interval; the
        most telling first.

        measured: 'throughput' of the student and share 'lost', at their ends. served_is_told: how the teacher is served
        is an assumption, too.
        """
        ends = self._assumed(served_is_told) | {name: self._measured(name, at) for name, at in measured.items()}
        found = [
            Sensitivity(name=name, low=low, high=high, npv_low=at_low.npv, npv_high=at_high.npv)
            for name, ((low, at_low), (high, at_high)) in ends.items()
            if low != high
        ]
        return sorted(found, key=lambda one: -abs(one.npv_high - one.npv_low))

    def scenarios(self, served_is_told: bool) -> list[Scenario]:
        """As assumed; and all that the spec assumes off at once, each to its worse side, or to its better one. Which is
        which is asked of machines that are not rounded up."""
        told = []
        for name in ("pessimistic", "expected", "optimistic"):
            case = self
            for assumed in self._assumed(served_is_told) if name != "expected" else ():
                ends = [end for _, end in case._assumed(served_is_told)[assumed]]
                case = (min if name == "pessimistic" else max)(ends, key=Case._unrounded)
            saving, one_off = case.saving, case.one_off_cost
            told.append(
                Scenario(name=name, monthly_saving=saving, npv=case.npv, payback_months=payback_months(saving, one_off))
            )
        return told

    def _unrounded(self) -> float:
        return npv(self.saved(whole=False), self.one_off_cost, self.cost)

    def _assumed(self, served_is_told: bool) -> "dict[str, list[tuple[float, Case]]]":
        """Assumption to (value, case) at its low and its high end. What is 0 cannot be off."""
        factors, found = (1 - self.cost.spread, 1 + self.cost.spread), {}
        for name in ASSUMED:
            value = getattr(self.cost, name).value
            if value:
                least, most = LIMITS.get(name, (0.0, math.inf))
                ends = [min(most, max(least, value * factor)) for factor in factors]
                found[name] = [(end, self._replace(cost=_with(self.cost, **{name: end}))) for end in ends]
        if served_is_told:
            teachers = [_scaled(self.teacher, factor) for factor in factors]
            found["serving"] = [(teacher[1], self._replace(teacher=teacher)) for teacher in teachers]
        return found

    def _measured(self, name: str, at: list[Any]) -> "list[tuple[float, Case]]":
        if name == "throughput":
            return [(machine.decode, self._replace(student=machine)) for machine in at]
        return [(share, self._replace(lost=share)) for share in at]


ASSUMED = (
    "requests_per_month", "input_tokens_per_request", "output_tokens_per_request", "price_per_hour", "utilisation",
    "peak_factor", "engineering_cost", "evaluation_cost", "monthly_upkeep", "redistillations_per_year",
    "training_price_per_hour", "error_cost", "discount_rate",
)  # fmt: skip
LIMITS = {"utilisation": (0.0, 1.0), "peak_factor": (1.0, math.inf)}


def _scaled(served: Machine | Hosted, factor: float) -> Machine | Hosted:
    """Its prices, or its rates."""
    return served._replace(**{name: getattr(served, name) * factor for name in served._fields[:2]})


def _with(cost: spec.Cost, **values: float) -> spec.Cost:
    return cost.model_copy(
        update={name: getattr(cost, name).model_copy(update={"value": value}) for name, value in values.items()}
    )


def _jumps(most: float, *steps: float) -> np.ndarray:
    """The volumes right above which one side needs a machine more, to the first beyond `most`."""
    each = [np.floor(np.arange(min(MOST_STEPS, math.ceil(most / step)) + 2) * step) + 1
            for step in steps if math.isfinite(step)]  # fmt: skip
    return np.unique(np.concatenate([one[one <= min(other[-1] for other in each)] for one in each]))
