"""One teacher pass, many students: every student sees the same batches and learns from the same teacher forward.

Students are independent of each other: own random state, own optimiser, own clipping. Trained alone or beside
others they get the same weights, bit for bit, on the same machine with the same number of threads.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from featkd import spec
from featkd.align.features import feature_loss, feature_weight
from featkd.align.head import Head, Objective, OnlineTeacher, fused_loss, plain_logits
from featkd.align.layers import layer_pairs, projectors
from featkd.errors import RunError
from featkd.models.forward import Forward, Output

IGNORED = -100
DATA_SEED = 0
CURVE_POINTS = 12
FINAL_RATE = 0.1
TEACHER_LOGITS_BYTES = 256 << 20


@dataclass
class Learner:
    """A student on its way. Without a teacher (`arm` sft) it is plain fine-tuning."""

    name: str
    arm: str
    model: Any
    seed: int
    copied_share: float = 0.0
    pairs: list[tuple[int, int]] = field(default_factory=list)
    projectors: torch.nn.ModuleList = field(default_factory=torch.nn.ModuleList)
    optimiser: Any = None
    forward: Any = None
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def needs_logits(self) -> bool:
        return self.arm != "sft"

    @property
    def needs_features(self) -> bool:
        return self.arm == "feature-kd"


@dataclass
class Runtime:
    device: str
    bf16: bool

    def autocast(self) -> Any:
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bf16 else nullcontext()


def runtime(compute: spec.Compute) -> Runtime:
    """Where and in which arithmetic to train. Sets the number of CPU threads."""
    torch.set_num_threads(compute.threads or torch.get_num_threads())
    device = compute.device if compute.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = compute.precision == "bf16" or (compute.precision == "auto" and _fast_bf16(device))
    return Runtime(device, bf16)


def _fast_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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
    _prepare(learners, teacher, training, distillation, run)
    taught_by = Forward(teacher) if teacher is not None else None
    marks = {round(point * steps / CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)} | {steps}
    teacher_seconds, started = 0.0, _clock(run)
    for step, batch in enumerate(_batches(train_blocks, training.batch_size, steps)):
        ids, labels = (torch.from_numpy(part.astype(np.int64)).to(run.device) for part in batch)
        clock = _clock(run)
        signal = _teacher_signal(taught_by, learners, ids, labels, run)
        teacher_seconds += _clock(run) - clock
        losses = []
        for learner in learners:
            clock = _clock(run)
            loss = _step(learner, signal, ids, labels, training, distillation, step, steps, run)
            learner.seconds += _clock(run) - clock
            losses.append(loss)
            if not math.isfinite(loss):
                raise RunError(
                    f"training: the loss of {learner.name} is {loss} at step {step + 1} of {steps}; lower the "
                    f"learning_rate ({training.learning_rate:g}) or check the data"
                )
        done = (step + 1) * training.batch_size * block
        if step + 1 in marks:
            for learner in learners:
                loss = evaluate(learner.forward, valid_blocks, run, training.batch_size)
                learner.curve.append({"tokens": done, "validation_loss": loss})
        on_step(step=step + 1, steps=steps, loss=losses[0], tokens_per_s=done / (_clock(run) - started))
    return {"teacher_seconds": teacher_seconds, "steps": steps, "tokens": steps * training.batch_size * block}


def _clock(run: Runtime) -> float:
    """Seconds, once the accelerator has done what was asked of it: so each model pays for its own work."""
    if run.device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


@torch.no_grad()
def evaluate(forward: Forward, blocks: np.ndarray, run: Runtime, batch_size: int) -> float:
    """Mean cross-entropy over the learned tokens of the blocks, nats per token."""
    forward.model.eval()
    total, count = 0.0, 0
    for start in range(0, blocks.shape[1], batch_size):
        ids, labels = (
            torch.from_numpy(part[start : start + batch_size].astype(np.int64)).to(run.device) for part in blocks
        )
        keep, targets = _targets(labels)
        if not len(targets):
            continue
        with run.autocast():
            states = forward(ids, keep).states
            total += float(fused_loss(states, forward.head, targets)) * len(targets)
        count += len(targets)
    forward.model.train()
    return total / max(count, 1)


def _prepare(
    learners: list[Learner], teacher: Any, training: spec.Optimisation, distillation: spec.Distillation, run: Runtime
) -> None:
    if teacher is not None:
        teacher.to(run.device).eval().requires_grad_(False)
    for learner in learners:
        learner.model.to(run.device).train()
        learner.forward = Forward(learner.model)
        if learner.needs_features:
            config, teacher_config = learner.model.config, teacher.config
            learner.pairs = layer_pairs(
                distillation.layer_pairs, config.num_hidden_layers, teacher_config.num_hidden_layers
            )
            learner.projectors = projectors(
                learner.pairs, config.hidden_size, teacher_config.hidden_size, learner.seed
            ).to(run.device)
        parameters = [*learner.model.parameters(), *learner.projectors.parameters()]
        learner.optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )


def _batches(blocks: np.ndarray, batch_size: int, steps: int) -> Any:
    """The same batches in the same order for everyone: shuffled epochs, from a fixed seed."""
    rng = np.random.default_rng(DATA_SEED)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(blocks.shape[1])])
        chosen, order = order[:batch_size], order[batch_size:]
        yield blocks[:, chosen]


def _targets(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """keep [batch, block]: positions whose next token is learned; targets: those next tokens [tokens]."""
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    keep = following != IGNORED
    return keep, following[keep]


@torch.no_grad()
def _teacher_signal(
    teacher: Forward | None, learners: list[Learner], ids: torch.Tensor, labels: torch.Tensor, run: Runtime
) -> dict[str, Any]:
    """{"outputs": OnlineTeacher at the learned positions, "hidden": states [batch, block, hidden]}.

    Logits of a moderate size are computed once, for all; others by each student, a few tokens at a time.
    """
    if teacher is None or not any(learner.needs_logits for learner in learners):
        return {}
    keep, _ = _targets(labels)
    with run.autocast():
        output = teacher(ids, keep, hidden=any(learner.needs_features for learner in learners))
        outputs = OnlineTeacher(output.states, teacher.head)
        if 4 * len(output.states) * teacher.model.config.vocab_size <= TEACHER_LOGITS_BYTES:
            outputs = OnlineTeacher(plain_logits(output.states, teacher.head).float(), Head(None))
    return {"outputs": outputs, "hidden": output.hidden}


def _step(
    learner: Learner,
    signal: dict[str, Any],
    ids: torch.Tensor,
    labels: torch.Tensor,
    training: spec.Optimisation,
    distillation: spec.Distillation,
    step: int,
    steps: int,
    run: Runtime,
) -> float:
    keep, targets = _targets(labels)
    if not len(targets):
        return 0.0
    torch.manual_seed(learner.seed * 1_000_003 + step)
    with run.autocast():
        output = learner.forward(ids, keep, hidden=learner.needs_features)
        loss = _loss(learner, output, targets, labels != IGNORED, signal, distillation, step / steps)
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
    output: Output,
    targets: torch.Tensor,
    valid: torch.Tensor,
    signal: dict[str, Any],
    distillation: spec.Distillation,
    progress: float,
) -> torch.Tensor:
    head = learner.forward.head
    if not learner.needs_logits:
        return fused_loss(output.states, head, targets)
    loss = fused_loss(output.states, head, targets, signal["outputs"], _objective(distillation))
    strength = feature_weight(progress, distillation.decay)
    if not learner.needs_features or strength == 0:
        return loss
    for (s, t), projector in zip(learner.pairs, learner.projectors, strict=True):
        weighted = feature_loss(
            output.hidden[s][valid],
            getattr(projector, "weight", None),
            signal["hidden"][t][valid],
            distillation.l2_weight,
            distillation.direction_weight,
            distillation.norm_weight,
        )
        loss = loss + strength * weighted / len(learner.pairs)
    return loss


def _objective(wanted: spec.Distillation) -> Objective:
    return Objective(wanted.objective, wanted.mix, wanted.temperature, wanted.ce_weight, wanted.top_k)


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, cosine down to FINAL_RATE."""
    ramp = max(1, round(steps * warmup))
    if step < ramp:
        return (step + 1) / ramp
    progress = (step - ramp) / max(1, steps - ramp)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
