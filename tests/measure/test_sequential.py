"""Looks at logs again and again: rarely alarmed by nothing, soon by something."""

import itertools

import numpy as np
import pandas
import pytest
from scipy import stats

from featkd.judging import Audit
from featkd.measure import sequential
from featkd.measure.sequential import look


def answers(rng, n=200, shift=0.0, bad=0.0):
    """Answers as they are, of a student `shift` nats per token further off, or of which some are babble."""
    babble = rng.random(n) < bad
    return pandas.DataFrame(
        {
            "surprise": 0.8 * rng.gamma(2, 1, n) + shift + 6 * babble,
            "divergence": rng.normal(0.1, 0.5, n),
            "disagreement": rng.binomial(20, np.where(babble, 0.95, 0.4), n) / 20,
            "repetition": (rng.random(n) < 0.02) | babble,
            "empty": rng.random(n) < 0.005,
            "drift": rng.random(n) < 0.01,
            "personal_data": rng.random(n) < 0.004,
            "feedback": np.where(rng.random(n) < 0.3, (rng.random(n) < 0.8) * 1.0, np.nan),
        }
    )


def weeks_until_alarm(rng, audit, weeks, **changes):
    before = [answers(rng)]
    for week in range(1, weeks + 1):
        now = answers(rng, **changes)
        if any(test.alarm for test in look(now, before, audit)):
            return week
        before.append(now)
    return None


@pytest.mark.slow
def test_healthy_logs_of_a_year_rarely_raise_an_alarm():
    """`make bench-audit` has a thousand histories; of 60 more than 7 would be 5 % with a probability of 1 %."""
    rng = np.random.default_rng(0)
    alarmed = [weeks_until_alarm(rng, Audit(), 52) is not None for _ in range(60)]
    assert sum(alarmed) <= stats.binom.ppf(0.99, 60, 0.05)


@pytest.mark.parametrize(("changes", "within"), [({"shift": 0.6}, 2), ({"bad": 0.15}, 2), ({"bad": 0.1}, 9)])
def test_a_student_gone_bad_is_found(changes, within):
    rng = np.random.default_rng(1)
    found = [weeks_until_alarm(rng, Audit(), within, **changes) for _ in range(5)]
    assert None not in found


def test_what_was_passed_at_the_first_audit_by_enumeration():
    """Of all ways to part 11 answers in 6 and 5: how often pass at least k of the 6 the largest of the 5?"""
    ways = list(itertools.combinations(range(11), 6))
    for k in range(7):
        passed = [sum(place > max(set(range(11)) - set(now)) for place in now) >= k for now in ways]
        values = np.array([1.0] * k + [0.0] * (6 - k))
        assert sequential._p("far_off", values, np.zeros(5)) == pytest.approx(np.mean(passed))


@pytest.mark.parametrize(
    ("then", "now", "rate"), [(200, 30, 0.02), (500, 50, 0.005), (200, 200, 0.02), (60, 200, 0.98)]
)
def test_p_holds_what_it_promises_where_nearly_all_answers_are_alike(then, now, rate):
    """Of one-token answers, or of feedback: by simulation p is at most as small as it says, far out in the tail."""
    rng = np.random.default_rng(6)
    draws = [[(rng.random(n) < rate) * 1.0 for n in (now, then)] for _ in range(4000)]
    found = np.array([sequential._p("disagreement", *one) for one in draws])
    for level in (0.05, 0.01, 0.002):
        assert (found <= level).sum() <= stats.binom.ppf(0.9999, len(found), level)


def test_limits_of_rights_and_wrongs():
    """By simulation: at the limit itself an alarm at most as often as its level, on feedback (at least) and shares."""
    rng = np.random.default_rng(7)
    feedback = [sequential._p_above("feedback", -((rng.random(20) < 0.1) * 1.0), -0.1) for _ in range(4000)]
    shares = [sequential._p_above("empty", (rng.random(50) < 0.02) * 1.0, 0.02) for _ in range(4000)]
    for found in (feedback, shares):
        for level in (0.05, 0.01):
            assert (np.array(found) <= level).sum() <= stats.binom.ppf(0.9999, len(found), level)
    assert sequential._p_above("feedback", -np.zeros(20), -0.1) == pytest.approx(0.9**20)
    assert sequential._p_above("surprise", np.full(9, 3.0), 2.0) == 0.0
    assert sequential._p_above("surprise", np.full(9, 3.0), 4.0) == 1.0


def test_every_test_spends_its_part_and_says_what_it_saw():
    rng = np.random.default_rng(2)
    first, second, now = answers(rng), answers(rng), answers(rng, shift=1.0)
    audit = Audit(looks=10, false_alarm=0.1, limits={"surprise": 2.0, "feedback": 0.1})
    tests = look(now, [first, second], audit)
    assert {test.level for test in tests} == {0.1 / 10 / (2 * 9 + 2)}
    assert {(test.figure, test.looks) for test in tests if test.limit is None} == set(
        itertools.product(["far_off", *first.columns], [1, 2])
    )
    by_name = {(test.figure, test.looks, test.limit): test for test in tests}
    alone = by_name["surprise", 1, None]
    assert alone.value == pytest.approx(now["surprise"].mean()) and alone.examples == 200
    assert alone.reference == pytest.approx(first["surprise"].mean())
    assert alone.worse == pytest.approx(alone.value - alone.reference) and alone.margin == 0.1 and alone.alarm
    assert alone.p == pytest.approx(
        stats.mannwhitneyu(now["surprise"], first["surprise"], alternative="greater").pvalue
    )
    together = by_name["surprise", 2, None]
    assert together.value == pytest.approx(np.mean([*second["surprise"], *now["surprise"]]))
    feedback = by_name["feedback", 1, None]
    assert feedback.value == pytest.approx(now["feedback"].mean()) and feedback.worse < 0.1 and not feedback.alarm
    assert by_name["surprise", 1, 2.0].alarm and not by_name["feedback", 1, 0.1].alarm


def test_a_change_that_is_smaller_than_the_margin_is_no_alarm():
    rng = np.random.default_rng(3)
    first, now = answers(rng, 5000), answers(rng, 5000, shift=0.3)
    assert {test.figure for test in look(now, [first], Audit()) if test.alarm} == {"surprise"}
    wide = Audit(margins={"surprise": 0.6})
    assert not any(test.alarm for test in look(now, [first], wide))
    assert not any(test.alarm for test in look(first, [now], Audit()))  # better is no alarm


def test_the_first_audit_is_the_reference_but_for_limits():
    rng = np.random.default_rng(4)
    assert look(answers(rng), [], Audit()) == []
    (empty, feedback) = look(
        answers(rng).assign(empty=True, feedback=0.2), [], Audit(limits={"empty": 0.02, "feedback": 0.5})
    )
    assert empty.alarm and empty.reference is None and empty.limit == 0.02
    assert feedback.alarm and feedback.value == pytest.approx(0.2)


def test_a_figure_that_few_answers_have_is_not_tested():
    rng = np.random.default_rng(5)
    tables = [answers(rng).assign(feedback=np.nan) for _ in range(2)]
    assert "feedback" not in {test.figure for test in look(tables[1], tables[:1], Audit())}
