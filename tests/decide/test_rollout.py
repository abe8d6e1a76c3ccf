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


def answers(rng, n, loss, right, shared=0.7):
    """The teacher is right in so many, the student in so much less, on the same requests mostly."""
    draw = rng.random(n)
    teacher = draw < right
    student = np.where(rng.random(n) < shared, draw < right - loss, rng.random(n) < right - loss)
    return student.astype(float), teacher.astype(float)


def rows(scores):
    known = {"task": "t", "metric": "acc", "weight": 1.0}
    return pandas.DataFrame({"doc_id": range(len(scores)), "score": scores, **known})


def plan(rules=RULES, chance=0.25, loss=0.0, right=0.65):
    student, teacher = answers(np.random.default_rng(0), 4000, loss, right)
    mine, theirs = score(rows(student), rows(teacher), chance), score(rows(teacher), rows(teacher), chance)
    of = [SimpleNamespace(quality=SimpleNamespace(tasks={"t": one})) for one in (mine, theirs)]
    return rollout(*of, rules)


@pytest.mark.parametrize(("loss", "right"), [(0.0, 0.65), (0.04, 0.65), (0.0, 0.97)])
def test_one_that_loses_the_margin_is_found_and_one_as_measured_is_let_be(loss, right):
    found, rng = plan(loss=loss, right=right), np.random.default_rng(1)
    assert found.task == "t" and found.expected == pytest.approx(loss, abs=0.02)
    assert found.margin == pytest.approx(0.2 * (right - 0.25), rel=0.1)

    def taken_back(true_loss):
        shadow, canary = [], []
        for _ in range(2000):
            student, teacher = answers(rng, found.shadow_requests, true_loss, right)
            lost = teacher - student
            shadow.append(lost.mean() - 1.645 * lost.std() / np.sqrt(len(lost)) > found.expected)
            n = found.canary_requests
            student, _ = answers(rng, n, true_loss, right)
            _, teacher = answers(rng, n, 0.0, right)
            error = np.sqrt((student.var() + teacher.var()) / n)
            canary.append(teacher.mean() - student.mean() - 1.645 * error > found.expected)
        return np.mean(shadow), np.mean(canary)

    shadow, canary = taken_back(found.margin)
    assert 0.75 < shadow < 0.95 and 0.75 < canary < 0.9  # how the answers of a worse one differ is not known beforehand
    assert max(taken_back(found.expected)) < 0.08


def test_no_plan_without_a_gate_on_an_accuracy():
    assert plan(rules=RULES[1:]) is None
    assert plan(chance=None) is None
    exact = SimpleNamespace(metric="acc", difference=Interval(value=0.0), estimate=Interval(value=0.6), chance=0.25)
    of = SimpleNamespace(quality=SimpleNamespace(tasks={"t": exact}))
    assert rollout(of, of, RULES) is None
