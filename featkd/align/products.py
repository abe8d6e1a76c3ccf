"""The three matrix products of an output layer, in float32, in the form that is fastest where tokens are few.

W is the weight [vocabulary, hidden]. On a processor bf16 weights become float32 block by block; on an accelerator
products of bf16 come out in float32, since logits rounded to bf16 spoil the gradient by several percent.
"""

from collections.abc import Iterator

import torch

BLOCK = 2048  # rows of W per product on a processor
PARTS = 8
ONE_DNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def times_transposed(states: torch.Tensor, weight: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    """out = factor * states weight^T."""
    if states.is_cuda:
        _product(states, weight.T, out).mul_(factor)
        return
    x = states.float() * factor
    for block in slices(len(weight), BLOCK):
        rows = weight[block].float()
        if ONE_DNN:  # with few tokens up to twice as fast as torch.mm
            out[:, block] = torch.ops.mkldnn._linear_pointwise(x, rows, None, "none", [], "")
        else:
            torch.mm(x, rows.T, out=out[:, block])


def by_states(gradient: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """gradient W [tokens, hidden], float32."""
    if weight is None:
        return gradient
    if gradient.is_cuda:
        return _product(gradient.to(weight.dtype), weight)
    parts = min(PARTS, len(weight) // BLOCK) if weight.dtype == torch.float32 else 0
    if parts > 1:  # sums over parts of the vocabulary side by side: a third faster than one long sum
        whole = len(weight) // parts * parts
        split = gradient[:, :whole].unflatten(1, (parts, -1)).movedim(1, 0)
        total = torch.bmm(split, weight[:whole].unflatten(0, (parts, -1))).sum(0)
        return total.addmm_(gradient[:, whole:], weight[whole:])
    total = torch.zeros(len(gradient), weight.shape[1])
    for block in slices(len(weight), BLOCK):
        total.addmm_(gradient[:, block], weight[block].float())
    return total


def held_per_token(weight: torch.Tensor | None) -> int:
    """The most that a product here holds beside its arguments, in float32 numbers per token."""
    return 0 if weight is None else min(BLOCK, len(weight)) + PARTS * weight.shape[1]


def add_by_weight(
    total: torch.Tensor, gradient: torch.Tensor, states: torch.Tensor, factor: float, first: bool
) -> None:
    """total (+)= factor * gradient^T states, float32."""
    if gradient.is_cuda and states.dtype != torch.float32:
        product = _product(gradient.to(states.dtype).T, states).mul_(factor)
        total.copy_(product) if first else total.add_(product)
    else:
        total.addmm_(gradient.T, states.float(), beta=float(not first), alpha=factor)


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a b in float32, also of bf16 factors (on an accelerator, whose own output type would round the logits)."""
    return torch.mm(a, b, out=out) if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32, out=out)
