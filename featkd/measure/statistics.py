"""Figures with their 95 % intervals, from per-example evidence (samples.parquet).

A share of examples: Wilson's score interval (Wilson 1927), which keeps its width at 0 and 1. All else: percentile
bootstrap over examples (Efron 1979), 2000 resamples, fixed seed, candidate and teacher resampled together: they
answered the same questions, so most of the noise cancels in a difference. Resamples without spread tell nothing of
the uncertainty, so there are no bounds then; a model beside itself, the very same rows, is exact.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from featkd.errors import RunError
from featkd.result import Interval, Score

if TYPE_CHECKING:
    from pandas import DataFrame

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
LARGEST_LOG = 700.0
ROUNDING = 1e-9  # of a mean: no lead over chance
ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
Statistic = Callable[..., np.ndarray]


def score(candidate: "DataFrame", teacher: "DataFrame", chance: float | None) -> Score:
    """One task of one candidate beside the teacher's.

    Args:
        candidate, teacher: rows of one task from samples.parquet; the same examples in any order. Without a column
            `higher_is_better` it is true but for perplexities.
        chance: what guessing gives: an accuracy, or a unigram model's perplexity per the same unit. None if unknown.

    `retained` is (candidate - chance) / (teacher - chance), of logarithms for perplexities: nats above chance that
    are kept. It is None without a chance level or where the teacher is not better than chance, and has no interval
    where the teacher's lead over chance is not certain.
    Raises RunError when the two are not of the same examples.
    """
    paired = _exact if candidate is teacher else interval
    candidate, teacher = _aligned(candidate, teacher)
    metric = str(candidate["metric"].iloc[0])
    perplexity = is_perplexity(metric)
    up = bool(candidate["higher_is_better"].iloc[0]) if "higher_is_better" in candidate else not perplexity
    mine, theirs = _columns(candidate), _columns(teacher)
    both = (*mine, *theirs)
    if not perplexity:
        return Score(
            metric=metric,
            higher_is_better=up,
            estimate=mean(mine[0]),
            examples=len(candidate),
            chance=chance,
            difference=paired(_difference, both),
            retained=_retained(paired, _mean, both, chance, up),
        )
    return Score(
        metric=metric,
        higher_is_better=up,
        estimate=interval(_perplexity, mine),
        examples=len(candidate),
        chance=chance,
        difference=paired(lambda s, w, t, v, axis: _perplexity(s, w, axis) - _perplexity(t, v, axis), both),
        retained=_retained(paired, _nats_per_unit, both, None if chance is None else float(np.log(chance)), False),
        ratio=paired(_ratio, both),
    )


def compare(task_rows_a: "DataFrame", task_rows_b: "DataFrame") -> tuple[Literal["difference", "ratio"], Interval]:
    """Two candidates on one task: ("difference", a - b), for perplexities ("ratio", a / b), with its interval.

    Raises RunError when the two are not of the same examples.
    """
    paired = _exact if task_rows_a is task_rows_b else interval
    a, b = _aligned(task_rows_a, task_rows_b)
    both = (*_columns(a), *_columns(b))
    if is_perplexity(str(a["metric"].iloc[0])):
        return "ratio", paired(_ratio, both)
    return "difference", paired(_difference, both)


def is_perplexity(metric: str) -> bool:
    return metric.endswith("perplexity")


def is_accuracy(metric: str) -> bool:
    """Is it the share of right choices? Then guessing gives 1 / choices."""
    return metric in ACCURACIES


def mean(values: np.ndarray) -> Interval:
    """The mean of `values` [examples] with its interval: Wilson's where all are 0 or 1, else bootstrap."""
    from scipy.stats import binomtest

    if not np.isin(values, (0, 1)).all():
        return interval(lambda column, axis: column.mean(axis=axis), (values,))
    found = binomtest(int(values.sum()), len(values)).proportion_ci(LEVEL, method="wilson")
    return Interval(value=float(values.mean()), low=float(found.low), high=float(found.high))


def interval(statistic: Statistic, columns: tuple[np.ndarray, ...]) -> Interval:
    """A statistic of paired columns [examples] with its bootstrap interval.

    `statistic(*columns, axis)` reduces the examples' axis. No bounds for fewer than two examples, where a resample is
    not finite, or where all resamples give the same.
    """
    from scipy.stats import bootstrap

    value = float(statistic(*columns, axis=-1))
    if len(columns[0]) < 2:
        return Interval(value=value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resamples that are not a number: told by the missing bounds
        found = bootstrap(
            columns,
            statistic,
            n_resamples=RESAMPLES,
            batch=max(1, 2_000_000 // len(columns[0])),
            paired=True,
            vectorized=True,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(SEED),
        )
    low, high = (float(bound) for bound in found.confidence_interval)
    rounding = 1e-12 * max(1.0, abs(value))
    if not (np.isfinite(low) and np.isfinite(high)) or high - low <= rounding:
        return Interval(value=value)
    return Interval(value=value, low=low, high=high)


def _exact(statistic: Statistic, columns: tuple[np.ndarray, ...]) -> Interval:
    value = float(statistic(*columns, axis=-1))
    return Interval(value=value, low=value, high=value)


def _retained(
    paired: Callable[..., Interval], level: Statistic, both: tuple[np.ndarray, ...], chance: float | None, up: bool
) -> Interval | None:
    if chance is None:
        return None
    sign = 1.0 if up else -1.0

    def lead(s: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        return sign * (level(s, w, axis) - chance)

    if lead(*both[2:], axis=-1) <= ROUNDING:
        return None

    def share(s: np.ndarray, w: np.ndarray, t: np.ndarray, v: np.ndarray, axis: int) -> np.ndarray:
        of = lead(t, v, axis)
        return lead(s, w, axis) / np.where(of > ROUNDING, of, np.nan)

    return paired(share, both)


def _mean(scores: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    return scores.mean(axis=axis)


def _difference(s: np.ndarray, w: np.ndarray, t: np.ndarray, v: np.ndarray, axis: int) -> np.ndarray:
    return _mean(s, w, axis) - _mean(t, v, axis)


def _nats_per_unit(nats: np.ndarray, units: np.ndarray, axis: int) -> np.ndarray:
    """Logarithm of the corpus perplexity: -sum(log-likelihoods) / sum(tokens, words or bytes)."""
    return -nats.sum(axis=axis) / units.sum(axis=axis)


def _perplexity(nats: np.ndarray, units: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(np.minimum(_nats_per_unit(nats, units, axis), LARGEST_LOG))


def _ratio(s: np.ndarray, w: np.ndarray, t: np.ndarray, v: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(np.minimum(_nats_per_unit(s, w, axis) - _nats_per_unit(t, v, axis), LARGEST_LOG))


def _columns(rows: "DataFrame") -> tuple[np.ndarray, np.ndarray]:
    return rows["score"].to_numpy(np.float64), rows["weight"].to_numpy(np.float64)


def _aligned(a: "DataFrame", b: "DataFrame") -> tuple["DataFrame", "DataFrame"]:
    """Both sorted by example. RunError unless they are the same examples of one task and metric, each once."""
    a, b = a.sort_values("doc_id"), b.sort_values("doc_id")
    key = ["task", "metric", "doc_id"]
    same = len(a) == len(b) and len(a) > 0 and (a[key].to_numpy() == b[key].to_numpy()).all()
    if not same or a["task"].nunique() != 1:
        raise RunError("two measurements are not of the same examples of one task; measure both again")
    if a["doc_id"].duplicated().any():
        raise RunError(f"examples of {a['task'].iloc[0]} were scored more than once; measure again")
    return a, b
