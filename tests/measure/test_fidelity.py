"""Answers beside the teacher's, against counts by hand."""

import numpy as np
import pandas
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from featkd.errors import InputError
from featkd.measure.fidelity import agreement


def rows(logprobs, gold, kinds=None):
    logprobs = np.asarray(logprobs, float)
    choice, n = logprobs.argmax(1), len(logprobs)
    return pandas.DataFrame({
        "task": "t", "doc_id": range(n), "metric": "acc", "score": (choice == gold).astype(float), "weight": 1.0,
        "choice": choice, "gold": gold, "choice_logprobs": list(logprobs), "group": [str(i) for i in range(n)],
        "class": kinds,
    })  # fmt: skip


@pytest.fixture
def pair():
    rng, n = np.random.default_rng(0), 400
    gold, kinds = rng.integers(0, 4, n), rng.choice(["a", "b", "c"], n)
    teacher = rng.normal(0, 1, (n, 4))
    teacher[np.arange(n), gold] += 1.5
    student = teacher + rng.normal(0, 1, (n, 4))
    student[kinds == "b", gold[kinds == "b"]] -= 1.0
    return student, teacher, gold, kinds


def test_by_hand(pair):
    student, teacher, gold, kinds = pair
    found = agreement(rows(student, gold, kinds).sample(frac=1, random_state=0), rows(teacher, gold, kinds))
    mine, theirs = student.argmax(1), teacher.argmax(1)
    right, teacher_right = mine == gold, theirs == gold
    assert found.examples == 400 and found.agreement.value == pytest.approx((mine == theirs).mean())
    assert found.correct_to_wrong.value == pytest.approx((teacher_right & ~right).mean())
    assert found.wrong_to_correct.value == pytest.approx((~teacher_right & right).mean())
    assert found.on_right.value == pytest.approx((mine == theirs)[teacher_right].mean())
    assert found.on_wrong.value == pytest.approx((mine == theirs)[~teacher_right].mean())
    assert found.kl.value == pytest.approx(entropy(softmax(teacher, 1), softmax(student, 1), axis=1).mean())
    p, one_hot = softmax(student, 1), np.eye(4)[gold]
    assert found.calibration.brier.value == pytest.approx(((p - one_hot) ** 2).sum(1).mean())
    of_teacher = ((softmax(teacher, 1) - one_hot) ** 2).sum(1).mean()
    assert found.calibration.brier_difference.value == pytest.approx(found.calibration.brier.value - of_teacher)
    ece = (
        sum(abs(p.max(1)[at].sum() - right[at].sum()) for at in (np.floor(p.max(1) * 10) == b for b in range(10))) / 400
    )
    assert found.calibration.ece.value == pytest.approx(ece)
    worst = found.worst_class
    assert (worst.name, worst.classes, worst.examples) == ("b", 3, (kinds == "b").sum())
    assert worst.difference.value == pytest.approx((right * 1.0 - teacher_right)[kinds == "b"].mean())
    for name in ("agreement", "correct_to_wrong", "wrong_to_correct", "on_right", "on_wrong", "kl"):
        interval = getattr(found, name)
        assert interval.low < interval.value < interval.high
    for interval in (found.calibration.brier, found.calibration.brier_difference, worst.difference):
        assert interval.low < interval.value < interval.high


@pytest.mark.parametrize(("shift", "truth"), [(0.0, 0.0), (0.2, 0.2)])
def test_the_interval_of_calibration_holds_the_truth_of_a_perfect_model_too(shift, truth):
    """Chosen with 50 to 90 %, right as often as that, or less often by `shift`."""
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        confidence, gold = rng.uniform(0.5, 0.9, 300), np.zeros(300, int)
        right = rng.random(300) < confidence - shift
        mine = np.log(np.where(right, confidence, 1 - confidence))
        table = rows(np.stack([mine, np.log(1 - np.exp(mine))], 1), gold)
        ece = agreement(table, table).calibration.ece
        held += ece.low <= truth <= ece.high
    assert held >= 184


def test_mcnemar_is_exact():
    """Five of six flips one way: a coin does so, or more evenly bad, in 14 of 64 cases."""
    gold = np.zeros(20, int)
    theirs, mine = np.tile([0.0, -9.0], (20, 1)), np.tile([0.0, -9.0], (20, 1))
    mine[:5], theirs[5] = [-9.0, 0.0], [-9.0, 0.0]
    assert agreement(rows(mine, gold), rows(theirs, gold)).mcnemar_p == pytest.approx(14 / 64)
    assert agreement(rows(mine, gold), rows(mine, gold)).mcnemar_p == 1.0


def test_what_is_not_known_is_left_out(pair):
    student, teacher, gold, kinds = pair
    mine, theirs = rows(student, gold), rows(teacher, gold)
    found = agreement(mine, theirs)
    assert found.worst_class is None
    unknown = agreement(mine.assign(gold=-1), theirs.assign(gold=-1))
    assert unknown.calibration is None and unknown.kl == found.kl
    sure = agreement(theirs.assign(score=1.0), theirs.assign(score=1.0))
    assert sure.on_wrong is None and sure.on_right.value == 1.0
    with pytest.raises(InputError, match="multiple-choice"):
        agreement(mine.assign(choice=-1), theirs.assign(choice=-1))


def test_choices_of_unequal_number():
    padded = rows(np.zeros((2, 3)), np.array([0, 1]))
    padded["choice_logprobs"] = [np.array([0.0, -1.0, -2.0]), np.array([-1.0, 0.0])]
    found = agreement(padded, padded.copy())
    assert found.kl.value == 0.0
    p = softmax([0.0, -1.0])[0]
    brier = (2 * (1 - p) ** 2 + ((softmax([0, -1, -2]) - [1, 0, 0]) ** 2).sum()) / 2
    assert found.calibration.brier.value == pytest.approx(brier)
