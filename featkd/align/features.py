"""Losses on hidden states. All of them follow from three scalars per token:

    s2 = |P s|^2,  t2 = |t|^2,  st = <P s, t>          s: student, t: teacher (a constant), P: projector

    L2         |P s - t|^2 / mean t2 = (s2 + t2 - 2 st) / mean t2
    direction  1 - st / sqrt(s2 t2)                                  (arXiv 1910.01108)
    norm       ((c |s| - |t|) / |t|)^2,  c = mean |t| / mean |s|, detached

and |P s - t|^2 = (|P s| - |t|)^2 + 2 |P s| |t| (1 - cos): L2 is a norm term plus a norm-weighted direction term, so
the three overlap. The norm term takes the student's state before the projector, which could otherwise rescale it
away; c takes the scale out, since residual norms grow over a hundredfold with depth and forcing a small student to
that scale stalls it. What is kept is the pattern of norms over tokens.
"""

import torch

EPSILON = 1e-6


def feature_terms(student: torch.Tensor, projected: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scalars l2, direction and norm of one layer pair, means over tokens, in float32.

    student [tokens, student hidden], projected [tokens, teacher hidden], teacher [tokens, teacher hidden].
    """
    projected, teacher = projected.float(), teacher.detach().float()
    s2, t2, st = (projected**2).sum(-1), (teacher**2).sum(-1), (projected * teacher).sum(-1)
    s_norm, t_norm = student.float().norm(dim=-1), t2.sqrt().clamp_min(EPSILON)
    scale = (t_norm.mean() / s_norm.mean().clamp_min(EPSILON)).detach()
    return {
        "l2": (s2 + t2 - 2 * st).mean() / t2.mean().clamp_min(EPSILON),
        "direction": (1 - st / (s2.clamp_min(EPSILON**2).sqrt() * t_norm)).mean(),
        "norm": ((scale * s_norm - t_norm) / t_norm).square().mean(),
    }


def feature_weight(progress: float, decay: float) -> float:
    """1, falling linearly to 0 over the last `decay` share of training, so that the logits have the last word."""
    return 1.0 if decay == 0 else min(1.0, (1 - progress) / decay)
