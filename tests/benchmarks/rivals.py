"""Who takes part in `make bench-head`, what they are given, and what float64 says.

Each contender is a function from the same tensors to the loss, a mean over the valid tokens.

All compute KL(teacher || student) at temperature 1 and no cross-entropy. Rivals are called as they are installed
(extra `bench`), with the chunk sizes that are their defaults, and handle masked positions in their own way: `note`.
"""

import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from evidence import DEVICE

IGNORED, SEED = -100, 0
STUDENT, TEACHER = 512, 1024


class Tensors(NamedTuple):
    """What every contender is given. x and weight want gradients."""

    x: torch.Tensor  # student's states [positions, student width]
    weight: torch.Tensor  # [vocabulary, student width]
    y: torch.Tensor  # teacher's states [positions, teacher width]
    teacher_weight: torch.Tensor  # [vocabulary, teacher width]
    labels: torch.Tensor  # ids, IGNORED where masked [positions]


def tensors(vocabulary: int, valid: int, positions: int, dtype: str) -> Tensors:
    """The valid tokens and the weights are the same whatever `positions` is."""
    random = torch.Generator(DEVICE).manual_seed(SEED)

    def normal(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=DEVICE).normal_(0, spread, generator=random)

    x, weight = normal(valid, STUDENT), normal(vocabulary, STUDENT, spread=STUDENT**-0.5)
    y, teacher_weight = normal(valid, TEACHER), normal(vocabulary, TEACHER, spread=2 * TEACHER**-0.5)
    labels = torch.randint(vocabulary, (valid,), generator=random, device=DEVICE)
    if positions > valid:
        rows = torch.randperm(positions, generator=random, device=DEVICE)[:valid].sort().values
        x = normal(positions, STUDENT).index_copy_(0, rows, x)
        y = normal(positions, TEACHER).index_copy_(0, rows, y)
        labels = torch.full((positions,), IGNORED, device=DEVICE).index_copy_(0, rows, labels)
    return Tensors(x.requires_grad_(), weight.requires_grad_(), y, teacher_weight, labels)


def reference(given: Tensors) -> dict[str, torch.Tensor]:
    """Of the same step without a mask, in float64 and by autograd: the loss is a sum, so tokens come in chunks."""
    weight, teacher_weight = given.weight.detach().double().requires_grad_(), given.teacher_weight.double()
    divergence, entropy, by_states = 0.0, 0.0, []
    for states, teacher_states in zip(given.x.detach().split(256), given.y.split(256), strict=True):
        x = states.double().requires_grad_()
        log_q = F.log_softmax(x @ weight.T, -1)
        log_p = F.log_softmax(teacher_states.double() @ teacher_weight.T, -1)
        loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True) / len(given.x)
        loss.backward()
        by_states.append(x.grad)
        divergence += loss.detach()
        entropy -= (log_p.exp() * log_p).sum() / len(given.x)
    return {"loss": divergence, "cross": divergence + entropy, "x": torch.cat(by_states), "weight": weight.grad}


def errors(loss: torch.Tensor, given: Tensors, exact: dict[str, torch.Tensor], cross: bool) -> dict[str, float]:
    """Relative to float64; of the gradients, in the norm. Masked positions' gradient has to be nothing."""
    by_states = torch.zeros_like(given.x, dtype=torch.float64)
    by_states[given.labels != IGNORED] = exact["x"]
    value = exact["cross" if cross else "loss"]
    return {
        "loss_error": float((loss - value).abs() / value),
        "states_gradient_error": float((given.x.grad - by_states).norm() / by_states.norm()),
        "weight_gradient_error": float((given.weight.grad - exact["weight"]).norm() / exact["weight"].norm()),
    }


Loss = Callable[[Tensors], torch.Tensor]


class Contender(NamedTuple):
    load: Callable[[], Loss]  # imports what it needs: a process that measures memory has one contender in it
    package: str
    note: str = ""
    cross: bool = False  # the loss is -sum p log q: the teacher's entropy more than the divergence, same gradient
    compiles: bool = False

    @property
    def version(self) -> str:
        return f"{self.package} {importlib.metadata.version(self.package)}"


def _featkd() -> Loss:
    from featkd.align.head import OnlineTeacher, fused_loss
    from featkd.align.output import Head

    def loss(given: Tensors) -> torch.Tensor:
        x, y, targets = given.x, given.y, given.labels
        valid = targets != IGNORED
        if not valid.all():
            rows = valid.nonzero()[:, 0]
            x, y, targets = x[rows], y[rows], targets[rows]
        return fused_loss(x, Head(given.weight), targets, OnlineTeacher(y, Head(given.teacher_weight)))

    return loss


def _logits(given: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        teacher = F.linear(given.y, given.teacher_weight)
    return F.linear(given.x, given.weight), teacher


def _plain() -> Loss:
    def loss(given: Tensors) -> torch.Tensor:
        student, teacher = _logits(given)
        log_p, log_q = F.log_softmax(teacher.float(), -1), F.log_softmax(student.float(), -1)
        mask = given.labels != IGNORED
        return (F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * mask).sum() / mask.sum()

    return loss


def _trl_gkd() -> Loss:
    from trl.experimental.gkd import GKDTrainer

    def loss(given: Tensors) -> torch.Tensor:
        student, teacher = _logits(given)
        return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], given.labels[None], beta=0)

    return loss


def _trl_chunked() -> Loss:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def loss(given: Tensors) -> torch.Tensor:
        mask = (given.labels != IGNORED)[None]
        heads = given.weight, given.teacher_weight
        return _chunked_divergence_loss(given.x[None], given.y[None], *heads, mask, beta=0.0)[0]

    return loss


def _liger(compiled: bool) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    jsd = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled)
    return lambda given: jsd(given.x, given.weight, given.y, given.teacher_weight, given.labels)


def _torchtune() -> Loss:
    from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

    chunked = ForwardKLWithChunkedOutputLoss()

    def logits(states: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        return [F.linear(chunk, weight) for chunk in states[None].chunk(chunked.num_output_chunks, dim=1)]

    def loss(given: Tensors) -> torch.Tensor:
        with torch.no_grad():
            teacher = logits(given.y, given.teacher_weight)
        return chunked(logits(given.x, given.weight), teacher, given.labels[None])

    return loss


CONTENDERS = {
    "featkd": Contender(_featkd, "featkd", "valid tokens selected first"),
    "plain": Contender(_plain, "torch", "masked after the loss per token"),
    "trl-gkd": Contender(_trl_gkd, "trl", "beta=0, masked after the loss per element"),
    "trl-chunked": Contender(_trl_chunked, "trl", "beta=0; valid tokens selected on an accelerator, else masked after"),
    "liger": Contender(lambda: _liger(False), "liger-kernel", "beta=0, hard weight 0; masked after"),
    "liger-compiled": Contender(lambda: _liger(True), "liger-kernel", "the same, compiled", compiles=True),
    "torchtune": Contender(_torchtune, "torchtune", "8 chunks; masked after; adds the teacher's entropy", cross=True),
}
