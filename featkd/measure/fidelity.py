"""Does the candidate give the teacher's answers? Accuracy can agree where the answers do not (arXiv 2407.09141).

Nor is all agreement good: a student copies its teacher's mistakes, too (arXiv 2510.12615), so that is told apart.
"""

from typing import TYPE_CHECKING

import numpy as np

from featkd.errors import InputError
from featkd.measure.statistics import LEVEL, Sample, aligned, groups, mean
from featkd.result import Agreement, Calibration, Interval, Tokens, WorstClass

if TYPE_CHECKING:
    from pandas import DataFrame

BINS = 10
RESAMPLES = 1000
FEWEST = 20  # examples of a class to be looked at


def agreement(candidate_rows: "DataFrame", teacher_rows: "DataFrame", level: float = LEVEL) -> Agreement:
    """Answers of one multiple-choice task beside the teacher's.

    Args: rows of one task from samples.parquet, the same examples in any order.
    Raises InputError when the task has no choices, RunError when the examples differ.
    """
    from scipy.special import bdtr

    candidate, teacher = aligned([candidate_rows, teacher_rows])
    mine, theirs = candidate["choice"].to_numpy(), teacher["choice"].to_numpy()
    if (mine < 0).any() or (theirs < 0).any():
        raise InputError(f"fidelity: {candidate['task'].iloc[0]} is not a multiple-choice task")
    documents = groups(candidate)
    right, teacher_right = candidate["score"].to_numpy() > 0.5, teacher["score"].to_numpy() > 0.5
    same, lost, won = mine == theirs, teacher_right & ~right, ~teacher_right & right
    flips = int(lost.sum() + won.sum())
    mine_p, theirs_p = _probabilities(candidate), _probabilities(teacher)
    gold = candidate["gold"].to_numpy() if "gold" in candidate else np.full(len(candidate), -1)
    return Agreement(
        examples=len(candidate),
        agreement=_share(same, documents, level),
        correct_to_wrong=_share(lost, documents, level),
        wrong_to_correct=_share(won, documents, level),
        mcnemar_p=float(min(1.0, 2 * bdtr(min(lost.sum(), won.sum()), flips, 0.5))),
        on_right=_share(same[teacher_right], documents[teacher_right], level),
        on_wrong=_share(same[~teacher_right], documents[~teacher_right], level),
        kl=mean(_divergence(theirs_p, mine_p), documents, level) if mine_p is not None else None,
        calibration=_calibration(mine_p, theirs_p, gold, documents, level),
        worst_class=_worst_class(candidate, teacher, documents, level),
    )


def tokens(rows: "DataFrame", level: float = LEVEL) -> Tokens:
    """Next tokens of held-out text; rows of tokens.parquet. Intervals allow for tokens of one document being alike."""
    documents = rows["group"].to_numpy()
    return Tokens(
        tokens=len(rows),
        kl=mean(rows["kl"].to_numpy(np.float64), documents, level),
        agreement=mean(rows["same"].to_numpy(np.float64), documents, level),
    )


def _share(hits: np.ndarray, documents: np.ndarray, level: float) -> Interval | None:
    return mean(hits.astype(np.float64), documents, level) if len(hits) else None


def _probabilities(rows: "DataFrame") -> np.ndarray | None:
    """Of the choices [examples, most choices], 0 where an example has fewer; None where they were not kept."""
    if "choice_logprobs" not in rows or not rows["choice_logprobs"].map(len).all():
        return None
    most = int(rows["choice_logprobs"].map(len).max())
    logs = np.full((len(rows), most), -np.inf)
    for row, values in zip(logs, rows["choice_logprobs"], strict=True):
        row[: len(values)] = values
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence from p to q per example, nats."""
    tiny = np.finfo(np.float64).tiny
    return np.where(p > 0, p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny))), 0).sum(1)


def _calibration(
    mine: np.ndarray | None, theirs: np.ndarray | None, gold: np.ndarray, documents: np.ndarray, level: float
) -> Calibration | None:
    if mine is None or theirs is None or (gold < 0).any():
        return None
    one_hot = np.arange(mine.shape[1]) == gold[:, None]
    brier, of_teacher = (((p - one_hot) ** 2).sum(1) for p in (mine, theirs))
    confidence, hit = mine.max(1), mine.argmax(1) == gold
    return Calibration(
        ece=_ece(confidence, hit, documents, level),
        brier=mean(brier, documents, level),
        brier_difference=mean(brier - of_teacher, documents, level),
    )


def _ece(confidence: np.ndarray, hit: np.ndarray, documents: np.ndarray, level: float) -> Interval:
    """Guo et al., 1706.04599. Its noise never cancels: a well calibrated model has an ECE above 0, and those of
    resamples are higher still. So the interval is of the gaps of all bins: as far as a bootstrap over documents takes
    them from these, summed over bins, the ECE is off at most."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    names, document = np.unique(documents, return_inverse=True)
    gaps = np.zeros((len(names), BINS))
    np.add.at(gaps, (document, bins), confidence - hit)
    sizes = np.bincount(document, minlength=len(names))
    if len(names) < 2:
        return Interval(value=float(np.abs(gaps.sum(0)).sum() / len(hit)))
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    found = gaps.sum(0) / len(hit)
    drawn = times @ gaps / (times @ sizes)[:, None]
    value, off = np.abs(found).sum(), np.quantile(np.abs(drawn - found).sum(1), level)
    return Interval(value=float(value), low=float(max(0.0, value - off)), high=float(min(1.0, value + off)))


def _worst_class(
    candidate: "DataFrame", teacher: "DataFrame", documents: np.ndarray, level: float
) -> WorstClass | None:
    """At a level that allows for having looked at all of them (Bonferroni)."""
    if "class" not in candidate or candidate["class"].isna().all():
        return None
    sizes = candidate["class"].value_counts()
    names = sizes.index[sizes >= FEWEST]
    if len(names) < 2:
        return None
    behind = candidate["score"].to_numpy() - teacher["score"].to_numpy()
    places = {name: (candidate["class"] == name).to_numpy() for name in names}
    worst = min(names, key=lambda name: behind[places[name]].mean())
    at = places[worst]
    sample = Sample(documents[at], 1 - (1 - level) / len(names))
    return WorstClass(
        name=str(worst),
        examples=int(at.sum()),
        classes=len(names),
        difference=sample.difference(candidate["score"].to_numpy()[at][None], teacher["score"].to_numpy()[at]),
    )
