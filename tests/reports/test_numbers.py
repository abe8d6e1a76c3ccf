"""Digits, minus signs and 'never'."""

import pytest

from featkd.result import Interval
from reports import numbers, text

EN = text.load("en")


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.4725, 0.42, 0.52, "0.47 (0.42–0.52)"),
        (40.21, 39.0, 41.4, "40.2 (39.0–41.4)"),  # half-width 1.2: two digits of it are kept
        (40.21, 36.2, 44.2, "40 (36–44)"),  # half-width 4: one
        (12_345.6, 12_100, 12_600, "12,350 (12,100–12,600)"),
        (1234.5, -800.0, 3200.0, "1,200 (−800 to 3,200)"),
        (-0.0177, -0.0463, 0.0113, "−0.018 (−0.046 to 0.011)"),
        (0.0, -0.4, 0.4, "0.0 (−0.4 to 0.4)"),
        (2.0, 2.0, 2.0, "2 (2–2)"),
        (5123.0, 0.654, 40_100_000.0, "5,100 (0.65–40,000,000)"),  # rounds of timing that do not agree
    ],
)
def test_digits_follow_the_interval(value, low, high, shown):
    assert str(numbers.figure(Interval(value=value, low=low, high=high), EN)) == shown


@pytest.mark.parametrize(
    ("half", "places"), [(1.0, 1), (3.54, 1), (3.56, 0), (9.9, 0), (35, 0), (36, -1), (0.001, 4), (0, None)]
)
def test_particle_data_group_rule(half, places):
    assert numbers.supported_places(half) == places


def test_no_interval_is_no_finding():
    assert numbers.figure(Interval(value=3.14159), EN) == ("3.14", None)
    assert numbers.figure(Interval(value=float("inf")), EN).value == numbers.DASH


def test_a_tiny_negative_is_not_minus_zero():
    assert numbers.fixed(-0.0004, 2) == "0.00"
    assert numbers.fixed(-1234.5, 0) == "−1,234"


@pytest.mark.parametrize(
    ("months", "shown"),
    [
        ((None, None, None), None),
        (("never", "never", "never"), ("never", "never")),
        (("never", 14.2, "never"), ("never", "14 to never")),
        ((11.83, 11.1, 12.6), ("11.8", "11.1–12.6")),
        ((11.83, 9.0, "never"), ("12", "9 to never")),
        ((11.83, None, None), ("12", None)),
    ],
)
def test_payback_never_is_a_word(months, shown):
    assert numbers.payback(*months, EN) == shown
