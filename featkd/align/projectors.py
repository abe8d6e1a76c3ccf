"""Maps from the student's width to the teacher's, one per layer pair. They belong to the loss and are never saved.

linear       trained, starts orthonormal, so that it changes neither lengths nor angles
orthonormal  trained, and kept orthonormal (arXiv 2403.06213)
pca          the teacher's principal directions, fitted on its states; frozen at first, then trained
low-rank     two linear maps through fewer dimensions
mlp          linear, GELU, linear
none         between equal widths
"""

import torch
from torch import nn

from featkd.errors import InputError

KINDS = ("auto", "none", "linear", "orthonormal", "pca", "low-rank", "mlp")


def check_projector(kind: str, student_width: int, teacher_width: int, rank: int | None) -> str:
    """The kind that is meant: auto is linear, or none between equal widths.

    Raises InputError for a projector between equal widths, for none between others, and for a rank that is no rank.
    """
    equal = student_width == teacher_width
    if kind == "auto":
        return "none" if equal else "linear"
    if equal and kind != "none":
        raise InputError(
            f"distillation.projector: {kind} between equal widths ({student_width}) would only blur the states; "
            "write none"
        )
    if kind == "none" and not equal:
        raise InputError(
            f"distillation.projector: none cannot join widths {student_width} and {teacher_width}; write linear"
        )
    if kind in ("orthonormal", "pca") and student_width > teacher_width:
        raise InputError(
            f"distillation.projector: {kind} needs a student no wider than its teacher, {student_width} is above "
            f"{teacher_width}; write linear"
        )
    if kind == "low-rank" and rank and rank >= min(student_width, teacher_width):
        raise InputError(
            f"distillation.projector_rank: {rank} is no lower than the widths {student_width} and {teacher_width}; "
            "write a lower one"
        )
    return kind


def projector(kind: str, student_width: int, teacher_width: int, rank: int | None, seed: int) -> nn.Module:
    """[tokens, student hidden] -> [tokens, teacher hidden]. rank: of low-rank; by default a quarter of the smaller
    width. The same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "none":
            return nn.Identity()
        if kind == "low-rank":
            rank = rank or max(1, min(student_width, teacher_width) // 4)
            return nn.Sequential(_linear(student_width, rank), _linear(rank, teacher_width))
        if kind == "mlp":
            return nn.Sequential(
                _linear(student_width, teacher_width), nn.GELU(), _linear(teacher_width, teacher_width)
            )
        made = _linear(student_width, teacher_width)
        return (
            nn.utils.parametrizations.orthogonal(made, orthogonal_map="householder") if kind == "orthonormal" else made
        )


def _linear(width: int, to: int) -> nn.Linear:
    made = nn.Linear(width, to, bias=False)
    nn.init.orthogonal_(made.weight)
    return made


def principal_directions(states: torch.Tensor, count: int) -> torch.Tensor:
    """[hidden, count], orthonormal: the directions through the origin along which states [tokens, hidden] are large.

    Not centred: cosines are taken from the origin.
    """
    states = states.double()
    _, directions = torch.linalg.eigh(states.T @ states)
    return directions[:, -count:].flip(-1).float()
