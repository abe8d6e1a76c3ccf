"""Divergences between the outputs of teacher and student, with their gradients in closed form.

With p the teacher's and q the student's distribution at temperature T over the vocabulary, and m a mixture of both:

    forward-kl       sum p log(p / q)                                                    (arXiv 1503.02531)
    reverse-kl       sum q log(q / p)                                                    (arXiv 2306.08543)
    jsd              b sum p log(p / m) + (1 - b) sum q log(q / m),  m = b p + (1 - b) q (arXiv 2306.13649)
    skew-kl          sum p log(p / m),                               m = b p + (1 - b) q (arXiv 2402.03898)
    skew-reverse-kl  sum q log(q / m),                               m = (1 - b) p + b q (arXiv 2402.03898)

b is `mix`. At b = 0 and b = 1 jsd and its gradient vanish; divided by b (1 - b) it tends to forward-kl and to
reverse-kl there, which are what is computed.

Each takes the logits divided by T of a few tokens, z of the student and u of the teacher, float32 [tokens,
vocabulary], and returns its value [tokens] and its gradient by z. With w = dL / d log q that is w - q sum w.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

TINY = torch.finfo(torch.float32).tiny


class Softmax(NamedTuple):
    """probabilities [tokens, vocabulary] and the log of what they were divided by [tokens, 1]."""

    probabilities: torch.Tensor
    normaliser: torch.Tensor


def softmax(z: torch.Tensor) -> Softmax:
    """One exponential per logit: the largest probability tells the normaliser."""
    probabilities = torch.softmax(z, -1)
    return Softmax(probabilities, z.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log())


Divergence = Callable[[torch.Tensor, Softmax, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]


def _forward_kl(z: torch.Tensor, student: Softmax, u: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    q, p = student.probabilities, softmax(u)
    value = torch.linalg.vecdot(p.probabilities, u - z) + (student.normaliser - p.normaliser)[:, 0]
    return value, torch.sub(q, p.probabilities, out=p.probabilities)


def _reverse_kl(z: torch.Tensor, student: Softmax, u: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    q, log_q = student.probabilities, z - student.normaliser
    return _centred(q * (log_q - torch.log_softmax(u, -1)), q)


def _jsd(z: torch.Tensor, student: Softmax, u: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    if mix in (0.0, 1.0):
        return (_forward_kl if mix == 0 else _reverse_kl)(z, student, u, mix)
    q, p = student.probabilities, softmax(u)
    log_m = _log_mixture(p.probabilities, q, mix)
    of_teacher = mix * torch.linalg.vecdot(p.probabilities, u - p.normaliser - log_m)
    of_student, gradient = _centred((1 - mix) * q * (z - student.normaliser - log_m), q)
    return of_teacher + of_student, gradient


def _skew_kl(z: torch.Tensor, student: Softmax, u: torch.Tensor, mix: float) -> tuple[torch.Tensor, torch.Tensor]:
    if mix == 0:
        return _forward_kl(z, student, u, mix)
    q, p = student.probabilities, softmax(u)
    log_m = _log_mixture(p.probabilities, q, mix)
    value = torch.linalg.vecdot(p.probabilities, u - p.normaliser - log_m)
    share = (z - student.normaliser - log_m).exp_()  # q / m
    return value, _centred(p.probabilities * share * (mix - 1), q)[1]


def _skew_reverse_kl(
    z: torch.Tensor, student: Softmax, u: torch.Tensor, mix: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if mix == 0:
        return _reverse_kl(z, student, u, mix)
    q, p = student.probabilities, softmax(u)
    ratio = z - student.normaliser - _log_mixture(q, p.probabilities, mix)
    return torch.linalg.vecdot(q, ratio), _centred(q * (ratio - mix * ratio.exp()), q)[1]


DIVERGENCES: dict[str, Divergence] = {
    "forward-kl": _forward_kl,
    "reverse-kl": _reverse_kl,
    "jsd": _jsd,
    "skew-kl": _skew_kl,
    "skew-reverse-kl": _skew_reverse_kl,
}


def top_k_and_tail(
    z: torch.Tensor, student: Softmax, log_p: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward KL between distributions over K tokens and one bucket, the tail, that holds all others.

    z [tokens, vocabulary]; log_p, ids [tokens, K]. Nothing is renormalised: a student that moves mass from K to
    the tail pays for it, where the loss on K alone is blind.
    """
    p, q = log_p.exp(), student.probabilities
    value = torch.linalg.vecdot(p, log_p - (z.gather(-1, ids) - student.normaliser))
    gradient = q.scatter(-1, ids, 0.0)
    p_rest = (1 - p.sum(-1)).clamp_min(0.0)
    q_rest = gradient.sum(-1).clamp_min(TINY)
    gradient.mul_((1 - p_rest / q_rest)[:, None]).scatter_(-1, ids, q.gather(-1, ids) - p)
    return value + torch.xlogy(p_rest, p_rest / q_rest), gradient


def _centred(w: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sum w [tokens], and w - q sum w, in the place of w."""
    total = w.sum(-1, keepdim=True)
    return total[:, 0], w.addcmul_(q, total, value=-1.0)


def _log_mixture(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """log(share * a + (1 - share) * b)."""
    return torch.lerp(b, a, share).clamp_min_(TINY).log_()
