"""The numbers of a roll-out plan reveal what they promise to."""

from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from featkd import spec
from featkd.decide.rollout import rollout
from featkd.measure.statistics import score
from featkd.result import Interval

RULES = [
    spec.Gate(metric="quality.t.retained", at_least=0.8),
    spec.Gate(metric="quality.p.ratio", at_most=1.2),
    spec.Gate(metric="quality.t.retained", at_least=0.99, severity="warn"),
]


def answers(rng, n, loss, shared=0.7):
    """The teacher is right in 65 %, the student in so much less, on the same requests mostly."""
    draw = rng.random(n)
    teacher = draw < 0.65
    student = np.where(rng.random(n) < shared, draw < 0.65 - loss, rng.random(n) < 0.65 - loss)
    return student.astype(float), teacher.astype(float)


def rows(scores):
    return pandas.DataFrame(
        {"task": "t", "doc_id": range(len(scores)), "metric": "acc", "score": scores, "weight": 1.0}
    )


def plan(rules=RULES, chance=0.25):
    student, teacher = answers(np.random.default_rng(0), 4000, 0.0)
    mine, theirs = score(rows(student), rows(teacher), chance), score(rows(teacher), rows(teacher), chance)
    of = [SimpleNamespace(quality=SimpleNamespace(tasks={"t": one})) for one in (mine, theirs)]
    return rollout(*of, rules)


def test_shadow_and_canary_reveal_a_loss_of_the_margin_in_four_of_five():
    found, rng = plan(), np.random.default_rng(1)
    assert (found.task, found.margin) == ("t", pytest.approx(0.2 * 0.4, rel=0.1))
    seen, apart = [], []
    for _ in range(3000):
        student, teacher = answers(rng, found.shadow_requests, found.margin)
        d = student - teacher
        seen.append(d.mean() + 1.645 * d.std() / np.sqrt(len(d)) < 0)
        n = found.canary_requests
        student, _ = answers(rng, n, found.margin)
        _, teacher = answers(rng, n, found.margin)
        error = np.sqrt((student.var() + teacher.var()) / n)
        apart.append(student.mean() - teacher.mean() + 1.645 * error < 0)
    assert 0.78 < np.mean(seen) < 0.9  # how the answers of a worse one differ is not known beforehand
    assert np.mean(apart) == pytest.approx(0.8, abs=0.04)
    assert found.shadow_requests < 0.8 * found.canary_requests


def test_no_plan_without_a_gate_on_an_accuracy():
    assert plan(rules=RULES[1:]) is None
    assert plan(chance=None) is None
    exact = SimpleNamespace(metric="acc", difference=Interval(value=0.0), estimate=Interval(value=0.6), chance=0.25)
    of = SimpleNamespace(quality=SimpleNamespace(tasks={"t": exact}))
    assert rollout(of, of, RULES) is None
