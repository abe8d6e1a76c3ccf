"""Does the candidate give the teacher's answers? Accuracy can agree where the answers do not (arXiv 2407.09141)."""

from typing import TYPE_CHECKING

import numpy as np

from featkd.errors import InputError
from featkd.measure.statistics import LEVEL, aligned, groups, mean
from featkd.result import Agreement

if TYPE_CHECKING:
    from pandas import DataFrame


def agreement(candidate_rows: "DataFrame", teacher_rows: "DataFrame", level: float = LEVEL) -> Agreement:
    """Share of one multiple-choice task's examples with the teacher's answer, and the flips both ways.

    Args: rows of one task from samples.parquet, the same examples in any order.
    Raises InputError when the task has no choices, RunError when the examples differ.
    """
    candidate, teacher = aligned([candidate_rows, teacher_rows])
    mine, theirs = candidate["choice"].to_numpy(), teacher["choice"].to_numpy()
    if (mine < 0).any() or (theirs < 0).any():
        raise InputError(f"fidelity: {candidate['task'].iloc[0]} is not a multiple-choice task")
    right, teacher_right = candidate["score"].to_numpy() > 0.5, teacher["score"].to_numpy() > 0.5
    return Agreement(
        examples=len(candidate),
        agreement=mean((mine == theirs).astype(np.float64), groups(candidate), level),
        correct_to_wrong=float((teacher_right & ~right).mean()),
        wrong_to_correct=float((~teacher_right & right).mean()),
    )
