"""Losses on outputs: a divergence between teacher and student, cross-entropy beside it, gradients in closed form.

Everything is computed in float32 and is a mean over the valid tokens. With p the teacher's and q the student's
distribution at temperature T over the vocabulary, and m a mixture of both:

    forward-kl       sum p log(p / q)                                                    (arXiv 1503.02531)
    reverse-kl       sum q log(q / p)                                                    (arXiv 2306.08543)
    jsd              b sum p log(p / m) + (1 - b) sum q log(q / m),  m = b p + (1 - b) q (arXiv 2306.13649)
    skew-kl          sum p log(p / m),                               m = b p + (1 - b) q (arXiv 2402.03898)
    skew-reverse-kl  sum q log(q / m),                               m = (1 - b) p + b q (arXiv 2402.03898)

each times T^2, which keeps the gradient's size when T changes. b is `mix`. At b = 0 and b = 1 jsd and its gradient
vanish; divided by b (1 - b) it tends to forward-kl and to reverse-kl there, which are what is computed.

A divergence returns its value per token and w = dL / d log q; the gradient by the logits is T (w - q sum w).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

TILE_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}
Divergence = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]


def cross_entropy(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q(target). student: logits [tokens, vocabulary]; targets: ids [tokens]. Scalar, nats per token."""
    return F.cross_entropy(student.float(), targets)


def log_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / T), float32 [tokens, vocabulary]."""
    return F.log_softmax(logits.float() / temperature if temperature != 1 else logits.float(), dim=-1)


def distillation_loss(
    student: torch.Tensor,
    log_p: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    ce_weight: float,
    objective: str = "forward-kl",
    mix: float = 0.5,
    top_k: int | None = None,
) -> torch.Tensor:
    """T^2 * divergence + ce_weight * cross-entropy. Scalar, nats per token; its gradient reaches `student` alone.

    Args:
        student: logits [tokens, vocabulary].
        log_p: the teacher's `log_probabilities` at T, [tokens, vocabulary].
        targets: ids [tokens].
        objective: a key of DIVERGENCES. mix: b in the formulas above.
        top_k: forward-kl on the teacher's k likeliest tokens and one bucket for all others (`top_k_and_tail`).
    """

    def divergence(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if top_k:
            return top_k_and_tail(log_q, *log_p.topk(min(top_k, log_p.shape[-1]), dim=-1))
        return DIVERGENCES[objective](log_q, log_p, mix)

    return _Distillation.apply(student, log_p, targets, divergence, temperature, ce_weight)


class _Distillation(torch.autograd.Function):
    """Loss and gradient in one pass over the logits, a few rows at a time.

    A dozen steps follow each other on the same numbers: on a tile that stays in the processor's cache, and with no
    [tokens, vocabulary] of their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        log_p: torch.Tensor,
        targets: torch.Tensor,
        divergence: Any,
        temperature: float,
        ce_weight: float,
    ) -> torch.Tensor:
        tokens, vocabulary = student.shape
        losses = torch.empty(tokens, dtype=torch.float32, device=student.device)
        gradient = torch.empty_like(student)
        size = max(1, TILE_BYTES[student.device.type] // (4 * vocabulary))
        for rows in (slice(start, start + size) for start in range(0, tokens, size)):
            log_q = log_probabilities(student[rows], temperature)
            value, w = divergence(log_q, log_p[rows])
            by_logits = w.addcmul_(log_q.exp(), w.sum(-1, keepdim=True), value=-1.0).mul_(temperature)
            value = temperature**2 * value
            if ce_weight:
                log_q = log_q if temperature == 1 else log_probabilities(student[rows], 1.0)
                target = targets[rows, None]
                value -= ce_weight * log_q.gather(-1, target)[:, 0]
                by_logits.add_(log_q.exp_(), alpha=ce_weight)
                by_logits.scatter_add_(-1, target, torch.full_like(target, -ce_weight, dtype=torch.float32))
            losses[rows], gradient[rows] = value, by_logits.div_(tokens)
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient if float(outer) == 1 else gradient * outer, None, None, None, None, None


def _forward_kl(log_q: torch.Tensor, log_p: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), p.neg_()


def _reverse_kl(log_q: torch.Tensor, log_p: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    w = log_q.exp().mul_(log_q - log_p)
    return w.sum(-1), w


def _jsd(log_q: torch.Tensor, log_p: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    if mix in (0.0, 1.0):
        return (_forward_kl if mix == 0 else _reverse_kl)(log_q, log_p, mix)
    log_m = _mixture(log_p, log_q, mix)
    w = log_q.exp().mul_(log_q - log_m).mul_(1 - mix)
    return mix * (log_p.exp() * (log_p - log_m)).sum(-1) + w.sum(-1), w


def _skew_kl(log_q: torch.Tensor, log_p: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    log_m, p = _mixture(log_p, log_q, mix), log_p.exp()
    return (p * (log_p - log_m)).sum(-1), p.mul_((log_q - log_m).exp_()).mul_(mix - 1)


def _skew_reverse_kl(log_q: torch.Tensor, log_p: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    log_m, q = _mixture(log_q, log_p, mix), log_q.exp()
    ratio = log_q - log_m
    return (q * ratio).sum(-1), q.mul_(ratio - mix * ratio.exp())


DIVERGENCES: dict[str, Divergence] = {
    "forward-kl": _forward_kl,
    "reverse-kl": _reverse_kl,
    "jsd": _jsd,
    "skew-kl": _skew_kl,
    "skew-reverse-kl": _skew_reverse_kl,
}


def _mixture(log_a: torch.Tensor, log_b: torch.Tensor, share: float) -> torch.Tensor:
    """log(share * a + (1 - share) * b)."""
    if share in (0.0, 1.0):
        return log_a if share == 1 else log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def top_k_and_tail(log_q: torch.Tensor, log_p: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward KL between distributions over K tokens and one bucket, the tail, that holds all others.

    log_q [tokens, vocabulary]; log_p, ids [tokens, K]. Nothing is renormalised: a student that moves mass from K to
    the tail pays for it, where the loss on K alone is blind.
    """
    p, log_q_of_k = log_p.exp(), log_q.gather(-1, ids)
    q_tail = log_q.exp().scatter_(-1, ids, 0.0)
    p_rest = (1 - p.sum(-1)).clamp_min(0.0)
    q_rest = q_tail.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    rows = (p * (log_p - log_q_of_k)).sum(-1) + torch.xlogy(p_rest, p_rest / q_rest)
    w = q_tail.mul_((-p_rest / q_rest).unsqueeze(-1)).scatter_(-1, ids, -p)
    return rows, w
