"""At which size a line through the students of one arm crosses a gate.

The line is least squares of what a gate looks at (what is retained; of perplexities the logarithm of the ratio to the
teacher's) against the logarithm of the number of parameters. At each size it is a weighted sum of the students'
figures, so of means over the same examples, and has Fieller's interval as they have; the crossing's interval are the
sizes whose interval holds the gate's bound. That the law is a line is assumed, not shown: between the sizes that were
tried it says little wrong, beyond them nothing is told.
"""

import numpy as np

from featkd import spec
from featkd.decide.evidence import Evidence, guessing, of_task
from featkd.measure.statistics import ROUNDING, Sample, aligned, groups, is_perplexity
from featkd.result import Crossing, Interval

FEWEST = 3  # sizes, to draw a line through
GRID = 201


def crossings(poc: spec.Spec, evidence: list[Evidence], chance: dict[str, float]) -> list[Crossing]:
    """Of every blocking gate on what is retained or on a perplexity's ratio, and every arm and precision."""
    teacher, *students = evidence
    lines: dict[tuple[str, str], list[Evidence]] = {}
    for found in students:
        if found.samples is not None and found.training:
            lines.setdefault((found.arm, found.precision), []).append(found)
    made = []
    for rule in poc.rules("teacher"):
        section, *task, measure = rule.metric.split(".")
        if rule.severity != "block" or section != "quality" or measure not in ("retained", "ratio"):
            continue
        for (arm, precision), line in lines.items():
            if len({found.training.parameters for found in line}) >= FEWEST:
                size = _crossing(rule, ".".join(task), measure, line, teacher, chance)
                if size is not None:
                    made.append(Crossing(metric=rule.metric, arm=arm, precision=precision, parameters=size))
    return made


def _crossing(
    rule: spec.Gate, task: str, measure: str, line: list[Evidence], teacher: Evidence, chance: dict[str, float]
) -> Interval | None:
    rows = [of_task(one.samples, task) for one in (*line, teacher)]
    if not all(len(one) for one in rows):  # a group of lm-eval tasks has no figure of its own
        return None
    tables = aligned(rows)
    scores, units = np.stack([rows["score"] for rows in tables]), tables[0]["weight"].to_numpy(np.float64)
    bound = rule.at_least if rule.at_least is not None else rule.at_most
    if measure == "ratio":
        leads, base, wanted = scores[-1] - scores[:-1], units, float(np.log(bound))
    else:
        guess = chance.get(task, guessing(tables[0]))
        if guess is None:
            return None
        nothing = -np.log(guess) * units if is_perplexity(str(tables[0]["metric"].iloc[0])) else guess
        leads, base, wanted = scores[:-1] - nothing, scores[-1] - nothing, bound
        if base.sum() <= ROUNDING * units.sum():
            return None
    sizes = np.log([one.training.parameters for one in line])
    return _where(sizes, leads, base, wanted, Sample(groups(tables[0])))


def _where(sizes: np.ndarray, leads: np.ndarray, base: np.ndarray, bound: float, sample: Sample) -> Interval | None:
    """sizes: [students], logarithms. leads: [students, examples]; base: [examples]. None where the line does not cross
    the bound between the smallest size and the largest; a bound beyond them is missing."""
    grid = np.linspace(sizes.min(), sizes.max(), GRID)
    apart = sizes - sizes.mean()
    weights = 1 / len(sizes) + np.outer(grid - sizes.mean(), apart) / (apart**2).sum()  # [grid, students]
    found = [sample.ratio((row @ leads)[None], base) for row in weights]
    values = np.array([one.value for one in found]) - bound
    if values[0] * values[-1] > 0 or values[0] == values[-1]:
        return None
    holds = [place for place, one in enumerate(found) if one.low is None or one.low <= bound <= one.high]
    holds = holds or [int(np.abs(values).argmin())]
    low, high = (np.exp(grid[end]) if 0 < end < GRID - 1 else None for end in (min(holds), max(holds)))
    value = grid[0] + (grid[-1] - grid[0]) * values[0] / (values[0] - values[-1])
    return Interval(value=float(np.exp(value)), low=low, high=high)
