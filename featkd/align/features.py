"""Losses on hidden states. All of them follow from the scalars of a token, computed once:

    s2 = |P s|^2,  t2 = |t|^2,  st = <P s, t>          s: student, t: teacher (a constant), P: projector

    L2         |P s - t|^2 / mean t2 = (s2 + t2 - 2 st) / mean t2                    (arXiv 1412.6550)
    direction  1 - st / sqrt(s2 t2)                                                  (arXiv 1910.01108)
    norm       ((c |s| - |t|) / |t|)^2,  c = mean |t| / mean |s|
    ND         1 - c st / (|t| max(c |P s|, |t|)),  c = mean |t| / mean |P s|        (arXiv 2305.17007)

and |P s - t|^2 = (|P s| - |t|)^2 + 2 |P s| |t| (1 - cos): L2 is a norm term plus a norm-weighted direction term, so
they overlap. Every c is a constant to the gradient.

The norm term takes the student's state before the projector, which could otherwise rescale it away. Residual norms
grow over a hundredfold with depth, and forcing a small student to that scale stalls it: c takes the scale out. What is
left pulls on the pattern of norms over tokens and, unless the patterns agree, towards smaller states: a squared
relative error is smaller for those, and c makes up for the shrinking at every step. It is the pull that helps, not the
pattern: the teacher's norms in another order do as well. README.md has the evidence, and what may explain it.

The gradients follow from the same scalars: a P s + b t by the projected state, with one a and one b per token, and
e s by the student's own.
"""

from typing import Any, NamedTuple

import torch

EPSILON = 1e-6


class Weights(NamedTuple):
    """Of the terms above."""

    l2: float = 0.0
    direction: float = 0.0
    norm: float = 0.0
    nd: float = 0.0


def feature_loss(
    student: torch.Tensor, projected: torch.Tensor, teacher: torch.Tensor, weights: Weights
) -> torch.Tensor:
    """The weighted sum of the terms of one layer pair. Scalar, a mean over tokens, in float32.

    student [tokens, student hidden]; projected [tokens, teacher hidden]: the projector's output, between equal widths
    the student's states again; teacher [tokens, teacher hidden]. The gradient reaches student and projected.
    """
    return _Alignment.apply(student, projected, teacher.detach(), weights)


class _Alignment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, projected: torch.Tensor, teacher: torch.Tensor, weights: Weights
    ) -> torch.Tensor:
        p, t, tokens = projected.float(), teacher.float(), len(student)
        s2, t2, st = _dot(p, p), _dot(t, t), _dot(p, t)
        s_norm, t_norm = s2.clamp_min(EPSILON**2).sqrt(), t2.sqrt().clamp_min(EPSILON)
        mean_t2 = t2.mean().clamp_min(EPSILON**2)
        cosine = st / (s_norm * t_norm)
        loss = weights.l2 * (s2 + t2 - 2 * st).mean() / mean_t2 + weights.direction * (1 - cosine).mean()
        by_l2, of_direction = 2 * weights.l2 / mean_t2, torch.full_like(cosine, weights.direction)
        b = -by_l2.expand_as(cosine)
        if weights.nd:
            scale = t_norm.mean() / s_norm.mean()
            short = scale * s_norm < t_norm
            reached = torch.where(short, scale * s_norm / t_norm, 1.0)
            loss = loss + weights.nd * (1 - cosine * reached).mean()
            of_direction += torch.where(short, 0.0, weights.nd)
            b = b - torch.where(short, weights.nd * scale / t_norm**2, 0.0)
        a = by_l2 + of_direction * cosine / s_norm**2
        b = b - of_direction / (s_norm * t_norm)
        by_projected = a[:, None] * p + b[:, None] * t
        by_student = None
        if weights.norm:
            own = student.float()
            own_norm = _dot(own, own).clamp_min(EPSILON**2).sqrt()
            scale = t_norm.mean() / own_norm.mean()
            excess = (scale * own_norm - t_norm) / t_norm
            loss = loss + weights.norm * excess.square().mean()
            e = 2 * weights.norm * excess * scale / (t_norm * own_norm)
            by_student = (e[:, None] * own / tokens).to(student.dtype)
        ctx.save_for_backward(by_student, (by_projected / tokens).to(projected.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        by_student, by_projected = ctx.saved_tensors
        return by_student if by_student is None else by_student * outer, by_projected * outer, None, None


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Inner products [tokens] of two [tokens, width]."""
    return (x * y).sum(-1)


def feature_weight(progress: float, decay: float) -> float:
    """1, falling linearly to 0 over the last `decay` share of training, so that the logits have the last word."""
    return 1.0 if decay == 0 else min(1.0, (1 - progress) / decay)


def dynamic_weight(of_outputs: float, of_features: float) -> float:
    """The loss on outputs over that on features, within DYNAMIC: both weigh the same (arXiv 2407.14679)."""
    lowest, highest = DYNAMIC
    return min(max(of_outputs / max(of_features, EPSILON), lowest), highest)


DYNAMIC = (0.01, 10.0)
