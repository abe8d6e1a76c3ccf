"""Which students may be called a go, so that however many are tried, a recommendation is false in at most 5 % of PoCs.

Declared before anything is measured: students of one arm and precision are a line, tested from the largest size down.
A student is tested only once those before it passed, so a line needs no correction for its length (Maurer et al.
1995). The lines share the 5 %; one that is through leaves its share to the others: the graphical procedure of Bretz et
al. 2009 (10.1002/sim.3495). No test is done at more than 2.5 %, the one side of a 95 % interval.
"""

from collections.abc import Callable
from typing import NamedTuple

FALSE_GO = 0.05
MOST = 0.025


class Tested(NamedTuple):
    """level: of the two-sided intervals. reached: whether all before it in its line passed."""

    level: float
    reached: bool


def levels(lines: list[list[str]], passes: Callable[[str, float], bool]) -> dict[str, Tested]:
    """Each student to the level at which it was tested last. `passes(student, level)`."""
    waiting = [list(line) for line in lines if line]
    share = [FALSE_GO / max(1, len(waiting))] * len(waiting)
    tested: dict[str, Tested] = {}
    while passed := [place for place, line in enumerate(waiting) if line and passes(line[0], _level(share[place]))]:
        tested |= {waiting[place].pop(0): Tested(_level(share[place]), True) for place in passed}
        share = _shared_on(waiting, share)
    for line, part in zip(waiting, share, strict=True):
        tested |= {name: Tested(_level(part), place == 0) for place, name in enumerate(line)}
    return tested


def _level(share: float) -> float:
    return 1 - 2 * min(share, MOST)


def _shared_on(waiting: list[list[str]], share: list[float]) -> list[float]:
    """The shares of lines that are through go to the others, in equal parts."""
    open_ = sum(bool(line) for line in waiting)
    if not open_:
        return share
    left = sum(part for line, part in zip(waiting, share, strict=True) if not line)
    return [part + left / open_ if line else 0.0 for line, part in zip(waiting, share, strict=True)]
