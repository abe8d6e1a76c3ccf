"""Figures with their intervals, from per-example evidence (samples.parquet).

Every figure is a ratio of two means over the same examples, candidate and teacher side by side: the noise that they
share cancels. Its interval is Fieller's (1954): all r for which mean(numerator - r * denominator) = 0 is not rejected.
The variance is that between documents (column `group`), for examples of one document say the same twice, with
Student's t. Of scores from 0 to 1 half an example is added to each cell of the table right or wrong x right or wrong
(Agresti & Min 2005, 10.1002/sim.1781): without it intervals are too narrow where few examples differ, and empty where
none does. Of several seeds, variance of seeds and of examples add up, with Satterthwaite's (1946) degrees of freedom.
A bound on the side where the differences have their long tail is moved out by what their skewness makes it too tight
(Johnson 1978, 10.1080/01621459.1978.10480051); the other one is left, for a skewness is not known that well.
A share of examples alone has Wilson's score interval (1927). `make bench-verdict` shows what all this covers.

Bounds are missing where the data cannot tell them; a model beside itself, the very same rows, is exact.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np

from featkd.errors import RunError
from featkd.result import Interval, Score

if TYPE_CHECKING:
    from pandas import DataFrame

LEVEL = 0.95
LARGEST_LOG = 700.0
ROUNDING = 1e-9  # of a mean: no lead over chance
ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
CELLS = np.array([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
CELL_WEIGHT = 0.5


def score(
    candidate: "DataFrame | list[DataFrame]", teacher: "DataFrame", chance: float | None, level: float = LEVEL
) -> Score:
    """One task of one candidate beside the teacher's.

    Args:
        candidate: rows of one task from samples.parquet, or such rows of each seed: then the figures are those of the
            recipe, the mean over seeds. teacher: the same examples in any order. Without a column
            `higher_is_better` it is true but for perplexities; without `group` every example is a document.
        chance: what guessing gives: an accuracy, or a unigram model's perplexity per the same unit. None if unknown.

    `retained` is (candidate - chance) / (teacher - chance), of logarithms for perplexities: nats above chance that
    are kept. It is None without a chance level or where the teacher is not better than chance, and has no bounds
    where the teacher's lead over chance is not certain.
    Raises RunError when the two are not of the same examples.
    """
    seeds = candidate if isinstance(candidate, list) else [candidate]
    itself = len(seeds) == 1 and seeds[0] is teacher
    *seeds, teacher = aligned([*seeds, teacher])
    first, metric = seeds[0], str(seeds[0]["metric"].iloc[0])
    mine = np.stack([rows["score"].to_numpy(np.float64) for rows in seeds])
    theirs, units = (teacher[name].to_numpy(np.float64) for name in ("score", "weight"))
    sample = Sample(groups(teacher), level, itself)
    common = {"metric": metric, "examples": len(first), "chance": chance}
    if not is_perplexity(metric):
        up = bool(first["higher_is_better"].iloc[0]) if "higher_is_better" in first else True
        return Score(
            **common,
            higher_is_better=up,
            documents=sample.documents,
            estimate=sample.mean(mine),
            difference=sample.difference(mine, theirs),
            retained=_retained(sample, mine, theirs, np.ones_like(theirs), chance, up, _cells(mine, theirs)),
        )
    nats, base = -mine, -theirs
    return Score(
        **common,
        higher_is_better=False,
        documents=sample.documents,
        estimate=_exp(sample.alone.ratio(nats, units)),
        difference=sample.ratio(_apart(nats, units) - _apart(base, units), units),
        retained=_retained(sample, nats, base, units, None if chance is None else float(np.log(chance)), False),
        ratio=_exp(sample.ratio(nats - base, units)),
    )


def compare(
    a: "DataFrame | list[DataFrame]", b: "DataFrame | list[DataFrame]", level: float = LEVEL
) -> tuple[Literal["difference", "ratio"], Interval]:
    """Two candidates on one task: ("difference", a - b), for perplexities ("ratio", a / b), with its interval.

    Of several seeds, seed by seed: rows of each, in the same order.
    Raises RunError when the two are not of the same examples.
    """
    a, b = ([found] if not isinstance(found, list) else found for found in (a, b))
    itself = all(mine is other for mine, other in zip(a, b, strict=True))
    rows = aligned([*a, *b])
    scores = np.stack([found["score"].to_numpy(np.float64) for found in rows])
    mine, other = scores[: len(a)], scores[len(a) :]
    sample, units = Sample(groups(rows[0]), level, itself), rows[0]["weight"].to_numpy(np.float64)
    if is_perplexity(str(rows[0]["metric"].iloc[0])):
        return "ratio", _exp(sample.ratio(other - mine, units))
    return "difference", sample.difference(mine, other)


def mean(values: np.ndarray, groups: np.ndarray | None = None, level: float = LEVEL) -> Interval:
    """The mean of `values` [examples] with its interval; `groups` [examples]: which document each is from."""
    return Sample(groups if groups is not None else np.arange(len(values)), level).mean(values[None])


def is_perplexity(metric: str) -> bool:
    return metric.endswith("perplexity")


def is_accuracy(metric: str) -> bool:
    """Is it the share of right choices? Then guessing gives 1 / choices."""
    return metric in ACCURACIES


def counts_right(metric: str) -> bool:
    """Is it a share of right answers?"""
    return is_accuracy(metric) or metric == "exact_match"


class Sample:
    """The examples of one task, in documents, and the level of its intervals."""

    def __init__(self, groups: np.ndarray, level: float = LEVEL, exact: bool = False) -> None:
        """groups: [examples], any labels. exact: what is asked is of a model beside itself."""
        names, self._document = np.unique(groups, return_inverse=True)
        self.documents, self.level, self.exact = len(names), level, exact

    @property
    def alone(self) -> "Sample":
        """For figures that nothing stands beside."""
        return Sample(self._document, self.level)

    def mean(self, values: np.ndarray) -> Interval:
        """Over `values` [seeds, examples]: of one seed's rights and wrongs Wilson's interval, else as `ratio`."""
        from scipy.special import stdtrit

        if len(values) > 1 or not np.isin(values, (0, 1)).all() or self.documents < 2:
            return self.alone.ratio(values, np.ones(values.shape[1]))
        share = float(values.mean())
        effective = values.size / self._design_effect(values[0] - share)
        square = stdtrit(self.documents - 1, (1 + self.level) / 2) ** 2
        middle = (share + square / (2 * effective)) / (1 + square / effective)
        half = np.sqrt(square * (share * (1 - share) / effective + square / (4 * effective**2))) / (
            1 + square / effective
        )
        return Interval(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))

    def share(self, values: np.ndarray) -> Interval:
        """The mean of `values` [examples] from 0 to 1; half an example is added at each end if they are not 0 or 1."""
        if np.isin(values, (0, 1)).all():
            return self.mean(values[None])
        return self.alone.ratio(values[None], np.ones(len(values)), np.array([0.0, 1.0]), np.ones(2))

    def difference(self, mine: np.ndarray, theirs: np.ndarray) -> Interval:
        """Of two means, paired by example. mine: [seeds, examples]; theirs: [examples], or of the same seeds."""
        cells = _cells(mine, theirs)
        return self.ratio(mine - theirs, np.ones(mine.shape[1]), cells @ [1, -1], np.ones(len(cells)))

    def ratio(
        self,
        above: np.ndarray,
        below: np.ndarray,
        cells_above: np.ndarray = CELLS[:0, 0],
        cells_below: np.ndarray = CELLS[:0, 0],
    ) -> Interval:
        """mean(above) / mean(below), Fieller's interval. above: [seeds, examples]; below: [examples], of no seed.

        cells: the same of each added kind of example [cells].
        """
        each = above.mean(0)
        value = float(each.sum() / below.sum())
        if self.exact:
            return Interval(value=value, low=value, high=value)
        if self.documents < 2:
            return Interval(value=value)
        cells = np.stack([cells_above, cells_below])
        total_above, total_below = np.array([each.sum(), below.sum()]) + CELL_WEIGHT * cells.sum(1)
        spread = np.cov(self._totals(each), self._totals(below)) * self.documents
        spread += CELL_WEIGHT * self._design_effect(each - value * below) * cells @ cells.T
        spread_of_seeds, freedom = self._seeds(above, each, spread, value)
        spread[0, 0] += spread_of_seeds
        low, high = self._critical(each - value * below, float([1, -value] @ spread @ [1, -value]), freedom)
        bounds = {
            "low": _fieller(total_above, total_below, spread, low, -1),
            "high": _fieller(total_above, total_below, spread, high, 1),
        }
        return Interval(value=value, **(bounds if None not in bounds.values() else {}))

    def _critical(self, rest: np.ndarray, variance: float, freedom: float) -> tuple[float, float]:
        """How many standard errors off the lower and the upper bound are. rest: [examples]; variance: of its sum."""
        from scipy.special import ndtri, stdtrit

        t, z = stdtrit(freedom, (1 + self.level) / 2), ndtri((1 + self.level) / 2)
        skewness = (self._totals(rest) ** 3).sum() / variance**1.5 if variance > 0 else 0.0
        shift = float(skewness * (1 + 2 * z**2) / 6)
        return t + max(0.0, -shift), t + max(0.0, shift)

    def _seeds(self, above: np.ndarray, each: np.ndarray, spread: np.ndarray, value: float) -> tuple[float, float]:
        """What seeds add to the variance of the sum of `above`, and the degrees of freedom of all of it at `value`."""
        seeds, freedom = len(above), self.documents - 1
        if seeds == 1:
            return 0.0, freedom
        of_examples = float([1, -value] @ spread @ [1, -value])
        of_seeds = above.sum(1).var(ddof=1) / seeds
        left = np.stack([self._totals(one) for one in above - each])
        both = ((left - left.mean(1, keepdims=True)) ** 2).sum() / (seeds - 1) / seeds
        total = max(of_examples + of_seeds - both, of_examples, of_seeds)
        parts = of_seeds**2 / (seeds - 1) + of_examples**2 / freedom
        return total - of_examples, total**2 / parts if parts else freedom

    def _totals(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._document, weights=values, minlength=self.documents)

    def _design_effect(self, rest: np.ndarray) -> float:
        """Variance of a sum of `rest` [examples] by documents over that of unrelated examples; 1 at least.

        Where nothing varies, examples of a document are taken to be one.
        """
        squares = (rest**2).sum()
        alike = len(rest) / self.documents
        return max(1.0, float((self._totals(rest) ** 2).sum() / squares)) if squares else alike


def _fieller(above: float, below: float, spread: np.ndarray, t: float, side: int) -> float | None:
    """The lower (-1) or upper (1) root r of (above - r below)^2 = t^2 (spread of that), if there is one."""
    a, b, c = (
        below**2 - t**2 * spread[1, 1],
        above * below - t**2 * spread[0, 1],
        above**2 - t**2 * spread[0, 0],
    )
    if a <= 0 or b**2 - a * c <= (ROUNDING * above * below) ** 2 + 1e-300:
        return None
    return float((b + side * np.sqrt(b**2 - a * c)) / a)


def _retained(
    sample: Sample,
    mine: np.ndarray,
    theirs: np.ndarray,
    units: np.ndarray,
    chance: float | None,
    up: bool,
    cells: np.ndarray = CELLS[:0],
) -> Interval | None:
    """Of sums per example, `chance` per unit."""
    if chance is None:
        return None
    sign = 1.0 if up else -1.0
    lead, base = sign * (mine - chance * units), sign * (theirs - chance * units)
    if base.sum() <= ROUNDING * units.sum():
        return None
    return sample.ratio(lead, base, *(sign * (cells.T - chance)))


def _apart(nats: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Per example, what sums up to units x perplexity, and deviates as the perplexity does to first order."""
    logarithm = nats.sum(-1, keepdims=True) / units.sum()
    return np.exp(np.minimum(logarithm, LARGEST_LOG)) * (nats - logarithm * units + units)


def _exp(interval: Interval) -> Interval:
    bounds = {name: bound for name, bound in interval if bound is not None}
    return Interval(**{name: float(np.exp(min(bound, LARGEST_LOG))) for name, bound in bounds.items()})


def _cells(*scores: np.ndarray) -> np.ndarray:
    """CELLS for scores from 0 to 1, none for others."""
    return CELLS if all(((one >= 0) & (one <= 1)).all() for one in scores) else CELLS[:0]


def groups(rows: "DataFrame") -> np.ndarray:
    return (rows["group"] if "group" in rows else rows["doc_id"]).to_numpy()


def aligned(all_rows: "list[DataFrame]") -> "list[DataFrame]":
    """Each sorted by example. RunError unless they are the same examples of one task and metric, each once."""
    tables = [rows if rows["doc_id"].is_monotonic_increasing else rows.sort_values("doc_id") for rows in all_rows]
    numbers = [rows["doc_id"].to_numpy() for rows in tables]
    about = {(*rows["task"].unique(), *rows["metric"].unique()) for rows in tables}
    one = len(about) == 1 and len(next(iter(about))) == 2
    if not (one and all(np.array_equal(numbers[0], other) for other in numbers)):
        raise RunError("two measurements are not of the same examples of one task; measure both again")
    if len(np.unique(numbers[0])) < len(numbers[0]):
        raise RunError(f"examples of {tables[0]['task'].iloc[0]} were scored more than once; measure again")
    return tables
