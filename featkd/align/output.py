"""The output layer: from hidden states to logits.

    logits = softcap(scale * (W h + bias)),  softcap(z) = cap * tanh(z / cap)

What is computed from logits is float32, also when states and weights are bf16. Where a processor multiplies bf16 fast,
logits and the gradient by them are kept as bf16, but logits less a number per token that is close to the largest of
them: what is rounded is then the distance from the likely tokens, small where probability is, and not the logit itself,
which spoils gradients by a percent and more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from featkd.align.products import (
    FAST_BF16,
    add_by_weight,
    by_states,
    logits_type,
    one_dnn,
    shifted_times_transposed,
    times_transposed,
)

NEAR = 8.0  # how far above the guess the largest logit may be, which is rounded by 1/64 at most then
OTHERS, SPREAD = 64, 100  # `_near_the_top` looks at targets of other positions, and at one token in so many


class Head(NamedTuple):
    """What turns hidden states into logits. weight [vocabulary, hidden]; None: the states are logits already."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def first(self, rows: int) -> "Head":
        """That of the first so many tokens of the vocabulary; the others are padding (vocabulary.py)."""
        if self.weight is None or rows >= len(self.weight):
            return self
        return self._replace(weight=self.weight[:rows], bias=None if self.bias is None else self.bias[:rows])


def plain_logits(states: torch.Tensor, head: Head) -> torch.Tensor:
    """[..., vocabulary] from states [..., hidden], all at once, in the type that a linear layer would give."""
    z = states if head.weight is None else F.linear(states, head.weight, head.bias)
    z = z if head.scale == 1 else z * head.scale  # a copy of the largest tensor there is
    return torch.tanh(z / head.softcap) * head.softcap if head.softcap else z


@torch.no_grad()
def softmax_logits(states: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """float32 [tokens, vocabulary] from states [tokens, hidden], all at once, but for a number per token that no
    softmax sees. targets: the next tokens' ids [tokens]."""
    with own_arithmetic(states.device.type) as dtype:
        states, head = cast(states, head, dtype)
        if head.weight is None or not len(states):
            return plain_logits(states, head).float()
        out = torch.empty(len(states), len(head.weight), dtype=logits_type(head.weight), device=states.device)
        z = raw_logits(states, head, 1.0, targets, out).tile(slice(None))
        return z.div_(head.softcap).tanh_().mul_(head.softcap) if head.softcap else z


def softcap(z: torch.Tensor, cap: float | None, t: float) -> torch.Tensor:
    """cap * tanh(z / cap) of logits that are, and stay, divided by T."""
    return (z * (t / cap)).tanh_().mul_(cap / t) if cap else z


class RawLogits(NamedTuple):
    """Logits before the cap over T: factor * kept + shift + bias."""

    kept: torch.Tensor  # [tokens, vocabulary]
    factor: float = 1.0
    shift: torch.Tensor | None = None  # [tokens, 1]
    bias: torch.Tensor | None = None  # [vocabulary]

    def tile(self, rows: slice) -> torch.Tensor:
        """Those of a few tokens, float32."""
        z = self.kept[rows].float()
        if self.factor != 1:
            z.mul_(self.factor)
        if self.shift is not None:
            z.add_(self.shift[rows])
        return z if self.bias is None else z.add_(self.bias)


def raw_logits(states: torch.Tensor, head: Head, t: float, targets: torch.Tensor, buffer: torch.Tensor) -> RawLogits:
    """scale * (W h + bias) / T, kept in the first rows of `buffer`."""
    out, factor = buffer[: len(states)], head.scale / t
    bias = None if head.bias is None else head.bias.float() * factor
    if head.weight is None:
        return RawLogits(torch.mul(states, factor, out=out))
    if out.dtype == torch.float32:
        times_transposed(states, head.weight, factor, out)
        return RawLogits(out, bias=bias)
    shift = _near_the_top(states, head, targets)
    shifted_times_transposed(states, head.weight, shift, out)
    top = out.amax(-1, keepdim=True)
    if len(far := (top > NEAR).nonzero()[:, 0]):  # few, where targets are what the models expect
        shift[far] += top[far]
        again = torch.empty(len(far), out.shape[1], dtype=out.dtype, device=out.device)
        shifted_times_transposed(states[far], head.weight, shift[far], again)
        out[far] = again
    back = shift.float() * factor if head.softcap else None  # a softmax knows no difference
    return RawLogits(out, factor, back, bias)


def _near_the_top(states: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """A guess at the largest W h, from below [tokens, 1]: the largest at the target, at other positions' targets, which
    are tokens likely in their own right, and at tokens from all over the vocabulary."""
    of_others = (states @ rows.T for rows in (head.weight[targets[:OTHERS]], head.weight[::SPREAD]))
    own = torch.linalg.vecdot(states, head.weight[targets])[:, None]
    return torch.cat([own, *of_others], -1).amax(-1, keepdim=True)


class Gradients:
    """Of the mean loss, from the gradient by raw logits over T, times T, chunk by chunk; those that are `wanted`.

    found: by states [tokens, hidden], in their type, by weight and bias, float32; None where not wanted.
    """

    def __init__(self, hidden: torch.Tensor, head: Head, wanted: tuple[bool, ...]):
        self._hidden, self._head, self._factor = hidden, head, head.scale / len(hidden)
        self.found = (
            torch.empty_like(hidden) if wanted[0] else None,
            torch.empty(head.weight.shape, dtype=torch.float32, device=hidden.device) if wanted[1] else None,
            torch.zeros(head.bias.shape, dtype=torch.float32, device=hidden.device) if wanted[2] else None,
        )

    def add(self, rows: slice, by_logits: torch.Tensor) -> None:
        by_hidden, by_weight, by_bias = self.found
        if by_hidden is not None:
            by_hidden[rows] = by_states(by_logits, self._head.weight).mul_(self._factor)
        if by_weight is not None:
            add_by_weight(by_weight, by_logits, self._hidden[rows], self._factor, first=rows.start == 0)
        if by_bias is not None:
            by_bias.add_(by_logits.sum(0, dtype=torch.float32), alpha=self._factor)


@contextmanager
def own_arithmetic(device: str) -> Iterator[torch.dtype | None]:
    """Leaves an autocast region. What it gives is the region's type; None where products are better left in the type of
    the weights, as on a processor that is slow at bf16."""
    worth_it = device != "cpu" or FAST_BF16
    dtype = torch.get_autocast_dtype(device) if worth_it and torch.is_autocast_enabled(device) else None
    with torch.autocast(device, enabled=False), one_dnn():
        yield dtype


def cast(states: torch.Tensor, head: Head, dtype: torch.dtype | None) -> tuple[torch.Tensor, Head]:
    """States and weight of one type: that of an autocast region, as for a linear layer, or else the weight's own."""
    if head.weight is None:
        return states, head
    weight = head.weight.detach().to(dtype or head.weight.dtype)
    return states.to(weight.dtype), head._replace(weight=weight)
