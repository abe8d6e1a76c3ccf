"""The three matrix products of an output layer, in the form that is fastest where tokens are few.

W is the weight [vocabulary, hidden]. Products are float32, also of bf16: on an accelerator they come out in it, on a
processor weights become float32 block by block. Where a processor multiplies bf16 fast, its products are bf16 (their
sums are float32 inside), and logits come less a number per token that head.py chooses, taken off before the rounding.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BLOCK = 2048  # rows of W per product on a processor
PARTS = 8
WHOLE = 64  # an accelerator takes five times as long for sums whose length is no multiple of a few
FAST_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
ONE_DNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def one_dnn() -> Iterator[None]:
    """Float32 products by oneDNN, twice as fast on AMD's processors as by the library that torch takes by default.

    torch asks oneDNN only where bf16 arithmetic is allowed; without AMX oneDNN makes no use of that. No change where a
    probe finds the products less exact than float32's.
    """
    if not exact_one_dnn():
        yield
        return
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@functools.cache
def exact_one_dnn() -> bool:
    """Whether torch's float32 products can be had from oneDNN, and are those of float32."""
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if not (ONE_DNN and torch.cpu._is_avx512_supported() and hasattr(setting, "fp32_precision")):
        return False
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=random) for shape in ((128, 512), (512, 128)))
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    found, setting.fp32_precision = a @ b, before
    exact = a.double() @ b.double()
    return float((found - exact).norm() / exact.norm()) < 1e-6


def slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def times_transposed(states: torch.Tensor, weight: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    """out = factor * states weight^T."""
    if states.is_cuda:
        _product(states, weight.T, out).mul_(factor)
        return
    x = states.float() * factor
    if exact_one_dnn() and weight.dtype == torch.float32:
        torch.mm(x, weight.T, out=out)
        return
    for block in slices(len(weight), BLOCK):
        rows = weight[block].float()
        if ONE_DNN and not exact_one_dnn():  # with few tokens up to twice as fast as torch.mm
            out[:, block] = torch.ops.mkldnn._linear_pointwise(x, rows, None, "none", [], "")
        else:
            torch.mm(x, rows.T, out=out[:, block])


def logits_type(weight: torch.Tensor | None) -> torch.dtype:
    """What the logits of a head are kept in, and their gradient: bf16 if that is its type and the processor is fast."""
    bf16 = weight is not None and weight.dtype == torch.bfloat16 and not weight.is_cuda and FAST_BF16
    return torch.bfloat16 if bf16 else torch.float32


def shifted_times_transposed(
    states: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, out: torch.Tensor
) -> None:
    """out = states weight^T - shift, all bf16 and rounded once; shift [tokens, 1]."""
    out.copy_(shift.neg().expand_as(out))
    out.addmm_(states, weight.T)


def by_states(gradient: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """gradient W [tokens, hidden]; float32, or the type of both."""
    if weight is None:
        return gradient
    if gradient.is_cuda:
        gradient, whole = gradient.to(weight.dtype), len(weight) // WHOLE * WHOLE
        total = _product(gradient[:, :whole], weight[:whole])
        return total if whole == len(weight) else total.add_(_product(gradient[:, whole:], weight[whole:]))
    if gradient.dtype == weight.dtype and (exact_one_dnn() or weight.dtype == torch.bfloat16):
        return gradient @ weight
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
    if weight is None:
        return 0
    vocabulary, hidden = weight.shape
    return hidden if logits_type(weight) == torch.bfloat16 else min(BLOCK, vocabulary) + PARTS * hidden


def add_by_weight(
    total: torch.Tensor, gradient: torch.Tensor, states: torch.Tensor, factor: float, first: bool
) -> None:
    """total (+)= factor * gradient^T states, float32."""
    if gradient.is_cuda and states.dtype != torch.float32:
        by = gradient.to(states.dtype).T
        torch.addmm(total, by, states, out_dtype=torch.float32, beta=float(not first), alpha=factor, out=total)
    elif gradient.dtype == torch.bfloat16:
        for block in slices(gradient.shape[1], BLOCK):
            product = gradient[:, block].T @ states
            if first:
                torch.mul(product, factor, out=total[block])
            else:
                total[block].add_(product, alpha=factor)
    else:
        total.addmm_(gradient.T, states.float(), beta=float(not first), alpha=factor)


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a b in float32, also of bf16 factors (on an accelerator, whose own output type would round the logits)."""
    return torch.mm(a, b, out=out) if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32, out=out)
