"""Which student layer learns from which teacher layer.

Layers are hidden-state indices: 0 is the embedding, n the output of block n.
"""

from itertools import combinations

import torch

from featkd.align.relations import cka
from featkd.errors import InputError

Pairs = list[tuple[int, int]]


def layer_pairs(wanted: Pairs | str, student_layers: int, teacher_layers: int) -> Pairs:
    """(student, teacher) pairs.

    uniform: the embedding, and the student's blocks next to one and two thirds of its depth, each with the teacher's
    block at the same relative depth; never a last block, which hurts (arXiv 2407.14679, table 17).
    last-k: the k blocks before the last, counted from the end on both sides.
    auto: the student's layers of uniform with the teacher's too, until `most_similar` has seen their states.
    Raises InputError for an index out of range.
    """
    if wanted in ("uniform", "auto"):
        middle = sorted({round(student_layers * share) for share in (1 / 3, 2 / 3)})
        pairs = [(s, round(s / student_layers * teacher_layers)) for s in middle]
        return [(0, 0), *((s, t) for s, t in pairs if 0 < s < student_layers and 0 < t < teacher_layers)]
    if isinstance(wanted, str):
        count = int(wanted.removeprefix("last-"))
        if count >= min(student_layers, teacher_layers):
            raise InputError(
                f"distillation.layer_pairs: {wanted} needs {count} blocks before the last; the student has "
                f"{student_layers} in all, the teacher {teacher_layers}"
            )
        return [(student_layers - back, teacher_layers - back) for back in range(count, 0, -1)]
    for s, t in wanted:
        if not (0 <= s <= student_layers and 0 <= t <= teacher_layers):
            raise InputError(
                f"distillation.layer_pairs: ({s}, {t}) is out of range; the student has 0 to {student_layers}, "
                f"the teacher 0 to {teacher_layers}"
            )
    return [(s, t) for s, t in wanted]


def similarities(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Debiased linear CKA of every student state with every teacher state, [student layers + 1, teacher layers + 1].

    States [tokens, hidden] of the same tokens.
    """
    return torch.stack([torch.stack([cka(s, t, debiased=True) for t in teacher]) for s in student])


def most_similar(pairs: Pairs, found: torch.Tensor) -> Pairs:
    """The same student layers, each with another teacher layer: deeper with deeper, no last block, and of all such
    maps the one with the largest sum of `similarities`."""
    layers = [s for s, _ in pairs]

    def total(chosen: tuple[int, ...]) -> float:
        return float(sum(found[s, t] for s, t in zip(layers, chosen, strict=True)))

    return list(zip(layers, max(combinations(range(found.shape[1] - 1), len(layers)), key=total), strict=True))
