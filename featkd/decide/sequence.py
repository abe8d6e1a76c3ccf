"""Which students may be called a go, so that however many are tried, a recommendation is false in at most 5 % of PoCs.

Declared before anything is measured: students of one arm and precision are a line, tested from the largest size down.
A student is tested only once those before it passed, so a line needs no correction for its length (Maurer et al.
1995). The lines share an error; one that is through leaves its share to the others: the graphical procedure of Bretz et
al. 2009 (10.1002/sim.3495). They share 4 %: intervals are approximate, and where they promise most too much the rest of
the 5 % is needed (`make bench-verdict`). No test is done at more than 2.5 %, the one side of a 95 % interval.
"""

from collections.abc import Callable

SHARED = 0.04
MOST = 0.025


def levels(lines: list[list[str]], passes: Callable[[str, float], bool]) -> dict[str, float]:
    """Each student that was tested to the level of the two-sided intervals, the last; `passes(student, level)`.

    Those that are not in it were not reached.
    """
    waiting = [list(line) for line in lines if line]
    share = [SHARED / max(1, len(waiting))] * len(waiting)
    tested: dict[str, float] = {}
    while passed := [place for place, line in enumerate(waiting) if line and passes(line[0], _level(share[place]))]:
        tested |= {waiting[place].pop(0): _level(share[place]) for place in passed}
        share = _shared_on(waiting, share)
    return tested | {line[0]: _level(part) for line, part in zip(waiting, share, strict=True) if line}


def _level(share: float) -> float:
    return 1 - 2 * min(share, MOST)


def _shared_on(waiting: list[list[str]], share: list[float]) -> list[float]:
    """The shares of lines that are through go to the others, in equal parts."""
    open_ = sum(bool(line) for line in waiting)
    if not open_:
        return share
    left = sum(part for line, part in zip(waiting, share, strict=True) if not line)
    return [part + left / open_ if line else 0.0 for line, part in zip(waiting, share, strict=True)]
