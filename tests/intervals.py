"""Intervals by an independent hand: pandas, bisection and quantiles of Student's t. Nothing of featkd is imported."""

import math
from typing import Any

import numpy as np
import pandas
from scipy.stats import norm
from scipy.stats import t as student_t


def fieller(
    above: pandas.Series,
    below: pandas.Series,
    groups: pandas.Series,
    cells: list,
    seeds: list[pandas.Series] | None = None,
    level: float = 0.95,
) -> tuple:
    """The ratio of two means with the bounds of r for which above - r below is not told from 0, found by bisection.

    seeds: what `above` is the mean of.
    """
    table = pandas.DataFrame({"above": above, "below": below, "group": groups})
    value = above.sum() / below.sum()
    totals = table.groupby("group")[["above", "below"]].sum()
    n = len(totals)
    rest = above - value * below
    by_group = rest.groupby(groups).sum()
    effect = max(1.0, (by_group**2).sum() / (rest**2).sum()) if (rest**2).sum() else len(rest) / n

    spread = by_group.var(ddof=1) * n + 0.5 * effect * sum((a - value * b) ** 2 for a, b in cells)
    added, freedom = 0.0, n - 1
    if seeds:
        of_seeds = np.var([one.sum() for one in seeds], ddof=1) / len(seeds)
        left = [(one - above).groupby(groups).sum() for one in seeds]
        shared = sum(((one - one.mean()) ** 2).sum() for one in left) / (len(seeds) - 1) / len(seeds)
        total = max(spread + of_seeds - shared, spread, of_seeds)
        added, freedom = total - spread, total**2 / (of_seeds**2 / (len(seeds) - 1) + spread**2 / (n - 1))
        spread = total
    shift = (by_group**3).sum() / spread**1.5 * (1 + 2 * norm.ppf((1 + level) / 2) ** 2) / 6 if spread else 0.0

    def surplus(r: float, sign: int) -> float:
        """Above 0 where r is rejected; sign: the side it is on, where the long tail may move it further out."""
        apart = totals.above - r * totals.below
        extra = [a - r * b for a, b in cells]
        variance = apart.var(ddof=1) * n + 0.5 * effect * sum(one**2 for one in extra) + added
        critical = student_t.ppf((1 + level) / 2, freedom) + max(0.0, sign * shift)
        return abs(apart.sum() + 0.5 * sum(extra)) - critical * math.sqrt(variance)

    middle = (above.sum() + 0.5 * sum(a for a, _ in cells)) / (below.sum() + 0.5 * sum(b for _, b in cells))
    bounds = []
    for sign in (-1, 1):
        near, far = 0.0, 1e-6
        while surplus(middle + sign * far, sign) < 0:
            near, far = far, 2 * far
            if far > 1e9:
                return value, None, None
        for _ in range(60):
            half = (near + far) / 2
            near, far = (near, half) if surplus(middle + sign * half, sign) > 0 else (half, far)
        bounds.append(middle + sign * near)
    return (value, *bounds)


def over_seeds(mine: list[pandas.DataFrame], others: list[pandas.DataFrame], chance: float | None) -> dict[str, Any]:
    """Of a recipe, the mean over seeds, beside a teacher (one table) or another recipe, seed by seed."""
    first, w, groups = mine[0], mine[0].weight, mine[0].group
    pairs = list(zip(mine, others * len(mine) if len(others) == 1 else others, strict=True))
    cells = [(a, b) for a in (0, 1) for b in (0, 1)]

    def told(each: list[pandas.Series], below: pandas.Series, added: list) -> tuple:
        return fieller(sum(each) / len(each), below, groups, added, each if len(each) > 1 else None)

    if first.metric[0].endswith("perplexity"):
        figures = {"estimate": [-a.score for a in mine], "ratio": [b.score - a.score for a, b in pairs]}
        return {name: tuple(math.exp(one) for one in told(each, w, [])) for name, each in figures.items()}
    ones = first.score * 0 + 1
    figures = {
        "estimate": told([a.score for a in mine], ones, []),
        "difference": told([a.score - b.score for a, b in pairs], ones, [(a - b, 1) for a, b in cells]),
    }
    if chance is not None and len(others) == 1 and others[0].score.mean() - chance > 1e-9:
        lead = [a.score - chance for a in mine]
        added = [(a - chance, b - chance) for a, b in cells]
        figures["retained"] = told(lead, others[0].score - chance, added)
    return figures


def average(values: pandas.Series, groups: pandas.Series, level: float = 0.95) -> tuple:
    return fieller(values.astype(float), values * 0 + 1.0, groups, [], level=level)


def share(hits: pandas.Series, groups: pandas.Series, level: float = 0.95) -> tuple:
    """Wilson's interval with as many examples as the documents are worth, and Student's t of them."""
    hits = hits.astype(float)
    n, p = groups.nunique(), hits.mean()
    if n < 2:
        return (p, None, None)
    rest = hits - p
    squares = (rest**2).sum()
    effect = max(1.0, (rest.groupby(groups).sum() ** 2).sum() / squares) if squares else len(hits) / n
    effective, t2 = len(hits) / effect, student_t.ppf((1 + level) / 2, n - 1) ** 2
    middle = (p + t2 / (2 * effective)) / (1 + t2 / effective)
    half = math.sqrt(t2 * (p * (1 - p) / effective + t2 / (4 * effective**2))) / (1 + t2 / effective)
    return (p, max(0.0, middle - half), min(1.0, middle + half))


def apart(mine: pandas.Series, theirs: pandas.Series, groups: pandas.Series, level: float = 0.95) -> tuple:
    """The paired difference of two shares."""
    cells = [(a - b, 1) for a in (0, 1) for b in (0, 1)]
    return fieller(mine - theirs, mine * 0 + 1.0, groups, cells, level=level)


def off_calibration(confidence: np.ndarray, hit: np.ndarray, groups: pandas.Series, level: float = 0.95) -> tuple:
    """ECE over ten bins; how far the gaps of bins are off: by documents drawn again and again, other ones than ours."""
    table = pandas.DataFrame({"bin": np.minimum(confidence * 10 // 1, 9), "gap": confidence - hit, "group": groups})
    each = table.pivot_table(index="group", columns="bin", values="gap", aggfunc="sum", fill_value=0.0)
    counts, found = table.groupby("group").size().to_numpy(), each.sum() / len(table)
    rng, off = np.random.default_rng(12345), []
    for _ in range(2000):
        drawn = rng.integers(len(each), size=len(each))
        off.append(np.abs(each.to_numpy()[drawn].sum(0) / counts[drawn].sum() - found.to_numpy()).sum())
    value, most = found.abs().sum(), np.quantile(off, level)
    return (value, max(0.0, value - most), min(1.0, value + most))
