"""Losses on hidden states. All of them follow from the scalars of a token, computed once:

    s2 = |P s|^2,  t2 = |t|^2,  st = <P s, t>          s: student, t: teacher (a constant), P: projector

    L2         |P s - t|^2 / mean t2 = (s2 + t2 - 2 st) / mean t2    (arXiv 1412.6550)
    direction  1 - st / sqrt(s2 t2)                                  (arXiv 1910.01108)
    norm       ((c |s| - |t|) / |t|)^2,  c = mean |t| / mean |s|, detached

and |P s - t|^2 = (|P s| - |t|)^2 + 2 |P s| |t| (1 - cos): L2 is a norm term plus a norm-weighted direction term, so
the three overlap. The norm term takes the student's state before the projector, which could otherwise rescale it
away; c takes the scale out, since residual norms grow over a hundredfold with depth and forcing a small student to
that scale stalls it. What is kept is the pattern of norms over tokens.

The gradients follow from the same scalars: a P s + b t by the projected state, with one a and one b per token, and
e s by the student's own.
"""

from typing import Any

import torch
import torch.nn.functional as F

EPSILON = 1e-6


def feature_loss(
    student: torch.Tensor,
    projector: torch.Tensor | None,
    teacher: torch.Tensor,
    l2_weight: float,
    direction_weight: float,
    norm_weight: float,
) -> torch.Tensor:
    """The weighted sum of the three terms of one layer pair. Scalar, a mean over tokens, in float32.

    student [tokens, student hidden]; projector: weight [teacher hidden, student hidden], None between equal widths;
    teacher [tokens, teacher hidden]. The gradient reaches student and projector.
    """
    return _Alignment.apply(student, projector, teacher.detach(), l2_weight, direction_weight, norm_weight)


class _Alignment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        projector: torch.Tensor | None,
        teacher: torch.Tensor,
        l2_weight: float,
        direction_weight: float,
        norm_weight: float,
    ) -> torch.Tensor:
        projected = student if projector is None else F.linear(student, projector)
        compute = projected.dtype
        own, projected, teacher = student.float(), projected.float(), teacher.float()
        tokens = len(own)
        s2, t2, st = _dot(projected, projected), _dot(teacher, teacher), _dot(projected, teacher)
        s_norm, t_norm = s2.clamp_min(EPSILON**2).sqrt(), t2.sqrt().clamp_min(EPSILON)
        own_norm = s_norm if projector is None else _dot(own, own).clamp_min(EPSILON**2).sqrt()
        mean_t2 = t2.mean().clamp_min(EPSILON)
        cosine = st / (s_norm * t_norm)
        scale = t_norm.mean() / own_norm.mean()
        excess = (scale * own_norm - t_norm) / t_norm
        loss = (
            l2_weight * (s2 + t2 - 2 * st).mean() / mean_t2
            + direction_weight * (1 - cosine).mean()
            + norm_weight * excess.square().mean()
        )
        by_l2 = 2 * l2_weight / mean_t2
        a = (by_l2 + direction_weight * cosine / s_norm**2) / tokens
        b = -(by_l2 + direction_weight / (s_norm * t_norm)) / tokens
        e = 2 * norm_weight * excess * scale / (t_norm * own_norm) / tokens
        if projector is None:
            ctx.save_for_backward((a + e)[:, None] * own + b[:, None] * teacher)
        else:
            by_projected = (a[:, None] * projected + b[:, None] * teacher).to(compute)
            ctx.save_for_backward(by_projected, student, projector, e)
        return loss

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            return ctx.saved_tensors[0] * outer, None, None, None, None, None
        by_projected, student, projector, e = ctx.saved_tensors
        by_student = by_projected @ projector.to(by_projected.dtype) + (e[:, None] * student)
        by_projector = by_projected.T @ student.to(by_projected.dtype)
        return by_student.to(student.dtype) * outer, by_projector.to(projector.dtype) * outer, None, None, None, None


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Inner products [tokens] of two [tokens, width]."""
    return (x * y).sum(-1)


def feature_weight(progress: float, decay: float) -> float:
    """1, falling linearly to 0 over the last `decay` share of training, so that the logits have the last word."""
    return 1.0 if decay == 0 else min(1.0, (1 - progress) / decay)
