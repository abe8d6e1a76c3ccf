"""The forms of feature loss that `norms.py` compares: each a weighted sum of terms on the states of a layer pair."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


class Pair(NamedTuple):
    """States of one layer pair. s [tokens, d] student; p projected; target: what p is held against; t [tokens, D]
    teacher; gains of the norm layers that read s and t; shift: a learned scalar."""

    s: torch.Tensor
    p: torch.Tensor
    target: torch.Tensor
    t: torch.Tensor
    s_gain: torch.Tensor
    t_gain: torch.Tensor
    shift: torch.Tensor


def size(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1).clamp_min(1e-12).sqrt()


def scaled(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of both, the student's times mean |t| / mean |s|, a constant to the gradient."""
    a, b = size(s), size(t)
    return a * (b.mean() / a.mean()).detach(), b


def direction(x: Pair) -> torch.Tensor:
    return 1 - F.cosine_similarity(x.p, x.target).mean()


def relative(x: Pair) -> torch.Tensor:
    a, b = scaled(x.s, x.t)
    return ((a - b) / b).square().mean()


def relative_fitted(x: Pair) -> torch.Tensor:
    """With the batch scale that is best for this very error: that of `scaled` leaves a pull towards smaller states."""
    ratio = size(x.s) / size(x.t)
    return (ratio * (ratio.mean() / ratio.square().mean()).detach() - 1).square().mean()


def hinge(x: Pair) -> torch.Tensor:
    a, b = scaled(x.s, x.t)
    return (1 - a / b).clamp_min(0).square().mean()


def after_norm(x: Pair) -> torch.Tensor:
    s, t = (F.rms_norm(state, state.shape[-1:], gain) for state, gain in ((x.s, x.s_gain), (x.t, x.t_gain)))
    return relative(x._replace(s=s, t=t))


def centred_log(x: Pair) -> torch.Tensor:
    return (size(x.s).log() - size(x.t).log()).var(correction=0)


def affine_log(x: Pair) -> torch.Tensor:
    """log|t| against its least-squares fit on log|s|."""
    a, b = size(x.s).log(), size(x.t).log()
    fixed = a.detach() - a.detach().mean()
    slope = (fixed * b).mean() / fixed.square().mean().clamp_min(1e-12)
    return (slope * (a - a.detach().mean()) - (b - b.mean())).square().mean()


def learned_log(x: Pair) -> torch.Tensor:
    return (size(x.s).log() + x.shift - size(x.t).log()).square().mean()


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(a - a.mean(), b - b.mean(), dim=0)


def pearson(x: Pair) -> torch.Tensor:
    return 1 - correlation(size(x.s), size(x.t))


def size_penalty(x: Pair) -> torch.Tensor:
    """No teacher in it: small states, whatever they are (arXiv 1708.01009)."""
    return x.s.square().mean()


def nd(x: Pair) -> torch.Tensor:
    """Per token, after a batch scale (arXiv 2305.17007): it stands in for direction."""
    a, b = scaled(x.p, x.t)
    return (1 - F.cosine_similarity(x.p, x.target) * a / torch.maximum(a, b)).mean()


def l2(x: Pair) -> torch.Tensor:
    return (x.p - x.target).square().sum(-1).mean() / x.t.square().sum(-1).mean()


@dataclass(frozen=True)
class Form:
    """What a student's loss has beside KL: weighted terms of a pair; the projector; from when a term has its weight."""

    terms: tuple[tuple[float, Callable[[Pair], torch.Tensor]], ...] = ()
    projector: str = "learned"  # pca: none, the teacher's first components
    warm_up: float = 0.0
    shuffled: bool = False  # control: the teacher's norms in another order over the tokens, its directions as they are

    def loss(self, x: Pair, order: torch.Tensor, progress: float) -> torch.Tensor:
        if self.shuffled:
            x = x._replace(t=x.t[order], target=x.target * (size(x.t)[order] / size(x.t))[:, None])
        ramp = min(1.0, progress / self.warm_up) if self.warm_up else 1.0
        return torch.stack([w * term(x) * (1.0 if term is direction else ramp) for w, term in self.terms]).sum()


def with_direction(*terms: tuple[float, Callable[[Pair], torch.Tensor]], **options: Any) -> Form:
    return Form(((1.0, direction), *terms), **options)


CANDIDATES = {
    **{f"relative-{w}": with_direction((w, relative)) for w in (0.1, 0.3)},
    **{
        f"{term.__name__}-0.1": with_direction((0.1, term))
        for term in (relative_fitted, centred_log, affine_log, learned_log, pearson, after_norm, hinge)
    },
    "relative-0.1-warm-up": with_direction((0.1, relative), warm_up=0.3),
    "nd": Form(((1.0, nd),)),
    "l2-0.05": with_direction((0.05, l2)),
    "l2-0.05-relative-0.1": with_direction((0.05, l2), (0.1, relative)),
}
CONTROLS = {
    "kl-only": Form(),
    "direction": with_direction(),
    "direction-1.1": Form(((1.1, direction),)),
    "direction-size_penalty-3": with_direction((3.0, size_penalty)),
    "size_penalty-0.03": Form(((0.03, size_penalty),)),  # 0.3 and 3 did worse in a trial
}
OTHERS = {"pca": with_direction(projector="pca")}  # another projector: its baseline is not `direction`
DEFAULT = "relative-0.1"


def form(name: str) -> Form:
    if name.startswith("shuffled "):
        return replace(form(name.removeprefix("shuffled ")), shuffled=True)
    return {**CANDIDATES, **CONTROLS, **OTHERS}[name]
