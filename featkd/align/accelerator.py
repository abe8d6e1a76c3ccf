"""The fused head on an accelerator, in 16 bits and for the losses that kernels.py has; head.py does the others."""

import importlib.util

import torch

from featkd.align.output import Gradients, Head
from featkd.align.products import slices

BUDGET_BYTES = 1 << 30
WHOLE = 128  # tokens
HALVES = (torch.bfloat16, torch.float16)
TRITON = importlib.util.find_spec("triton") is not None
Teacher = tuple[torch.Tensor, Head] | None


def takes(hidden: torch.Tensor, head: Head, teacher: Teacher) -> bool:
    """Whether logits of this kind can come from here."""
    sides = [(hidden, head), *([teacher] if teacher else [])]
    return TRITON and all(
        states.is_cuda and one.weight is not None and one.weight.dtype in HALVES and not one.softcap
        for states, one in sides
    )


def losses_and_gradients(
    hidden: torch.Tensor,
    head: Head,
    targets: torch.Tensor,
    teacher: Teacher,
    temperature: float,
    ce_weight: float,
    budget_bytes: int | None,
    wanted: tuple[bool, ...],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Losses [tokens] of forward KL and cross-entropy, and, as `wanted`, the gradients of their mean by states, weight
    and bias."""
    from featkd.align.kernels import Workspace, forward_kl

    tokens, vocabulary, device = len(hidden), len(head.weight), hidden.device
    losses = torch.empty(tokens, dtype=torch.float32, device=device)
    gradients = Gradients(hidden, head, wanted)
    chunk = (budget_bytes or BUDGET_BYTES) // Workspace.bytes_per_token(vocabulary, teacher is not None)
    chunk = min(max(1, chunk // WHOLE) * WHOLE, (2**31 - 1) // vocabulary, tokens)  # offsets of 32 bits
    work = Workspace(chunk, vocabulary, teacher is not None, head.weight.dtype, device)
    for rows in slices(tokens, chunk):
        taught = teacher and (teacher[0][rows], teacher[1])
        losses[rows], gradient = forward_kl(hidden[rows], head, taught, targets[rows], temperature, ce_weight, work)
        gradients.add(rows, gradient)
    return losses, *gradients.found
