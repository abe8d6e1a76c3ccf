"""Audits again and again: are answers further off than at the first one, and rarely said so where they are not?

The first audit of a champion is the reference; each later one, and the last `LONG` of them together, is tested against
it. Every test of every look spends an equal part of the probability of a false alarm (Bonferroni), so that of all looks
together it is at most `audit.false_alarm`, however they hang together; after `audit.looks` of them a new one begins.
What is tested is that two samples are of one distribution, and that answers do not hang together:

    shares of answers, feedback of 0 or 1   Fisher's exact test
    surprise, divergence, disagreement,     Mann & Whitney's test of ranks (1947); where many answers are alike its
    other feedback                          approximation fails, and Mood's median test, which is exact, takes its place
    far_off, answers more surprising than   how many of the first audit's are passed: the exceedance test, exact
    19 in 20 at the first audit             (Epstein 1954; hypergeometric)

An alarm is also of some size: the figure is worse by `audit.margins` at least. `audit.limits` are tested from the first
audit on, with the lower bound of the mean. What the traffic asks may change, too: an alarm says that answers are not
as they were, not why.
"""

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from scipy import stats

from featkd.judging import FIGURES_OF_LOGS, Audit
from featkd.parts import Part

if TYPE_CHECKING:
    from pandas import DataFrame

LONG = 8
SHARES = ("repetition", "empty", "drift", "personal_data")
QUANTILE = 0.95
FEWEST = 8  # answers that have a figure
ALIKE = 0.1  # share of one value among all from which ranks are not what is tested


class Tested(Part):
    """One figure of the answers of one look, or of the last ones together."""

    figure: str
    looks: int = Field(description="How many audits are taken together; 1: this one alone.")
    examples: int
    value: float
    reference: float | None = Field(None, description="At the first audit.")
    worse: float | None = Field(None, description="Than there; above 0 for the worse, of feedback too.")
    margin: float | None = None
    limit: float | None = None
    p: float = Field(description="Of a value as bad as this or worse, where nothing has changed.")
    level: float = Field(description="What p has to be at most for an alarm.")
    alarm: bool


def look(now: "DataFrame", before: "list[DataFrame]", audit: Audit) -> list[Tested]:
    """Everything tested at one look. before: answers.parquet of the earlier audits, the first one first."""
    tests = _tests(now, before, audit)
    level = audit.false_alarm / audit.looks / max(1, 2 * len(FIGURES_OF_LOGS) + len(audit.limits))
    return [test.model_copy(update={"level": level, "alarm": test.alarm and test.p <= level}) for test in tests]


def _tests(now: "DataFrame", before: "list[DataFrame]", audit: Audit) -> list[Tested]:
    """Their level is not known yet; alarm: the change is large enough to tell."""
    found = [_against_limit(name, limit, now) for name, limit in audit.limits.items()]
    if before:
        first, *later = before
        windows = [[now]] + ([[*later, now][-LONG:]] if later else [])
        for tables in windows:
            for name, margin in (FIGURES_OF_LOGS | audit.margins).items():
                found.append(_against_first(name, margin, tables, first))
    return [test for test in found if test]


def _against_first(name: str, margin: float, tables: "list[DataFrame]", first: "DataFrame") -> Tested | None:
    then, values = _values(name, first), np.concatenate([_values(name, table) for table in tables])
    if min(len(then), len(values)) < FEWEST:
        return None
    if name == "far_off":
        edge = np.sort(then)[-_passed(len(then))]
        then, values = (then > edge) * 1.0, (values > edge) * 1.0
    worse = values.mean() - then.mean()
    return Tested(
        figure=name, looks=len(tables), examples=len(values), value=_told(name, values.mean()),
        reference=_told(name, then.mean()), worse=worse, margin=margin, p=_p(name, values, then), level=0.0,
        alarm=bool(worse >= margin and worse > 0),
    )  # fmt: skip


def _p(name: str, values: np.ndarray, then: np.ndarray) -> float:
    if name == "far_off":  # passed: its _passed-th largest answer is the edge
        above, passed = int(values.sum()), _passed(len(then))
        return float(stats.hypergeom.sf(above - 1, len(values) + len(then), len(values), above + passed - 1))
    both = np.concatenate([values, then])
    if np.unique(both, return_counts=True)[1].max() > ALIKE * len(both):
        middle = np.median(both)
        edge = middle if (both > middle).any() else np.sort(np.unique(both))[-2:][0]
        table = [[(one > edge).sum(), (one <= edge).sum()] for one in (values, then)]
        return float(stats.fisher_exact(table, alternative="greater").pvalue)
    return float(stats.mannwhitneyu(values, then, alternative="greater", method="asymptotic").pvalue)


def _against_limit(name: str, limit: float, now: "DataFrame") -> Tested | None:
    values = _values(name, now)
    if len(values) < FEWEST:
        return None
    most = -limit if name == "feedback" else limit
    return Tested(
        figure=name, looks=1, examples=len(values), value=_told(name, values.mean()), limit=limit,
        p=_p_above(name, values, most), level=0.0, alarm=bool(values.mean() > most),
    )  # fmt: skip


def _p_above(name: str, values: np.ndarray, most: float) -> float:
    if np.isin(np.abs(values), (0, 1)).all():  # of feedback, with the other sign: how many are not good
        count, share = (int((values == 0).sum()), 1 + most) if name == "feedback" else (int(values.sum()), most)
        return float(stats.binomtest(count, len(values), min(1.0, max(0.0, share)), alternative="greater").pvalue)
    if values.std() == 0:
        return float(values[0] <= most)
    return float(stats.ttest_1samp(values, most, alternative="greater").pvalue)


def _values(name: str, table: "DataFrame") -> np.ndarray:
    """Of the answers that have the figure; more is worse, so feedback with the other sign."""
    column = table["surprise" if name == "far_off" else name].dropna().to_numpy(float)
    return -column if name == "feedback" else column


def _told(name: str, value: float) -> float:
    return -value if name == "feedback" else value


def _passed(n: int) -> int:
    """Which of the first audit's largest answers is the edge: 1 is the largest."""
    return max(1, round((1 - QUANTILE) * n))
