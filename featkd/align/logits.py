"""Losses on outputs. All of them in float32, a mean over the valid tokens."""

import torch
import torch.nn.functional as F


def cross_entropy(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q(target). student: logits [tokens, vocabulary]; targets: ids [tokens]. Scalar, nats per token."""
    return F.cross_entropy(student.float(), targets)


def forward_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * sum_v p log(p / q), p and q softened by T (arXiv 1503.02531). Logits [tokens, vocabulary]. Scalar.

    T^2 keeps the gradient's size when T changes. The teacher's logits are constants.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
