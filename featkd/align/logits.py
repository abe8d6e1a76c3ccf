"""Losses on outputs. All of them in float32, a mean over the valid tokens."""

import torch
import torch.nn.functional as F


def cross_entropy(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q(target). student: logits [tokens, vocabulary]; targets: ids [tokens]. Scalar, nats per token."""
    return F.cross_entropy(student.float(), targets)


def log_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / T), float32 [tokens, vocabulary]."""
    return F.log_softmax(logits.float() / temperature if temperature != 1 else logits.float(), dim=-1)


def forward_kl(log_q: torch.Tensor, log_p: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * sum_v p log(p / q) (arXiv 1503.02531). Scalar, nats per token.

    log_q, log_p: the student's and the teacher's `log_probabilities` at T. T^2 keeps the gradient's size when T
    changes. The teacher's are constants.
    """
    return temperature**2 * F.kl_div(log_q, log_p.detach(), log_target=True, reduction="batchmean")


def distillation_loss(
    student: torch.Tensor, log_p: torch.Tensor, targets: torch.Tensor, temperature: float, ce_weight: float
) -> torch.Tensor:
    """forward_kl + ce_weight * cross_entropy. student: logits [tokens, vocabulary]; targets: ids [tokens]."""
    log_q = log_probabilities(student, temperature)
    loss = forward_kl(log_q, log_p, temperature)
    if ce_weight == 0:
        return loss
    hard = F.nll_loss(log_q, targets) if temperature == 1 else cross_entropy(student, targets)
    return loss + ce_weight * hard
