"""Which student layer learns from which teacher layer, and the projectors between their widths."""

import torch

from featkd.errors import InputError


def layer_pairs(wanted: list[tuple[int, int]] | str, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """(student, teacher) hidden-state indices: 0 is the embedding, n the output of block n.

    uniform: the embedding, and the student's blocks next to one and two thirds of its depth, each with the teacher's
    block at the same relative depth; never a last block, which hurts (arXiv 2407.14679, table 17).
    Raises InputError for an index out of range.
    """
    if wanted == "uniform":
        middle = sorted({round(student_layers * share) for share in (1 / 3, 2 / 3)})
        pairs = [(s, round(s / student_layers * teacher_layers)) for s in middle]
        return [(0, 0), *((s, t) for s, t in pairs if 0 < s < student_layers and 0 < t < teacher_layers)]
    for s, t in wanted:
        if not (0 <= s <= student_layers and 0 <= t <= teacher_layers):
            raise InputError(
                f"distillation.layer_pairs: ({s}, {t}) is out of range; the student has 0 to {student_layers}, "
                f"the teacher 0 to {teacher_layers}"
            )
    return [(s, t) for s, t in wanted]


def projectors(pairs: list[tuple[int, int]], student_width: int, teacher_width: int, seed: int) -> torch.nn.ModuleList:
    """One per pair: Identity between equal widths, else a linear map that starts orthonormal.

    They belong to the loss, not to the student: they are never saved with it.
    """
    if student_width == teacher_width:
        return torch.nn.ModuleList(torch.nn.Identity() for _ in pairs)
    maps = torch.nn.ModuleList(torch.nn.Linear(student_width, teacher_width, bias=False) for _ in pairs)
    generator = torch.Generator().manual_seed(seed)
    for linear in maps:
        torch.nn.init.orthogonal_(linear.weight, generator=generator)
    return maps
