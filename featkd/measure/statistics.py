"""Figures with their 95 % intervals, from per-example evidence (samples.parquet).

Percentile bootstrap over examples (Efron 1979), 2000 resamples, fixed seed, candidate and teacher resampled
together: they answered the same questions, so most of the noise cancels in a difference.
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


def score(
    candidate: "DataFrame", teacher: "DataFrame", chance: float | None, higher_is_better: bool | None = None
) -> Score:
    """One task of one candidate beside the teacher's.

    Args:
        candidate, teacher: rows of one task from samples.parquet; the same examples in any order.
        chance: what guessing gives: an accuracy, or a unigram model's perplexity per the same unit. None if unknown.
        higher_is_better: of the metric; by default true but for perplexities.

    `retained` is (candidate - chance) / (teacher - chance), of logarithms for perplexities: nats above chance that
    are kept. It is None without a chance level or where the teacher is not better than chance, and has no interval
    where the teacher's lead over chance is not certain.
    Raises RunError when the two are not of the same examples.
    """
    candidate, teacher = _aligned(candidate, teacher)
    metric = str(candidate["metric"].iloc[0])
    perplexity = is_perplexity(metric)
    up = not perplexity if higher_is_better is None else higher_is_better
    mine, theirs = _columns(candidate), _columns(teacher)
    both = (*mine, *theirs)
    if not perplexity:
        return Score(
            metric=metric,
            higher_is_better=up,
            estimate=interval(_mean, mine),
            examples=len(candidate),
            chance=chance,
            difference=interval(lambda s, _, t, __, axis: _mean(s, _, axis) - _mean(t, __, axis), both),
            retained=_retained(_mean, both, chance, up),
        )
    return Score(
        metric=metric,
        higher_is_better=up,
        estimate=interval(_perplexity, mine),
        examples=len(candidate),
        chance=chance,
        difference=interval(lambda s, w, t, v, axis: _perplexity(s, w, axis) - _perplexity(t, v, axis), both),
        retained=_retained(_nats_per_unit, both, None if chance is None else float(np.log(chance)), False),
        ratio=interval(_ratio, both),
    )


def compare(task_rows_a: "DataFrame", task_rows_b: "DataFrame") -> tuple[Literal["difference", "ratio"], Interval]:
    """Two candidates on one task: ("difference", a - b), for perplexities ("ratio", a / b), with its interval.

    Raises RunError when the two are not of the same examples.
    """
    a, b = _aligned(task_rows_a, task_rows_b)
    both = (*_columns(a), *_columns(b))
    if is_perplexity(str(a["metric"].iloc[0])):
        return "ratio", interval(_ratio, both)
    return "difference", interval(lambda s, _, t, __, axis: _mean(s, _, axis) - _mean(t, __, axis), both)


def is_perplexity(metric: str) -> bool:
    return metric.endswith("perplexity")


def interval(statistic: Callable[..., np.ndarray], columns: tuple[np.ndarray, ...]) -> Interval:
    """A statistic of paired columns [examples] with its bootstrap interval; no bounds for fewer than two examples.

    `statistic(*columns, axis)` reduces the examples' axis. No bounds either where a resample is not finite.
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
    if not (np.isfinite(low) and np.isfinite(high)):
        return Interval(value=value)
    return Interval(value=value, low=low, high=high)


def _retained(
    level: Callable[..., np.ndarray], both: tuple[np.ndarray, ...], chance: float | None, up: bool
) -> Interval | None:
    if chance is None:
        return None
    sign = 1.0 if up else -1.0

    def lead(s: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        return sign * (level(s, w, axis) - chance)

    if lead(*both[2:], axis=-1) <= 0:
        return None

    def share(s: np.ndarray, w: np.ndarray, t: np.ndarray, v: np.ndarray, axis: int) -> np.ndarray:
        of = lead(t, v, axis)
        return lead(s, w, axis) / np.where(of > 0, of, np.nan)

    return interval(share, both)


def _mean(scores: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    return scores.mean(axis=axis)


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
    """Both sorted by example. RunError unless they are the same examples of one task and metric."""
    a, b = a.sort_values("doc_id"), b.sort_values("doc_id")
    key = ["task", "metric", "doc_id"]
    same = len(a) == len(b) and len(a) > 0 and (a[key].to_numpy() == b[key].to_numpy()).all()
    if not same or a["task"].nunique() != 1:
        raise RunError("two measurements are not of the same examples of one task; measure both again")
    return a, b
