"""How many examples would settle what is open."""

import math
from collections.abc import Callable

from scipy.special import ndtr, ndtri

from featkd.result import Interval

POWER = 0.8
MOST = 1e6  # times as many


def examples_needed(
    observed: Interval, bound: float, examples: int, level: float, as_good: float | None = None
) -> int | None:
    """How many examples in all would decide on `bound`, one way or the other, with a probability of 80 %.

    The true figure is not known: what is known of it is the interval, and the probability is the mean over that
    (assurance, O'Hagan et al. 2005, 10.1002/pst.175). Planned with the estimate alone it would be too few in half of
    the cases. as_good: the figure of a student that is truly as good as the teacher; there are enough for it, too.
    None where the interval has no bounds, or is no wider than a point.
    """
    if observed.low is None or observed.high is None or observed.low == observed.high:
        return None
    z = float(ndtri((1 + level) / 2))
    error = (observed.high - observed.low) / (2 * z)
    distance = abs(observed.value - bound) / error

    def decided(log_times: float) -> float:
        then = math.exp(-log_times / 2)  # standard error with so many examples, over today's
        spread = math.sqrt(1 + then**2)
        return float(ndtr((distance - z * then) / spread) + ndtr((-distance - z * then) / spread)) - POWER

    times = 1.0 if decided(0.0) >= 0 else math.exp(_root(decided, math.log(MOST)))
    if as_good is not None and as_good != bound:
        times = max(times, ((z + float(ndtri(POWER))) * error / (as_good - bound)) ** 2)
    return math.ceil(examples * times)


def _root(rising: Callable[[float], float], most: float) -> float:
    """Where it crosses 0 between 0 and `most`, by halves: scipy.optimize takes longer to load than all else here."""
    low, high = 0.0, most
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= 0 else (middle, high)
    return high
