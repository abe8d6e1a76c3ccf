"""Gates: an interval must lie wholly on one side; what was not measured can never be a go."""

from types import SimpleNamespace

import pytest
from operating import latency

from featkd import spec
from featkd.decide import gates
from featkd.result import Check, Fidelity, Guardrails, Interval, Memory, Quality, Roi


def decide(rules, bounds=(1.0, 2.0), roi=None, checks=None):
    speed = latency(1000, 100, decode_speedup=Interval(value=1.5, low=bounds[0], high=bounds[1]))
    of = SimpleNamespace(
        quality=Quality(why="not-run"), fidelity=Fidelity(why="not-run"), guardrails=Guardrails(checks=checks or {}),
        latency=speed, memory=Memory(), roi=roi or Roi(why="not-run"),
    )  # fmt: skip
    return gates.decide([spec.Gate(**rule) for rule in rules], of)


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


def test_a_missing_figure_is_a_failure():
    found = decide([{**SPEED, "at_least": 1.0}, {"metric": "quality.heldout_continuation.retained", "at_least": 0.1}])
    assert found.verdict == "no-go"
    assert [gate.outcome for gate in found.gates] == ["pass", "missing"]


def test_a_failure_weighs_more_than_doubt():
    assert decide([{**SPEED, "at_least": 1.5}, {**SPEED, "at_least": 3}]).verdict == "no-go"


def test_warnings_do_not_decide():
    assert decide([{**SPEED, "at_least": 1}, {**SPEED, "at_least": 9, "severity": "warn"}]).verdict == "go"


def test_without_rules_nothing_is_a_go():
    found = decide([])
    assert (found.verdict, found.why) == ("inconclusive", "no-gates")


def test_rules_that_only_warn_are_told_from_no_rules():
    found = decide([{**SPEED, "at_least": 1, "severity": "warn"}])
    assert (found.verdict, found.why) == ("inconclusive", "no-blocking-gates")
    assert [gate.outcome for gate in found.gates] == ["pass"]


def test_a_figure_without_an_interval_is_shown_and_decides_nothing():
    found = decide([{**SPEED, "at_least": 1.0}], bounds=(None, None))
    assert found.verdict == "inconclusive"
    assert (found.gates[0].outcome, found.gates[0].observed) == ("inconclusive", Interval(value=1.5))
    months = Roi(payback_months=5.0)
    found = decide([{"metric": "roi.payback_months", "at_most": 12}], roi=months)
    assert (found.gates[0].outcome, found.gates[0].observed) == ("inconclusive", Interval(value=5.0))


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


@pytest.mark.parametrize(
    ("name", "bounds", "expected"),
    [
        ("own.stereotype", (-0.02, 0.04), "go"),
        ("own.stereotype", (-0.02, 0.08), "inconclusive"),
        ("truthfulqa_mc1", (0.06, 0.08), "no-go"),
    ],
)
def test_a_guardrail_is_judged_beside_the_teacher(name, bounds, expected):
    worse = Interval(value=sum(bounds) / 2, low=bounds[0], high=bounds[1])
    check = Check(estimate=Interval(value=0.6), worse=worse, higher_is_better=False, examples=80, documents=80)
    found = decide([{"metric": f"guardrails.{name}.worse", "at_most": 0.05}], checks={name: check})
    assert found.verdict == expected
    assert (found.gates[0].examples_needed or 0) > 80 or expected != "inconclusive"
