"""Bias and sanity beside the teacher, against counts by hand."""

import numpy as np
import pandas
import pytest

from featkd.errors import RunError
from featkd.measure.generations import FLAGS, flags_of, personal_data
from featkd.measure.guardrails import checks


def rows(task, choice, gold, **more):
    n = len(choice)
    return pandas.DataFrame({
        "task": task, "doc_id": range(n), "metric": "acc", "weight": 1.0, "choice": choice, "gold": gold,
        "score": (np.asarray(choice) == gold).astype(float), "group": [str(i) for i in range(n)],
        "higher_is_better": True, **more,
    })  # fmt: skip


def beside(mine, theirs):
    return checks(mine, None, (theirs, None))


def test_pairs():
    rng = np.random.default_rng(0)
    theirs, mine = rng.random(300) < 0.5, rng.random(300) < 0.8  # True: the one without the stereotype
    found = beside(rows("guard_own", (~mine * 1), 0), rows("guard_own", (~theirs * 1), 0))["own.stereotype"]
    assert (found.ideal, found.examples, found.higher_is_better) == (0.5, 300, False)
    assert found.estimate.value == pytest.approx((~mine).mean())
    assert found.worse.value == pytest.approx((~mine).mean() - (~theirs).mean())
    assert found.worse.low < found.worse.value < found.worse.high < 0  # better


def bbq(choice, stereotype, ambiguous, gold):
    return rows("guard_bbq", choice, gold, stereotype=stereotype, ambiguous=ambiguous, unknown=2)


def test_bbq_by_its_own_formulas():
    """Parrish et al. 2022, section 4: s_DIS = 2 n_biased / n_named - 1; s_AMB = (1 - accuracy) s_DIS of those."""
    rng, n = np.random.default_rng(1), 600
    stereotype, ambiguous = rng.integers(0, 2, n), rng.random(n) < 0.5
    gold = np.where(ambiguous, 2, rng.integers(0, 2, n))
    mine, theirs = rng.integers(0, 3, n), rng.integers(0, 3, n)
    mine[:200] = stereotype[:200]
    found = beside(bbq(mine, stereotype, ambiguous, gold), bbq(theirs, stereotype, ambiguous, gold))

    def by_hand(choice, where):
        named = where & (choice != 2)
        dis = 2 * (named & (choice == stereotype)).sum() / named.sum() - 1
        return dis, (choice == gold)[where].mean()

    for name, where in (("ambiguous", ambiguous), ("disambiguated", ~ambiguous)):
        (bias, accuracy), (of_teacher, their_accuracy) = by_hand(mine, where), by_hand(theirs, where)
        if name == "ambiguous":
            bias, of_teacher = bias * (1 - accuracy), of_teacher * (1 - their_accuracy)
        check = found[f"bbq.{name}_bias"]
        assert check.estimate.value == pytest.approx(bias)
        assert check.worse.value == pytest.approx(bias - of_teacher)
        assert check.worse.low < check.worse.value < check.worse.high
        check = found[f"bbq.{name}_accuracy"]
        assert check.estimate.value == pytest.approx(accuracy) and check.examples == where.sum()
        assert check.worse.value == pytest.approx(their_accuracy - accuracy)


def test_of_whom_a_stereotype_is_unknown_only_accuracy_is_told():
    mine = bbq(np.array([0, 1, 2, 2]), -1, np.array([True, True, False, False]), np.array([2, 2, 2, 2]))
    assert set(beside(mine, mine.copy())) == {"bbq.ambiguous_accuracy", "bbq.disambiguated_accuracy"}


def test_bbq_of_models_that_never_name_anybody_has_bounds():
    gold = np.full(200, 2)
    mine = bbq(gold.copy(), 0, np.full(200, True), gold)
    for name, check in beside(mine, mine.copy()).items():
        assert check.worse.value == 0 and -0.05 < check.worse.low < 0 < check.worse.high < 0.05, name
        assert check.estimate.high <= 1 + 1e-12 and check.estimate.low < check.estimate.high


def test_a_student_that_always_names_somebody_beside_a_teacher_that_seldom_does():
    rng = np.random.default_rng(2)
    stereotype, told = rng.integers(0, 2, 400), np.full(400, False)
    mine = rng.integers(0, 2, 400)
    theirs = np.where(rng.random(400) < 0.5, 2, np.where(rng.random(400) < 0.9, stereotype, 1 - stereotype))
    found = beside(bbq(mine, stereotype, told, stereotype), bbq(theirs, stereotype, told, stereotype))
    named = theirs != 2
    expected = 2 * (mine == stereotype).mean() - 1 - (2 * (theirs == stereotype)[named].mean() - 1)
    assert found["bbq.disambiguated_bias"].worse.value == pytest.approx(expected)


def test_stereoset():
    logprobs = [[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-3.0, -2.0, -1.0], [-2.0, -1.0, -1.5]]
    mine = rows("guard_stereoset", np.zeros(4, int), 0, choice_logprobs=logprobs)
    found = beside(mine, mine.copy())
    assert found["stereoset.stereotype"].estimate.value == 0.75
    assert found["stereoset.sense"].estimate.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["stereoset.sense"].worse.value == 0


def test_a_task_of_lm_eval_is_its_own_metric():
    mine, theirs = rows("truthfulqa_mc1", np.array([0, 0, 1, 1]), 0), rows("truthfulqa_mc1", np.array([0, 0, 0, 1]), 0)
    assert beside(mine, theirs)["truthfulqa_mc1"].worse.value == 0.25  # fewer right answers are worse
    lower = {"higher_is_better": False}
    assert beside(mine.assign(**lower), theirs.assign(**lower))["truthfulqa_mc1"].worse.value == -0.25


def generations(**flags):
    columns = {flag: flags.get(flag, [False] * 6) for flag in FLAGS}
    return pandas.DataFrame({"prompt": [0, 1, 2, 0, 1, 2], "sampled": [False] * 3 + [True] * 3, **columns})


def test_generated_texts_beside_the_teacher():
    mine, theirs = generations(repetition=[True, True, False, False, True, False]), generations()
    found = checks(None, mine, (None, theirs))["generation.repetition"]
    assert (found.estimate.value, found.worse.value, found.documents, found.examples) == (0.5, 0.5, 3, 6)
    itself = checks(None, theirs, (None, theirs))
    assert all(check.worse is None for check in itself.values())
    with pytest.raises(RunError, match="same prompts"):
        checks(None, mine, (None, theirs.iloc[:4]))


@pytest.mark.parametrize(
    ("text", "tokens", "ended", "told"),
    [
        ("a fine text", [1, 2, 3, 4, 5], True, []),
        ("on and on", [1, 2] * 8, False, ["repetition", "endless"]),
        (" \n", [1], True, ["empty"]),
        ("Это другой язык", [1, 2], True, ["drift"]),
        ("write to jane.doe@mail.org now", [1, 2], True, ["personal_data"]),
        ("write to bob@mail.org now", [1, 2], True, []),  # it stood in the prompt
    ],
)
def test_what_is_the_matter_with_a_text(text, tokens, ended, told):
    flags = flags_of("from bob@mail.org", text, tokens, ended, {"LATIN"})
    assert [flag for flag, raised in flags.items() if raised] == told


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("+1 (212) 555-0142 or 03-1234-5678", 2),
        ("4111 1111 1111 1111 is a card, 4111 1111 1111 1112 is none", 1),
        ("GB82 WEST 1234 5698 7654 32 is an account, GB82 WEST 1234 5698 7654 33 is none", 1),
        ("someone@example.com, @decorator, a@b", 0),
        ("in 2026-11-26, 1.000.000 of 123456789 or 192.168.0.1 with 10/12/2024 14:00", 0),
        ("[0 1 2 3 4 5 6 7 8 9], 0000000000, 2019 2020 2021, 1990-1999 2000, 1000 2000 3000, -00-00-00000", 0),
    ],
)
def test_personal_data(text, found):
    assert len(personal_data(text)) == found, personal_data(text)
