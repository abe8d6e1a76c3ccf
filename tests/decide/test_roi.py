"""ROI against arithmetic worked by hand."""

import math

import pytest
from operating import latency, point

from featkd import pricing, spec
from featkd.decide import roi
from featkd.result import Interval, Latency

COST = spec.Cost(
    price_per_hour=2,
    requests_per_month=2_629_800,  # one per second
    input_tokens_per_request=100,
    output_tokens_per_request=50,
    utilisation=0.5,
    peak_factor=2,
    engineering_cost=5000,
    training_price_per_hour=4,
    monthly_upkeep=100,
    horizon_months=12,
    discount_rate=0,
)


def test_a_case_worked_by_hand():
    # teacher: 100/1000 + 50/100 = 0.6 s; 0.6 * 2 / 0.5 = 2.4 -> 3 machines; student: 100/2000 + 50/500 = 0.15 s -> 1
    teacher, student = latency(1000, 100), latency(2000, 500)
    found = roi.price(student, teacher, COST, training_seconds=1800, is_teacher=False)
    assert roi.price(teacher, teacher, COST, 0, True).machines == 3
    assert found.machines == 1
    assert found.monthly_saving.value == pytest.approx(2 * 2 * 730.5 - 100)  # after upkeep
    assert found.one_off_cost == pytest.approx(5000 + 0.5 * 4)
    assert found.payback_months == pytest.approx(5002 / (2922 - 100))
    assert found.npv.value == pytest.approx(12 * 2822 - 5002)
    assert found.cash_flow[0] == pytest.approx(-5002)
    assert found.cash_flow[12] == pytest.approx(found.npv.value)
    assert found.cost_per_million_output_tokens.value == pytest.approx(2 / (3600 * 500 * 0.5 / 2) * 1e6)


def test_no_saving_is_never_paid_back():
    same = latency(1000, 100)
    found = roi.price(same, same, COST, 0, False)
    assert found.monthly_saving.value == -100
    assert found.payback_months == "never"


def test_upkeep_above_the_saving_is_a_loss_everywhere():
    cost = COST.model_copy(update={"monthly_upkeep": pricing.Assumption(value=4000)})
    found = roi.price(latency(2000, 500, 0.01), latency(1000, 100, 0.01), cost, 0, False)
    saving = found.monthly_saving
    assert saving.low <= saving.value <= saving.high < 0
    assert (found.payback_months, found.payback_months_low) == ("never", "never")
    assert found.npv.high < 0
    assert found.cash_flow[1] - found.cash_flow[0] == pytest.approx(saving.value)


def test_a_month_at_the_unit_prices_costs_what_its_machines_cost():
    cost = COST.model_copy(
        update={"requests_per_month": pricing.Assumption(value=2_629_800_000)}
    )  # ceiling: under 0.1 %
    found = roi.price(latency(1000, 100), latency(1000, 100), cost, 0, is_teacher=True)
    millions = cost.requests_per_month.value / 1e6
    month = millions * (
        cost.input_tokens_per_request.value * found.cost_per_million_input_tokens.value
        + cost.output_tokens_per_request.value * found.cost_per_million_output_tokens.value
    )
    assert month == pytest.approx(found.monthly_cost.value, rel=1e-3)


def test_rates_without_bounds_give_figures_without_bounds():
    bare = latency(2000, 500, None)
    for student, teacher in ((bare, latency(1000, 100)), (latency(2000, 500), bare), (bare, bare)):
        found = roi.price(student, teacher, COST, 0, False)
        assert found.monthly_saving.low is found.monthly_saving.high is None
        assert found.payback_months is not None
        assert found.payback_months_low is found.payback_months_high is None


def test_zero_volume_needs_no_machine_and_saves_nothing():
    cost = COST.model_copy(update={"requests_per_month": pricing.Assumption(value=0)})
    found = roi.price(latency(2000, 500), latency(1000, 100), cost, 0, False)
    assert (found.machines, found.monthly_saving.value, found.payback_months) == (0, -100, "never")


def test_intervals_contain_the_value_and_pair_best_with_worst():
    found = roi.price(latency(2000, 500, 0.2), latency(1000, 100, 0.2), COST, 0, False)
    saving = found.monthly_saving
    assert saving.low <= saving.value <= saving.high
    assert found.payback_months_low <= found.payback_months <= found.payback_months_high
    cost = found.cost_per_million_output_tokens
    assert cost.low < cost.value < cost.high


def test_a_slow_machine_is_slow_for_both():
    ratios = {
        "ttft_speedup": Interval(value=2, low=1.9, high=2.1),
        "decode_speedup": Interval(value=5, low=4.8, high=5.2),
    }
    busy = COST.model_copy(update={"requests_per_month": COST.requests_per_month.model_copy(update={"value": 2.6e8})})
    wide, narrow = (
        roi.price(found, latency(1000, 100, 0.2), busy, 0, False).monthly_saving
        for found in (latency(2000, 500, 0.2), latency(2000, 500, 0.2, **ratios))
    )
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high
    # teacher 0.6 s at its usual pace: saved are 0.45 s, at paces of 0.8 and 1.2 that / 0.8 and / 1.2, nearly
    assert narrow.low == pytest.approx(0.45 / 1.2 / 0.45 * (narrow.value + 100) - 100, rel=0.05)
    assert narrow.high == pytest.approx(0.45 / 0.8 / 0.45 * (narrow.value + 100) - 100, rel=0.05)


CURVE = Latency(
    points=[
        point(1, 1000, 100, ttft_ms=10, inter_token_ms=2, rounds_prefill_tokens_per_s=[900, 1000, 1100],
              rounds_decode_tokens_per_s=[90, 100, 110]),
        point(4, 1200, 250, ttft_ms=40, inter_token_ms=4, rounds_prefill_tokens_per_s=[1080, 1200, 1320],
              rounds_decode_tokens_per_s=[225, 250, 275]),
        point(16, 1100, 600, ttft_ms=200, inter_token_ms=9, rounds_prefill_tokens_per_s=[990, 1100, 1210],
              rounds_decode_tokens_per_s=[540, 600, 660]),
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "concurrency", "kept"),
    [
        ({}, 1, None),
        ({"max_ttft_ms": 1000}, 16, True),
        ({"max_ttft_ms": 40}, 4, True),
        ({"max_inter_token_ms": 3.9}, 1, True),
        ({"max_ttft_ms": 1000, "max_inter_token_ms": 5}, 4, True),
        ({"max_ttft_ms": 9}, 16, False),  # the teacher serves today as it serves best
    ],
)
def test_a_model_is_priced_where_it_serves_most_within_the_targets(targets, concurrency, kept):
    cost = COST.model_copy(update={name: pricing.Assumption(value=value) for name, value in targets.items()})
    found = roi.price(CURVE, CURVE, cost, 0, is_teacher=True)
    assert (found.concurrency, found.meets_target) == (concurrency, kept)
    at = next(one for one in CURVE.points if one.concurrency == concurrency)
    seconds = 100 / at.prefill_tokens_per_s.value + 50 / at.decode_tokens_per_s.value
    assert found.machines == math.ceil(seconds * 2 / 0.5)


def test_a_student_that_misses_the_targets_is_priced_at_one_request_at_a_time():
    cost = COST.model_copy(update={"max_ttft_ms": pricing.Assumption(value=9)})
    found = roi.price(CURVE, CURVE, cost, 0, is_teacher=False)
    assert (found.concurrency, found.meets_target) == (1, False)
    assert found.monthly_saving.value < -100  # against the teacher at 16


def test_a_target_is_kept_with_the_whole_interval():
    cost = COST.model_copy(update={"max_ttft_ms": pricing.Assumption(value=40)})
    four = CURVE.points[1]
    unsure = four.ttft_ms.model_copy(update={"p50": Interval(value=38, low=35, high=41)})
    points = [CURVE.points[0], four.model_copy(update={"ttft_ms": unsure})]
    assert roi.price(Latency(points=points), CURVE, cost, 0, False).concurrency == 1


def test_a_speed_up_between_two_concurrencies_is_taken_round_by_round():
    cost = COST.model_copy(
        update={
            "max_inter_token_ms": pricing.Assumption(value=5),
            "requests_per_month": pricing.Assumption(value=2.6e8),
        }
    )
    paces = [0.8, 1.0, 1.2]  # of the machine, round by round
    slow = latency(500, 50, 0.2, inter_token_ms=5, rounds_prefill_tokens_per_s=[500 * pace for pace in paces],
                   rounds_decode_tokens_per_s=[50 * pace for pace in paces])  # fmt: skip
    rounds = {
        "rounds_prefill_tokens_per_s": [1200 * pace * off for pace, off in zip(paces, (0.99, 1, 1.01), strict=True)],
        "rounds_decode_tokens_per_s": [250 * pace * off for pace, off in zip(paces, (0.98, 1, 1.02), strict=True)],
    }
    quick = Latency(
        points=[point(1, 1000, 100, 0.2, inter_token_ms=2), point(4, 1200, 250, 0.2, inter_token_ms=4, **rounds)]
    )
    found = roi.price(quick, slow, cost, 0, False)
    assert found.concurrency == 4
    # 0.2 + 1 s against 0.0833 + 0.2 s, at paces of 0.8 and 1.2
    value = found.monthly_saving.value + 100
    assert value == pytest.approx(2.6e8 / 2_629_800 * (1.2 - 0.28333) * 4 * 2 * 730.5, rel=0.01)
    assert found.monthly_saving.low + 100 == pytest.approx(value / 1.2, rel=0.02)
    assert found.monthly_saving.high + 100 == pytest.approx(value / 0.8, rel=0.02)


def test_unmeasured_speed_leaves_the_section_empty_with_its_reason():
    assert roi.price(Latency(why="not-run"), latency(1, 1), COST, 0, False).why == "not-run"


SERVING = {
    "hosted-price": {
        "price_per_million_input_tokens": 3,
        "price_per_million_output_tokens": {"value": 15, "source": "x"},
    },
    "serving-figures": {"prefill_tokens_per_s": 1000, "decode_tokens_per_s": 100, "price_per_hour": 4},
}  # fmt: skip


@pytest.mark.parametrize(
    ("basis", "monthly", "machines", "million"),
    [
        ("hosted-price", 2_629_800 * (100 * 3 + 50 * 15) / 1e6, None, 3),
        ("serving-figures", 3 * 4 * 730.5, 3, 4 / (3600 * 1000 * 0.5 / 2) * 1e6),
    ],
)
def test_a_student_is_held_against_the_teacher_as_it_is_served_today(basis, monthly, machines, million):
    serving = spec.Serving.model_validate(SERVING[basis])
    measured, student = latency(9, 9, 0.1), latency(2000, 500, 0.1)
    teacher = roi.price(measured, measured, COST, 0, True, serving)
    assert (teacher.basis, teacher.machines, teacher.why) == (basis, machines, "baseline")
    assert teacher.monthly_cost.value == pytest.approx(monthly)
    assert teacher.cost_per_million_input_tokens.value == pytest.approx(million)
    found = roi.price(student, Latency(why="latency-failed"), COST, 0, False, serving)
    assert found.monthly_saving.value == pytest.approx(monthly - 2 * 730.5 - 100)
    assert found.monthly_saving.low <= found.monthly_saving.value <= found.monthly_saving.high
    names = {row.name for row in roi.assumptions(COST, serving)} - {row.name for row in roi.assumptions(COST)}
    assert names == {f"serving.{name}" for name in SERVING[basis]}


def test_wrong_answers_cost_by_the_share_that_is_lost_and_its_interval():
    cost = COST.model_copy(update={"error_cost": pricing.Assumption(value=0.01), "error_task": "t"})
    sure, lost = latency(2000, 500, 0.01), Interval(value=0.02, low=-0.01, high=0.05)
    plain = roi.price(sure, latency(1000, 100, 0.01), COST, 0, False).monthly_saving
    found = roi.price(sure, latency(1000, 100, 0.01), cost, 0, False, lost=lost).monthly_saving
    each = 2_629_800 * 0.01
    assert found.value == pytest.approx(plain.value - 0.02 * each)
    assert (found.low, found.high) == pytest.approx((plain.low - 0.05 * each, plain.high + 0.01 * each))
    assert roi.price(sure, latency(1000, 100), cost, 0, False).why == "errors-unknown"


def test_every_figure_of_the_business_case_is_listed():
    targets, words = {"max_ttft_ms", "max_inter_token_ms"}, {"currency", "error_task"}
    assert {row.name for row in roi.assumptions(COST)} == set(spec.Cost.model_fields) - targets - words
    wanted = COST.model_copy(update={name: pricing.Assumption(value=9) for name in targets})
    assert {row.name for row in roi.assumptions(wanted)} == set(spec.Cost.model_fields) - words
