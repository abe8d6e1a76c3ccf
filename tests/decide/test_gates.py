"""Gates: an interval must lie wholly on one side; what was not measured can never be a go."""

import pytest

from featkd import spec
from featkd.decide import gates, verdict
from featkd.result import Fidelity, Interval, Latency, Memory, Quality, Roi, Score


def decide(rules, low=1.0, high=2.0, roi=None):
    latency = Latency(decode_speedup=Interval(value=(low + high) / 2, low=low, high=high))
    return gates.decide(
        [spec.Gate(**rule) for rule in rules], Quality(why="not-run"), Fidelity(why="not-run"), latency, Memory(),
        roi or Roi(why="not-run"),
    )  # fmt: skip


SPEED = {"metric": "latency.decode_speedup"}


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ({"at_least": 1.0}, "go"),
        ({"at_least": 1.5}, "inconclusive"),
        ({"at_least": 2.5}, "no-go"),
        ({"at_most": 2.0}, "go"),
        ({"at_most": 1.5}, "inconclusive"),
        ({"at_most": 0.5}, "no-go"),
    ],
)
def test_the_whole_interval_decides(bound, expected):
    assert decide([{**SPEED, **bound}]).verdict == expected


def test_a_missing_figure_is_never_a_go():
    found = decide([{**SPEED, "at_least": 1.0}, {"metric": "quality.heldout_continuation.retained", "at_least": 0.1}])
    assert found.verdict == "inconclusive"
    assert [gate.outcome for gate in found.gates] == ["pass", "missing"]


def test_a_failure_weighs_more_than_doubt():
    assert decide([{**SPEED, "at_least": 1.5}, {**SPEED, "at_least": 3}]).verdict == "no-go"


def test_warnings_do_not_decide():
    assert decide([{**SPEED, "at_least": 1}, {**SPEED, "at_least": 9, "severity": "warn"}]).verdict == "go"


def test_without_rules_nothing_is_a_go():
    found = decide([])
    assert (found.verdict, found.why) == ("inconclusive", "no-gates")


@pytest.mark.parametrize(
    ("months", "expected"),
    [
        ((5.0, 4.0, 6.0), "go"),
        ((5.0, 4.0, "never"), "inconclusive"),
        (("never", 30.0, "never"), "no-go"),
        (("never", "never", "never"), "no-go"),
    ],
)
def test_a_payback_that_never_comes_fails(months, expected):
    roi = Roi(payback_months=months[0], payback_months_low=months[1], payback_months_high=months[2])
    assert decide([{"metric": "roi.payback_months", "at_most": 12}], roi=roi).verdict == expected


def score(value, half, chance, higher=True):
    estimate = Interval(value=value, low=value - half, high=value + half)
    return Score(metric="acc", higher_is_better=higher, estimate=estimate, examples=100, chance=chance)


def test_adequacy_needs_intervals_that_do_not_touch():
    good, poor = score(0.6, 0.1, 0.25), score(0.3, 0.1, 0.25)
    assert verdict.adequacy({"a": good}, None, "stop").adequate
    assert not verdict.adequacy({"a": poor}, None, "stop").adequate
    assert verdict.adequacy({"a": poor}, None, "stop").action == "stopped"
    assert verdict.adequacy({"a": poor}, None, "warn").action == "warned"
    assert not verdict.adequacy({"a": good}, {"a": score(0.55, 0.1, 0.25)}, "stop").adequate
    assert verdict.adequacy({"a": good}, {"a": poor}, "stop").adequate
    assert verdict.adequacy(
        {"p": score(80, 5, 500, higher=False)}, {"p": score(120, 5, 500, higher=False)}, "stop"
    ).adequate
