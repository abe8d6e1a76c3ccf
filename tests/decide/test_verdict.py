"""The teacher against chance and the controls; one recommendation out of several goes."""

import pytest

from featkd.decide import verdict
from featkd.result import (
    Candidate,
    Decision,
    Energy,
    Fidelity,
    Guardrails,
    Interval,
    Latency,
    Memory,
    Quality,
    Roi,
    Score,
    Training,
)


def score(value, half, chance, higher=True):
    estimate = Interval(value=value, low=value - half, high=value + half)
    return Score(metric="acc", higher_is_better=higher, estimate=estimate, examples=100, chance=chance)


GOOD, POOR = score(0.6, 0.1, 0.25), score(0.3, 0.1, 0.25)


def test_adequacy_needs_intervals_that_do_not_touch():
    assert verdict.adequacy({"a": GOOD}, {}, "stop").adequate
    assert not verdict.adequacy({"a": POOR}, {}, "stop").adequate
    assert verdict.adequacy({"a": POOR}, {}, "stop").action == "stopped"
    assert verdict.adequacy({"a": POOR}, {}, "warn").action == "warned"
    assert not verdict.adequacy({"a": GOOD}, {"sft": {"a": score(0.55, 0.1, 0.25)}}, "stop").adequate
    assert verdict.adequacy({"a": GOOD}, {"sft": {"a": POOR}}, "stop").adequate
    perplexity = {"p": score(80, 5, 500, higher=False)}
    assert verdict.adequacy(perplexity, {"sft": {"p": score(120, 5, 500, higher=False)}}, "stop").adequate


def test_a_teacher_far_above_the_perplexity_it_is_known_for():
    told = score(120, 5, 500, higher=False).model_copy(update={"metric": "token_perplexity"})
    assert verdict.adequacy({"p": told}, {}, "stop", most_perplexity=130).adequate
    (_, check) = verdict.adequacy({"p": told}, {}, "stop", most_perplexity=124).checks
    assert (check.against, check.passed, check.other.value) == ("reference", False, 124)


def test_the_teacher_is_checked_against_every_control_by_name():
    close = score(0.55, 0.1, 0.25)
    found = verdict.adequacy({"a": GOOD}, {"sft-s-fp32": {"a": POOR}, "sft-m-fp32": {"a": close}}, "stop")
    assert [(check.against, check.control, check.passed) for check in found.checks] == [
        ("chance", None, True),
        ("sft", "sft-s-fp32", True),
        ("sft", "sft-m-fp32", False),
    ]
    assert not found.adequate


def going(saving, half=10.0, retained=(), ratios=(), verdict="go", arm="feature-kd", parameters=1):
    """A candidate with one task per share retained or ratio; `saving` None where speed was not measured."""
    bounds = {} if half is None else {"low": (saving or 0) - half, "high": (saving or 0) + half}
    estimate = {"metric": "acc", "higher_is_better": True, "estimate": Interval(value=0.5), "examples": 9}
    tasks = {f"r{at}": Score(**estimate, retained=Interval(value=share)) for at, share in enumerate(retained)}
    tasks |= {f"p{at}": Score(**estimate, ratio=Interval(value=ratio)) for at, ratio in enumerate(ratios)}
    return Candidate(
        arm=arm,
        training=Training(parameters=parameters),
        quality=Quality(tasks=tasks),
        fidelity=Fidelity(),
        guardrails=Guardrails(),
        latency=Latency(),
        memory=Memory(),
        energy=Energy(),
        roi=Roi(monthly_saving=None if saving is None else Interval(value=saving, **bounds)),
        verdict=Decision(verdict=verdict),
    )


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        # the luckiest timing of the same graph does not win over quality, on the weakest task
        ({"a": going(105, retained=(0.9, 0.6)), "b": going(100, retained=(0.8, 0.7))}, "b"),
        ({"a": going(105, ratios=(1.3, 1.0)), "b": going(100, ratios=(1.2, 1.1))}, "b"),
        ({"a": going(105, retained=(0.8,), ratios=(1.3,)), "b": going(100, retained=(0.8,), ratios=(1.2,))}, "b"),
        # a saving that is certainly smaller is not considered
        ({"a": going(200, retained=(0.6,)), "b": going(100, retained=(0.9,))}, "a"),
        # nor over size
        ({"a": going(105, retained=(0.9,), parameters=9), "b": going(100, retained=(0.8,), parameters=5)}, "b"),
        # of equal quality the saving decides
        ({"a": going(100, retained=(0.8,)), "b": going(105, retained=(0.8,))}, "b"),
        # without intervals, or without prices, savings cannot be told apart
        ({"a": going(105, None, retained=(0.6,)), "b": going(100, None, retained=(0.9,))}, "b"),
        ({"a": going(None, retained=(0.6,)), "b": going(None, retained=(0.9,))}, "b"),
        ({"a": going(100, retained=(0.6,)), "b": going(None, retained=(0.9,))}, "a"),
        # only goes are considered
        ({"a": going(100, retained=(0.6,)), "b": going(100, retained=(0.9,), verdict="no-go")}, "a"),
    ],
)
def test_among_savings_that_cannot_be_told_apart_size_and_then_quality_decide(candidates, chosen):
    for order in (candidates, dict(reversed(candidates.items()))):
        found = verdict.recommend(order, adequate=True)
        assert (found.candidate, found.code) == (chosen, "replace")


def test_without_a_go_the_teacher_stays_or_nothing_is_settled():
    no, open_ = going(1, verdict="no-go"), going(1, verdict="inconclusive")
    assert verdict.recommend({"a": no}, True).code == "keep-teacher"
    assert verdict.recommend({"a": no, "b": open_}, True).code == "undecided"
    assert verdict.recommend({"a": going(1)}, adequate=False).code == "teacher-inadequate"
