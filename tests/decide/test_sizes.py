"""The frontier of size against quality, held against a search over all pairs, and the smallest student that passes."""

import itertools
import math

import numpy as np
import pandas
import pytest

from featkd import spec
from featkd.decide import assemble
from featkd.decide.assemble import Evidence
from featkd.decide.sizes import sizes
from featkd.result import (
    Adequacy,
    Candidate,
    Decision,
    Energy,
    Fidelity,
    Guardrails,
    Latency,
    Memory,
    Quality,
    Roi,
    Training,
)

ADEQUATE = Adequacy(adequate=True, action="none", checks=[])
SMALL, MIDDLE, LARGE = 1000, 2000, 4000
GATE = spec.Gate(metric="quality.heldout_continuation.retained", at_least=0.5)


def samples(right, n=400):
    """The first `right` of n examples are answered rightly: pairs differ where they must and nowhere else."""
    correct = np.arange(n) < right
    return pandas.DataFrame(
        {"task": "heldout_continuation", "doc_id": range(n), "metric": "acc", "score": correct.astype(float),
         "weight": 1.0, "choice": np.where(correct, 0, 1), "gold": 0, "n_choices": 4}
    )  # fmt: skip


def perplexity(loss, n=200):
    noise = np.random.default_rng(int(10 * loss)).normal(0, 0.01, n)
    return pandas.DataFrame(
        {"task": "heldout_perplexity", "doc_id": range(n), "metric": "token_perplexity", "score": -10 * loss + noise,
         "weight": 10.0, "choice": 0, "gold": 0, "n_choices": 1}
    )  # fmt: skip


def judged(students, rules=(GATE,), teacher=360, made=samples):
    """students: (arm, size, parameters, quality), the quality as `made` takes it."""
    trained = Training(parameters=9000)
    rows = [Evidence("teacher", "teacher", training=trained, samples=made(teacher))]
    for arm, size, parameters, quality in students:
        rows.append(
            Evidence(f"{arm}-{size}", arm, size, training=Training(parameters=parameters), samples=made(quality))
        )
    poc = spec.Spec.model_construct(gates=list(rules), cost=spec.Cost(), teacher=spec.Teacher(model="m"))
    found = assemble.candidates(poc, rows, {"heldout_continuation": 0.25, "heldout_perplexity": 500.0}, ADEQUATE)
    return sizes(found, list(rules), assemble.paired(rows))


def test_one_size_has_no_frontier():
    assert judged([("sft", "s", SMALL, 200), ("logit-kd", "s", SMALL, 250)]) is None


def test_the_frontier_is_what_no_pair_rules_out():
    students = [
        ("sft", "s", SMALL, 200), ("logit-kd", "s", SMALL, 260), ("feature-kd", "s", SMALL, 261),
        ("sft", "m", MIDDLE, 240), ("logit-kd", "m", MIDDLE, 300), ("feature-kd", "m", MIDDLE, 250),
        ("sft", "l", LARGE, 300), ("logit-kd", "l", LARGE, 299), ("feature-kd", "l", LARGE, 340),
    ]  # fmt: skip
    (curve,) = judged(students).curves
    points = {point.candidate: point for point in curve.points}
    assert [point.parameters for point in curve.points] == sorted(point.parameters for point in curve.points)
    for arm, size, parameters, right in students:
        ruled_out = any(
            (p <= parameters and r >= right) and (p < parameters or r > right)
            for _, _, p, r in students
        )  # fmt: skip
        assert points[f"{arm}-{size}"].optimal == (not ruled_out), (arm, size)
    standing = {name: point.standing for name, point in points.items()}
    assert standing["feature-kd-s"] == standing["logit-kd-s"] == "open", "one answer in 400 tells nothing"
    assert standing["sft-s"] == standing["feature-kd-m"] == standing["sft-l"] == "off"
    assert standing["logit-kd-m"] == standing["feature-kd-l"] == "on"
    lead = points["logit-kd-m"].lead
    assert (lead.a, lead.b, lead.kind) == ("logit-kd-m", "feature-kd-s", "difference")
    assert lead.estimate.value == pytest.approx((300 - 261) / 400)
    assert (curve.measure, curve.at_least, curve.higher_is_better) == ("retained", 0.5, True)


def test_of_perplexity_less_is_better_and_the_measure_is_the_gate_s():
    rule = spec.Gate(metric="quality.heldout_perplexity.ratio", at_most=2)
    students = [("sft", "s", SMALL, 5.0), ("logit-kd", "s", SMALL, 4.0), ("sft", "m", MIDDLE, 4.5)]
    (curve,) = judged(students, [rule], 3.9, perplexity).curves
    assert (curve.measure, curve.at_most, curve.higher_is_better) == ("ratio", 2, False)
    assert {p.candidate: (p.optimal, p.standing) for p in curve.points} == {
        "sft-s": (False, "off"), "logit-kd-s": (True, "on"), "sft-m": (False, "off"),
    }  # fmt: skip
    assert curve.points[1].quality.value == pytest.approx(math.exp(0.1), rel=1e-2)


def decided(verdicts, why="gates"):
    """verdicts: (arm, size, parameters, verdict)."""
    bare = {"fidelity": Fidelity(), "guardrails": Guardrails(), "latency": Latency(), "memory": Memory(),
            "energy": Energy(), "roi": Roi()}  # fmt: skip
    found = {}
    for arm, size, parameters, verdict in [("teacher", None, 9000, None), *verdicts]:
        reason = why if verdict == "inconclusive" else "gates"
        found[f"{arm}-{size}"] = Candidate(
            arm=arm, size=size, training=Training(parameters=parameters), quality=Quality(), **bare,
            verdict=Decision(verdict=verdict, why=reason),
        )  # fmt: skip
    return sizes(found, [], lambda *names: pytest.fail("nothing to compare"))


@pytest.mark.parametrize(
    ("small", "middle", "large", "smallest", "undecided"),
    [
        ("no-go", "go", "go", "sft-m", []),
        ("inconclusive", "go", "inconclusive", "sft-m", ["sft-s"]),
        ("no-go", "no-go", "no-go", None, []),
        ("no-go", "inconclusive", "inconclusive", None, ["sft-m", "sft-l"]),
        ("go", "no-go", "go", "sft-s", []),
    ],
)
def test_the_smallest_that_passes_and_what_is_open_below_it(small, middle, large, smallest, undecided):
    rows = [("sft", "l", LARGE, large), ("sft", "m", MIDDLE, middle), ("sft", "s", SMALL, small)]
    for order in itertools.permutations(rows):
        found = decided(order)
        assert (found.smallest, found.undecided, found.why, found.sizes) == (smallest, undecided, None, 3)


def test_what_forbids_every_go_is_said():
    rows = [("sft", "m", MIDDLE, "inconclusive"), ("sft", "s", SMALL, "inconclusive")]
    assert decided(rows, "no-gates").why == "no-gates"
    assert decided([*rows, ("sft", "l", LARGE, "no-go")], "teacher-inadequate").why == "teacher-inadequate"
    assert decided(rows).why is None


def test_of_several_that_pass_at_one_size_the_best_is_named():
    found = judged([("sft", "s", SMALL, 300), ("logit-kd", "s", SMALL, 330), ("sft", "m", MIDDLE, 350)])
    assert found.smallest == "logit-kd-s"
