"""One teacher pass, many students: every student sees the same batches and learns from the same teacher forward.

Students are independent of each other: own random state, own optimiser, own clipping. Trained alone or beside
others they get the same weights, bit for bit, on the same machine with the same number of threads.
"""

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from featkd import spec
from featkd.align.head import Head, Objective, OnlineTeacher, fused_loss, plain_logits
from featkd.align.relations import QKV
from featkd.distill.alignment import PROBE_TOKENS, Alignment, align
from featkd.distill.batches import IGNORED, batches, block_losses, learned, mean_loss, on_device
from featkd.distill.forward import Forward
from featkd.distill.runtime import Runtime
from featkd.errors import RunError

CURVE_POINTS = 12
FINAL_RATE = 0.1
TEACHER_LOGITS_BYTES = 256 << 20


@dataclass(eq=False)
class Learner:
    """A student on its way. Without a teacher (`arm` sft) it is plain fine-tuning."""

    name: str
    arm: str
    model: Any
    seed: int
    size: str = ""
    copied_share: float = 0.0
    alignment: Alignment | None = None
    optimiser: Any = None
    forward: Any = None
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def needs_logits(self) -> bool:
        return self.arm != "sft"

    def needs_features(self, progress: float) -> bool:
        return self.alignment is not None and self.alignment.strength(progress) > 0


@dataclass
class Signal:
    """What the teacher says of a batch. hidden: all its states [batch, block, hidden]; qkv: by block."""

    outputs: OnlineTeacher | None = None
    hidden: tuple[torch.Tensor, ...] | None = None
    qkv: dict[int, Any] = field(default_factory=dict)


def train(
    learners: list[Learner],
    teacher: Any | None,
    train_blocks: np.ndarray,
    valid_blocks: np.ndarray,
    training: spec.Optimisation,
    distillation: spec.Distillation,
    run: Runtime,
    on_step: Callable[..., None],
) -> dict[str, float]:
    """Train all learners on the same batches. Blocks: int32 [2, blocks, block_size], ids and labels.

    `on_step(step=, steps=, loss=, tokens_per_s=)` is called after each step, with the first learner's loss.
    Returns {"teacher_seconds", "steps", "tokens"}. Raises RunError when a loss is not finite.
    """
    block = train_blocks.shape[2]
    steps = max(1, math.ceil(training.tokens / (training.batch_size * block)))
    twins = _twins(learners, distillation)
    everyone = [*learners, *(twin for twin in twins.values() if twin not in learners)]
    if not (train_blocks[1][:, 1:] != IGNORED).any():
        raise RunError("training: no token is learned: all labels are masked; check data.response_field and block_size")
    _prepare(everyone, teacher, train_blocks, training, distillation, run)
    taught_by = Forward(teacher) if teacher is not None else None
    marks = {round(point * steps / CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)} | {steps}
    teacher_seconds, started = 0.0, run.clock()
    for step, batch in enumerate(batches(train_blocks, training.batch_size, steps)):
        ids, labels = on_device(batch, run)
        clock = run.clock()
        signal = _teacher_signal(taught_by, everyone, ids, labels, step / steps, run)
        teacher_seconds += run.clock() - clock
        losses = []
        for learner in everyone:
            clock = run.clock()
            loss = _step(learner, signal, ids, labels, training, distillation, step, steps, run)
            learner.seconds += run.clock() - clock
            losses.append(loss)
            if not math.isfinite(loss):
                raise _not_finite(learner, signal, loss, f"step {step + 1} of {steps}", training)
        done = (step + 1) * training.batch_size * block
        if step + 1 in marks:
            found = {
                learner.name: block_losses(learner.forward, valid_blocks, run, training.batch_size)
                for learner in everyone
            }
            for learner in everyone:
                learner.curve.append({"tokens": done, "validation_loss": mean_loss(found[learner.name])})
            for name, twin in twins.items():
                aligned = next(learner for learner in learners if learner.name == name)
                aligned.alignment.judge(_means(found[name]), _means(found[twin.name]), (step + 1) / steps)
        on_step(step=step + 1, steps=steps, loss=losses[0], tokens_per_s=done / (run.clock() - started))
    return {"teacher_seconds": teacher_seconds, "steps": steps, "tokens": steps * training.batch_size * block}


def _not_finite(learner: Learner, signal: Signal, loss: float, where: str, training: spec.Optimisation) -> RunError:
    if signal.outputs is not None and not torch.isfinite(signal.outputs.hidden).all():
        return RunError(
            f"teacher.model: its outputs are not finite at {where}, and nothing can be learned from them: check the "
            "model, or write compute.precision: fp32"
        )
    return RunError(
        f"training: the loss of {learner.name} is {loss} at {where}; lower the learning_rate "
        f"({training.learning_rate:g}) or check the data"
    )


def _twins(learners: list[Learner], distillation: spec.Distillation) -> dict[str, Learner]:
    """For the guard: to every feature-kd learner its like without feature terms, trained beside it if need be.

    Learners of one size and seed start from the same weights and do not touch each other, so that it makes no
    difference where the twin comes from.
    """
    if not (distillation.guard and distillation.has_features):
        return {}
    twins = {}
    for learner in learners:
        if learner.arm == "feature-kd":
            like = [o for o in learners if (o.arm, o.size, o.seed) == ("logit-kd", learner.size, learner.seed)]
            hidden = Learner(f"{learner.name} without feature terms", "logit-kd", None, learner.seed, learner.size)
            twins[learner.name] = like[0] if like else hidden
            if not like:
                hidden.model = copy.deepcopy(learner.model)
    return twins


def _means(losses: np.ndarray) -> np.ndarray:
    return losses[:, 0] / losses[:, 1]


def _prepare(
    learners: list[Learner],
    teacher: Any,
    train_blocks: np.ndarray,
    training: spec.Optimisation,
    distillation: spec.Distillation,
    run: Runtime,
) -> None:
    if teacher is not None:
        teacher.to(run.device).eval().requires_grad_(False)
    for learner in learners:
        learner.model.to(run.device).train()
        learner.forward = Forward(learner.model, teacher.config.vocab_size if teacher is not None else None)
        parameters = list(learner.model.parameters())
        if learner.arm == "feature-kd" and distillation.has_features:
            count = -(-PROBE_TOKENS // train_blocks.shape[2])
            ids, labels = on_device(train_blocks[:, :count], run)
            learner.alignment = align(learner.model, teacher, distillation, learner.seed, (ids, labels != IGNORED))
            parameters += learner.alignment.projectors.to(run.device).parameters()
        learner.optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )


@torch.no_grad()
def _teacher_signal(
    teacher: Forward | None,
    learners: list[Learner],
    ids: torch.Tensor,
    labels: torch.Tensor,
    progress: float,
    run: Runtime,
) -> Signal:
    """Logits of a moderate size are computed once, for all; others by each student, a few tokens at a time."""
    if teacher is None or not any(learner.needs_logits for learner in learners):
        return Signal()
    keep, _ = learned(labels)
    aligned = [learner.alignment for learner in learners if learner.needs_features(progress)]
    wanted = {blocks[1] for alignment in aligned if (blocks := alignment.blocks())}
    with run.autocast(), ExitStack() as stack:
        readers = {block: stack.enter_context(QKV(teacher.model, block)) for block in wanted}
        output = teacher(ids, keep, hidden=bool(aligned))
        outputs = OnlineTeacher(output.states, teacher.head)
        if 4 * len(output.states) * teacher.model.config.vocab_size <= TEACHER_LOGITS_BYTES:
            outputs = OnlineTeacher(plain_logits(output.states, teacher.head).float(), Head(None))
    return Signal(outputs, output.hidden, {block: reader.take() for block, reader in readers.items()})


def _step(
    learner: Learner,
    signal: Signal,
    ids: torch.Tensor,
    labels: torch.Tensor,
    training: spec.Optimisation,
    distillation: spec.Distillation,
    step: int,
    steps: int,
    run: Runtime,
) -> float:
    keep, targets = learned(labels)
    if not len(targets):
        return 0.0
    torch.manual_seed(learner.seed * 1_000_003 + step)
    with run.autocast():
        loss = _loss(learner, ids, keep, targets, labels != IGNORED, signal, distillation, step / steps)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    loss.backward()
    parameters = [p for group in learner.optimiser.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, training.grad_clip)
    for group in learner.optimiser.param_groups:
        group["lr"] = training.learning_rate * _rate(step, steps, training.warmup)
    learner.optimiser.step()
    learner.optimiser.zero_grad(set_to_none=True)
    return value


def _loss(
    learner: Learner,
    ids: torch.Tensor,
    keep: torch.Tensor,
    targets: torch.Tensor,
    valid: torch.Tensor,
    signal: Signal,
    distillation: spec.Distillation,
    progress: float,
) -> torch.Tensor:
    aligned = learner.needs_features(progress)
    blocks = learner.alignment.blocks() if aligned else None
    with ExitStack() as stack:
        reader = stack.enter_context(QKV(learner.model, blocks[0])) if blocks else None
        output = learner.forward(ids, keep, hidden=aligned)
    head = learner.forward.head
    if not learner.needs_logits:
        return fused_loss(output.states, head, targets)
    taught = signal.outputs.first(learner.forward.rows)
    loss = fused_loss(output.states, head, targets, taught, _objective(distillation))
    if not aligned:
        return loss
    qkv = (reader.take(), signal.qkv[blocks[1]]) if blocks else None
    return loss + learner.alignment.loss(output.hidden, signal.hidden, valid, qkv, loss, progress)


def _objective(wanted: spec.Distillation) -> Objective:
    return Objective(wanted.objective, wanted.mix, wanted.temperature, wanted.ce_weight, wanted.top_k)


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, cosine down to FINAL_RATE."""
    ramp = max(1, round(steps * warmup))
    if step < ramp:
        return (step + 1) / ramp
    progress = (step - ramp) / max(1, steps - ramp)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
