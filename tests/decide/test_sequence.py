"""Which students may be called a go, and how many examples would settle the rest."""

import numpy as np
import pytest

from featkd.decide import power, sequence
from featkd.result import Interval


def levels(lines, p_values):
    return sequence.levels(lines, lambda name, level: p_values[name] <= (1 - level) / 2 + 1e-12)


def test_a_line_is_tested_from_its_beginning_until_one_fails():
    assert levels([["l", "m", "s"]], {"l": 0.001, "m": 0.2, "s": 0.001}) == {"l": 0.95, "m": 0.95}


def test_lines_share_an_error_and_pass_on_what_they_do_not_need():
    p_values = {"a-l": 0.013, "a-s": 0.013, "b-l": 0.019, "c-l": 0.9}
    found = levels([["a-l", "a-s"], ["b-l"], ["c-l"]], p_values)
    third = pytest.approx(1 - 2 * 0.04 / 3)
    assert found["a-l"] == third and found["a-s"] == third
    assert found["b-l"] == pytest.approx(0.96) and found["c-l"] == 0.95  # of a's third each half; then all, to 2.5 %
    stuck = levels([["a-l", "a-s"], ["b-l"], ["c-l"]], p_values | {"a-s": 0.014})
    assert stuck["a-s"] == third and stuck["b-l"] == third  # still waiting for a's


def test_none_to_test():
    assert levels([], {}) == {} == levels([[]], {})


def test_students_that_are_all_as_bad_as_may_just_not_be_seldom_pass():
    """Uniform p-values, of one line's students and between lines unrelated: the worst case."""
    rng = np.random.default_rng(0)
    names = [[f"{line}{place}" for place in range(3)] for line in range(6)]
    passed = 0
    for drawn in rng.random((4000, 18)):
        p_values = dict(zip(sum(names, []), drawn, strict=True))
        passed += any(p_values[name] <= (1 - level) / 2 for name, level in levels(names, p_values).items())
    assert 0.032 < passed / 4000 < 0.046


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.5])
def test_as_many_examples_as_are_needed_decide_in_four_of_five(distance):
    """The truth drawn from what today's interval says of it, then a study of that size."""
    rng, error, bound, z = np.random.default_rng(1), 0.02, 0.6, 1.959964
    value = bound + distance * error
    observed = Interval(value=value, low=value - z * error, high=value + z * error)
    needed = power.examples_needed(observed, bound, 400, 0.95)
    then = error * np.sqrt(400 / needed)
    estimates = rng.normal(rng.normal(value, error, 20_000), then)
    assert (abs(estimates - bound) > z * then).mean() == pytest.approx(0.8, abs=0.01)


def test_there_are_enough_for_a_student_that_is_as_good_as_the_teacher():
    """The estimate tells little here: of 100 examples it may lie anywhere."""
    observed = Interval(value=1.3, low=0.7, high=1.9)
    needed = power.examples_needed(observed, 0.9, 100, 0.95, as_good=1.0)
    assert needed > 5 * power.examples_needed(observed, 0.9, 100, 0.95)
    then = 0.6 / 1.959964 * np.sqrt(100 / needed)
    estimates = np.random.default_rng(0).normal(1.0, then, 50_000)
    assert (estimates - 1.959964 * then >= 0.9).mean() == pytest.approx(0.8, abs=0.01)


def test_no_number_where_there_is_no_interval():
    assert power.examples_needed(Interval(value=0.5), 0.6, 400, 0.95) is None
    assert power.examples_needed(Interval(value=0.5, low=0.5, high=0.5), 0.6, 400, 0.95) is None
