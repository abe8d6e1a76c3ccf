import numpy as np
import pandas
import pytest
from scipy.stats import t as student_t

from featkd.errors import RunError
from featkd.measure.fidelity import agreement
from featkd.measure.statistics import compare, is_accuracy, score


def rows(scores, task="t", metric="acc", weights=None, choice=None, group=None):
    n = len(scores)
    return pandas.DataFrame({
        "task": task, "doc_id": range(n), "metric": metric, "score": np.asarray(scores, float),
        "weight": np.ones(n) if weights is None else weights, "choice": np.zeros(n, int) if choice is None else choice,
        "group": [str(number) for number in range(n)] if group is None else group,
    })  # fmt: skip


def naive(statistic, *columns, resamples=4000):
    """Independent reference: a loop in float64 with another generator."""
    rng, n = np.random.RandomState(5), len(columns[0])
    drawn = [statistic(*(column[picked] for column in columns))
             for picked in (rng.randint(0, n, n) for _ in range(resamples))]  # fmt: skip
    return np.percentile(drawn, [2.5, 97.5])


@pytest.fixture
def answers():
    rng = np.random.default_rng(1)
    teacher = (rng.random(300) < 0.6).astype(float)
    return np.where(rng.random(300) < 0.85, teacher, 1 - teacher), teacher


@pytest.fixture
def texts():
    rng = np.random.default_rng(2)
    words = rng.integers(5, 80, 200).astype(float)
    teacher = -words * rng.normal(3.0, 0.3, 200)
    return teacher - words * rng.normal(0.3, 0.1, 200), teacher, words


def test_accuracy_intervals(answers):
    student, teacher = answers
    found = score(rows(student), rows(teacher).sample(frac=1, random_state=0), 0.25)
    assert found.higher_is_better and found.examples == 300 and found.ratio is None and found.chance == 0.25
    references = {
        "estimate": lambda s, t: s.mean(),
        "difference": lambda s, t: s.mean() - t.mean(),
        "retained": lambda s, t: (s.mean() - 0.25) / (t.mean() - 0.25),
    }
    for name, reference in references.items():
        interval = getattr(found, name)
        low, high = naive(reference, student, teacher)
        assert interval.value == pytest.approx(reference(student, teacher), abs=1e-12)
        width = high - low
        assert interval.low == pytest.approx(low, abs=0.12 * width)
        assert interval.high == pytest.approx(high, abs=0.12 * width)
    assert found == score(rows(student), rows(teacher), 0.25)  # the order does not matter


def test_perplexity_intervals(texts):
    student, teacher, words = texts
    make = lambda nats: rows(nats, metric="word_perplexity", weights=words)  # noqa: E731
    found = score(make(student), make(teacher), 400.0)
    nats = lambda s, w: -s.sum() / w.sum()  # noqa: E731
    references = {
        "estimate": lambda s, t, w: np.exp(nats(s, w)),
        "difference": lambda s, t, w: np.exp(nats(s, w)) - np.exp(nats(t, w)),
        "ratio": lambda s, t, w: np.exp(nats(s, w)) / np.exp(nats(t, w)),
        "retained": lambda s, t, w: (np.log(400) - nats(s, w)) / (np.log(400) - nats(t, w)),
    }
    assert not found.higher_is_better
    for name, reference in references.items():
        interval = getattr(found, name)
        low, high = naive(reference, student, teacher, words)
        assert interval.value == pytest.approx(reference(student, teacher, words), rel=1e-12)
        assert interval.low == pytest.approx(low, abs=0.12 * (high - low))
        assert interval.high == pytest.approx(high, abs=0.12 * (high - low))
    kind, interval = compare(make(student), make(teacher))
    assert kind == "ratio" and interval == found.ratio


def test_compare_accuracies(answers):
    student, teacher = answers
    kind, interval = compare(rows(student), rows(teacher))
    assert kind == "difference" and interval == score(rows(student), rows(teacher), None).difference
    alike = compare(rows(teacher), rows(teacher))[1]  # two models that answered alike so far
    assert alike.value == 0.0 and -alike.low == alike.high == pytest.approx(1.968 / 302, rel=1e-3)
    same = rows(teacher)
    assert compare(same, same)[1].model_dump() == {"value": 0.0, "low": 0.0, "high": 0.0}


def skewed(totals, variance):
    """Johnson (1978): by how many standard errors the bound on the side of the long tail is too tight."""
    return (totals**3).sum() / variance**1.5 * (1 + 2 * 1.959964**2) / 6


def not_rejected(above, below, cells, groups, grid):
    """Independent reference: every r of the grid for which mean(above - r below) = 0 is not rejected, by loops."""

    def at(r):
        rest = above - r * below
        totals = np.array([rest[groups == g].sum() for g in np.unique(groups)])
        effect = max(1.0, (totals**2).sum() / (rest**2).sum())
        extra = [a - r * b for a, b in cells]
        variance = totals.var(ddof=1) * len(totals) + 0.5 * effect * sum(e**2 for e in extra)
        return totals, variance, (rest.sum() + 0.5 * sum(extra)) / np.sqrt(variance)

    totals, variance, _ = at(above.sum() / below.sum())
    t, shift = student_t.ppf(0.975, len(totals) - 1), skewed(totals, variance)
    kept = [r for r in grid if -t - max(0, shift) <= at(r)[2] <= t + max(0, -shift)]
    return min(kept), max(kept)


def test_retained_is_what_a_test_does_not_reject(answers):
    student, teacher = answers
    groups = np.arange(300) // 3
    names = [f"d{group}" for group in groups]
    found = score(rows(student, group=names), rows(teacher, group=names), 0.25)
    assert found.documents == 100
    cells = [(s - 0.25, t - 0.25) for s, t in ((1, 1), (1, 0), (0, 1), (0, 0))]
    low, high = not_rejected(student - 0.25, teacher - 0.25, cells, groups, np.linspace(0.3, 1.3, 20001))
    # the effect of clusters on the added half examples is taken at the estimate, not at each r
    assert (found.retained.low, found.retained.high) == pytest.approx((low, high), abs=2e-4)


def test_the_same_answer_told_four_times_is_one_answer(texts):
    student, teacher, words = texts

    def told(times, group=None):
        tables = [
            rows(np.repeat(nats, times), metric="word_perplexity", weights=np.repeat(words, times), group=group)
            for nats in (student, teacher)
        ]
        return score(*tables, 400.0)

    once, often, unrelated = told(1), told(4, np.repeat([f"d{n}" for n in range(200)], 4)), told(4)
    for figure in ("estimate", "difference", "ratio", "retained"):
        assert getattr(often, figure).model_dump() == pytest.approx(getattr(once, figure).model_dump(), rel=1e-9)
    assert unrelated.ratio.high - unrelated.ratio.low < 0.6 * (once.ratio.high - once.ratio.low)


def test_over_seeds_by_hand():
    """Variance of seeds plus that of examples less what both hold of what they do together (Satterthwaite)."""
    words, rng = np.full(200, 40.0), np.random.default_rng(4)
    teacher = -words * rng.normal(3.0, 0.3, 200)
    noise = 0.1 * (rng.standard_normal(200) + rng.standard_normal((3, 200)))
    lost = 0.3 + 0.05 * rng.standard_normal((3, 1)) + noise
    students = teacher - words * lost
    tables = [rows(nats, metric="word_perplexity", weights=words) for nats in (*students, teacher)]
    found = score(tables[:3], tables[3], None).ratio
    apart = words * lost
    value = apart.sum() / 3 / words.sum()
    rest = apart.mean(0) - value * words
    examples = 200 * rest.var(ddof=1)
    seeds = apart.sum(1).var(ddof=1) / 3
    both = sum((left - left.mean()) @ (left - left.mean()) for left in apart - apart.mean(0)) / 2 / 3
    total = examples + seeds - both
    freedom = total**2 / (seeds**2 / 2 + examples**2 / 199)
    error, t, shift = np.sqrt(total) / words.sum(), student_t.ppf(0.975, freedom), skewed(rest, total)
    bounds = np.exp([value - (t + max(0, -shift)) * error, value + (t + max(0, shift)) * error])
    assert found.value == pytest.approx(np.exp(value))
    assert (found.low, found.high) == pytest.approx(bounds, rel=1e-7)
    one = score(tables[0], tables[3], None).ratio
    assert found.high / found.low > one.high / one.low  # three seeds tell how much they differ; one does not


def test_arms_are_compared_seed_by_seed():
    rng = np.random.default_rng(3)
    a = [rows((rng.random(300) < share).astype(float)) for share in (0.7, 0.6, 0.5, 0.4)]
    better = [rows(np.maximum(one["score"], rng.random(300) < 0.3)) for one in a]  # on every seed
    kind, interval = compare(better, a)
    assert kind == "difference" and 0 < interval.low < interval.value < interval.high
    gains = [b["score"].mean() - s["score"].mean() for b, s in zip(better, a, strict=True)]
    assert interval.value == pytest.approx(np.mean(gains))


def test_nothing_is_retained_of_a_teacher_at_chance(answers):
    student, teacher = answers
    assert score(rows(student), rows(teacher), teacher.mean()).retained is None
    assert score(rows(student), rows(teacher), teacher.mean() - 1e-16).retained is None  # a chance that was summed up
    assert score(rows(student), rows(teacher), None).retained is None
    barely = score(rows(student), rows(teacher), teacher.mean() - 0.01).retained
    assert barely.low is None and barely.high is None


def test_a_share_keeps_its_uncertainty_at_its_ends():
    n, z = 50, 2.009575  # Student's t of 49 documents
    ends = {1.0: (n / (n + z**2), 1.0), 0.0: (0.0, z**2 / (n + z**2))}  # Wilson's bounds there
    for share, bounds in ends.items():
        mine, theirs = rows([share] * n), rows([share] * n)
        found, same = score(mine, theirs, 0.25), agreement(mine, theirs).agreement
        assert (found.estimate.low, found.estimate.high) == pytest.approx(bounds, abs=1e-6)
        assert (same.value, same.low, same.high) == pytest.approx((1.0, *ends[1.0]), abs=1e-6)
        assert found.difference.low < found.difference.value == 0.0 < found.difference.high
        assert found.retained is None if share == 0 else found.retained.low < 1.0 < found.retained.high


def test_a_model_beside_itself_is_exact(answers, texts):
    itself = rows(answers[1])
    found = score(itself, itself, 0.25)
    assert found.difference.model_dump() == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found.retained.model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found.estimate.low < found.estimate.value < found.estimate.high
    itself = rows(texts[1], metric="word_perplexity", weights=texts[2])
    assert score(itself, itself, 400.0).ratio.model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_rows_say_which_way_is_better():
    mine, theirs = rows([0.1, 0.3, 0.2], metric="brier_score"), rows([0.1, 0.2, 0.3], metric="brier_score")
    assert score(mine, theirs, 0.5).higher_is_better and score(mine, theirs, 0.5).retained is None
    mine["higher_is_better"] = False
    found = score(mine, theirs, 0.5)
    assert not found.higher_is_better and found.retained.value == pytest.approx(1.0)
    assert is_accuracy("acc_norm") and not is_accuracy("brier_score") and not is_accuracy("perplexity")


def test_an_example_scored_twice_is_refused():
    mine = rows([1, 0, 1])
    mine["doc_id"] = [0, 1, 1]
    with pytest.raises(RunError, match="more than once"):
        score(mine, mine, None)


def test_different_examples_are_refused(answers):
    student, teacher = answers
    with pytest.raises(RunError, match="same examples"):
        score(rows(student), rows(teacher[:-1]), 0.25)
    with pytest.raises(RunError, match="same examples"):
        compare(rows(student), rows(teacher, task="other"))
