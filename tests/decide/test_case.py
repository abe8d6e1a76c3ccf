"""The business case against a table worked by hand, and what must hold of any."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from featkd import pricing, spec
from featkd.decide.case import Case, Hosted, Machine, cash_flow, machines, monthly_cost, npv, payback_months

PLAIN = {
    "price_per_hour": 2, "requests_per_month": 2_629_800, "input_tokens_per_request": 100,
    "output_tokens_per_request": 50, "utilisation": 0.5, "peak_factor": 2, "engineering_cost": 5000,
    "training_price_per_hour": 4, "horizon_months": 12, "discount_rate": 0,
}  # fmt: skip
TEACHER, STUDENT = Machine(1000, 100), Machine(2000, 500)  # 0.6 and 0.15 s per request, of which there is one a second
MONTH = 2 * 730.5  # of a machine


def cost(**changes):
    return spec.Cost(**PLAIN | changes)


def case(student=STUDENT, teacher=TEACHER, hours=0.5, lost=0.0, **changes):
    return Case(student, teacher, cost(**changes), hours, lost)


# changes of the case; teacher's and student's machines; saving per month; one-off cost
TABLE = [
    ({}, 3, 1, 2 * MONTH, 5002),
    ({"requests_per_month": 0}, 0, 0, 0, 5002),
    ({"requests_per_month": 1}, 1, 1, 0, 5002),
    ({"requests_per_month": 26_298_000}, 24, 6, 18 * MONTH, 5002),
    ({"requests_per_month": 26_298_000, "price_per_hour": 4}, 24, 6, 36 * MONTH, 5002),
    ({"utilisation": 1}, 2, 1, MONTH, 5002),
    ({"utilisation": 0.25}, 5, 2, 3 * MONTH, 5002),
    ({"peak_factor": 1}, 2, 1, MONTH, 5002),
    ({"peak_factor": 6}, 8, 2, 6 * MONTH, 5002),
    ({"input_tokens_per_request": 0}, 2, 1, MONTH, 5002),
    ({"output_tokens_per_request": 0}, 1, 1, 0, 5002),
    ({"output_tokens_per_request": 500}, 21, 5, 16 * MONTH, 5002),
    ({"monthly_upkeep": 100}, 3, 1, 2 * MONTH - 100, 5002),
    ({"monthly_upkeep": 2 * MONTH}, 3, 1, 0, 5002),
    ({"monthly_upkeep": 4000}, 3, 1, 2 * MONTH - 4000, 5002),
    ({"engineering_cost": 0}, 3, 1, 2 * MONTH, 2),
    ({"evaluation_cost": 700}, 3, 1, 2 * MONTH, 5702),
    ({"training_price_per_hour": 0}, 3, 1, 2 * MONTH, 5000),
    ({"hours": 100}, 3, 1, 2 * MONTH, 5400),
    ({"redistillations_per_year": 12}, 3, 1, 2 * MONTH - 2, 5002),
    ({"redistillations_per_year": 6, "evaluation_cost": 700}, 3, 1, 2 * MONTH - 351, 5702),
    ({"error_cost": 0.01, "error_task": "t"}, 3, 1, 2 * MONTH, 5002),
    ({"lost": 0.02}, 3, 1, 2 * MONTH, 5002),
    ({"lost": 0.02, "error_cost": 0.01, "error_task": "t"}, 3, 1, 2 * MONTH - 525.96, 5002),
    ({"lost": -0.02, "error_cost": 0.01, "error_task": "t"}, 3, 1, 2 * MONTH + 525.96, 5002),
    ({"lost": 1, "error_cost": 1, "error_task": "t"}, 3, 1, 2 * MONTH - 2_629_800, 5002),
    ({"student": TEACHER}, 3, 3, 0, 5002),
    ({"student": Machine(500, 50)}, 3, 5, -2 * MONTH, 5002),
    ({"teacher": Machine(1000, 100, 4)}, 3, 1, 5 * MONTH, 5002),
    ({"teacher": Hosted(3, 15)}, None, 1, 2_629_800 * 1050e-6 - MONTH, 5002),
    ({"teacher": Hosted(0.1, 0.2)}, None, 1, 2_629_800 * 20e-6 - MONTH, 5002),
]


@pytest.mark.parametrize(("changes", "its", "own", "saving", "one_off"), TABLE)
def test_cases_worked_by_hand(changes, its, own, saving, one_off):
    found = case(**changes)
    assert machines(found.student, found.cost) == own
    if its is not None:
        assert machines(found.teacher, found.cost) == its
    assert (found.saving, found.one_off_cost) == pytest.approx((saving, one_off), abs=1e-6)
    assert found.npv == pytest.approx(12 * saving - one_off, abs=1e-6)
    assert payback_months(found.saving, one_off) == ("never" if saving <= 0 else pytest.approx(one_off / saving))
    assert cash_flow(saving, one_off, found.cost)[12] == pytest.approx(found.npv)


def test_discounting():
    monthly = 1.21 ** (1 / 12)
    expected = sum(1000 / monthly**month for month in range(1, 13)) - 1000
    assert npv(1000, 1000, cost(discount_rate=0.21)) == pytest.approx(expected)


ANY = {
    "student": some.builds(Machine, some.floats(100, 5000), some.floats(10, 2000), some.none()),
    "teacher": some.one_of(
        some.builds(Machine, some.floats(100, 5000), some.floats(10, 2000), some.none() | some.floats(0.5, 9)),
        some.builds(Hosted, some.floats(0, 9), some.floats(0, 30)),
    ),
    "hours": some.floats(0, 50), "lost": some.floats(-0.1, 0.2), "error_cost": some.floats(0, 1),
    "error_task": some.just("t"), "engineering_cost": some.floats(0, 20_000), "monthly_upkeep": some.floats(0, 900),
    "evaluation_cost": some.floats(0, 900), "redistillations_per_year": some.floats(0, 12),
    "utilisation": some.floats(0.1, 1), "peak_factor": some.floats(1, 5), "discount_rate": some.floats(0, 0.3),
}  # fmt: skip


def with_volume(found, volume):
    return found._replace(cost=found.cost.model_copy(update={"requests_per_month": pricing.Assumption(value=volume)}))


@settings(deadline=None, max_examples=60)
@given(some.fixed_dictionaries(ANY), some.lists(some.floats(0, 1), min_size=40, max_size=40))
def test_no_volume_below_the_break_even_pays_and_that_one_does(changes, shares):
    found = case(**changes)
    least = found.break_even()
    if least != "never":
        assert with_volume(found, least).npv >= -1e-6 * (1 + found.one_off_cost)
    for share in shares:
        volume = math.floor(share**4 * 10**8) if least == "never" else math.floor(share * least)
        if volume != least:
            assert with_volume(found, volume).npv < 1e-6 * (1 + found.one_off_cost), volume


@settings(deadline=None, max_examples=60)
@given(some.fixed_dictionaries(ANY), some.integers(1, 10**8), some.floats(1, 50))
def test_more_volume_never_raises_the_cost_of_a_request_beyond_its_rounding(changes, volume, times):
    found = case(**changes)
    few, many = with_volume(found, volume), with_volume(found, volume * times)
    unit = [monthly_cost(one.student, one.cost) / one.cost.requests_per_month.value for one in (few, many)]
    assert unit[1] <= unit[0] + found.student.month(found.cost) / (volume * times)


@settings(deadline=None)
@given(some.floats(-1e5, 1e5), some.floats(0, 1e5), some.floats(1, 1e5), some.floats(0, 0.5))
def test_npv_rises_with_the_saving_and_agrees_with_payback(saving, more, one_off, rate):
    asked = cost(discount_rate=rate)
    assert npv(saving + more, one_off, asked) >= npv(saving, one_off, asked) - 1e-6
    months = payback_months(saving, one_off)
    if npv(saving, one_off, asked) > 0:
        assert months != "never" and months <= asked.horizon_months
    if rate == 0 and months != "never" and months < asked.horizon_months * (1 - 1e-9):
        assert npv(saving, one_off, asked) > 0


def test_the_tornado_moves_one_assumption_at_a_time_and_scenarios_all():
    found = case(requests_per_month=26_298_000, monthly_upkeep=100, spread=0.5)
    bars = {
        one.name: one for one in found.sensitivities({"throughput": [Machine(1000, 250), Machine(4000, 1000)]}, False)
    }
    assert (bars["monthly_upkeep"].low, bars["monthly_upkeep"].high) == (50, 150)
    assert bars["monthly_upkeep"].npv_low - bars["monthly_upkeep"].npv_high == pytest.approx(12 * 100)
    assert bars["price_per_hour"].npv_high - found.npv == pytest.approx(12 * 9 * MONTH)
    assert bars["utilisation"].high == 0.75 and bars["peak_factor"].low == 1
    assert bars["throughput"].npv_low == pytest.approx(12 * (12 * MONTH - 100) - 5002)  # 12 machines
    spans = [abs(one.npv_high - one.npv_low) for one in found.sensitivities({}, False)]
    assert spans == sorted(spans, reverse=True)
    assert not {"error_cost", "evaluation_cost", "redistillations_per_year"} & set(bars), "what is 0 cannot be off"
    worse, expected, better = found.scenarios(False)
    assert worse.npv < expected.npv < better.npv
    assert (expected.npv, expected.monthly_saving) == pytest.approx((found.npv, found.saving))
    assert worse.payback_months == "never" or worse.payback_months > expected.payback_months


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("utilisation", 0, "above 0 and at most 1"), ("utilisation", 1.1, "above 0 and at most 1"),
     ("peak_factor", 0.9, "at least 1"), ("price_per_hour", -1, "greater than or equal to 0"),
     ("error_cost", 1, "error_task: write the task"), ("currency", "dollars", "pattern")],
)  # fmt: skip
def test_what_cannot_be_is_refused(field, value, told):
    with pytest.raises(ValueError, match=told):
        cost(**{field: value})


@pytest.mark.parametrize(
    ("given_", "told"),
    [({}, "both prices"), ({"price_per_million_input_tokens": 1}, "both prices"),
     ({"prefill_tokens_per_s": 1, "decode_tokens_per_s": 0}, "more than 0"),
     ({"price_per_million_input_tokens": 1, "price_per_million_output_tokens": 1, "price_per_hour": 1}, "leave it out"),
     ({"price_per_million_input_tokens": 1, "price_per_million_output_tokens": 1, "prefill_tokens_per_s": 1}, "both")],
)  # fmt: skip
def test_how_the_teacher_is_served_is_told_one_way(given_, told):
    with pytest.raises(ValueError, match=told):
        spec.Serving.model_validate(given_)


def test_a_volume_of_whole_requests():
    found = case(engineering_cost=0, hours=0)
    assert found.break_even() == 1 and math.isclose(with_volume(found, 1).npv, 0)


@pytest.mark.parametrize(
    ("student", "teacher", "lost"),
    [(Machine(5000, 1000), Machine(2500, 500), -0.01), (Machine(2000, 500, 0.1), Machine(1000, 100, 4), 0.002)],
)
def test_the_break_even_beside_a_count_of_every_volume(student, teacher, lost):
    """A student that is better than its teacher; and one whose whole machines save at a small volume alone."""
    found = Case(student, teacher, spec.Cost(error_cost=30, error_task="t", engineering_cost=400), 0.0, lost)
    first = next(volume for volume in range(1, 10_000) if with_volume(found, volume).npv >= 0)
    assert found.break_even() == first


def test_what_the_teacher_costs_as_it_is_told_is_an_assumption_too():
    bars = {one.name: one for one in case(teacher=Hosted(3, 15)).sensitivities({}, True)}
    assert (bars["serving"].low, bars["serving"].high) == (11.25, 18.75)
    assert bars["serving"].npv_high - bars["serving"].npv_low == pytest.approx(12 * 0.5 * 2_629_800 * 1050e-6)


@settings(deadline=None, max_examples=40)
@given(some.fixed_dictionaries(ANY), some.integers(10**6, 10**9))
def test_the_scenarios_are_in_order_but_for_whole_machines(changes, volume):
    found = with_volume(case(**changes), volume)
    worse, expected, better = found.scenarios(False)
    rounding = 2 * 12 * (found.student.month(found.cost) + 9 * 730.5)
    assert worse.npv <= expected.npv + rounding and expected.npv <= better.npv + rounding
