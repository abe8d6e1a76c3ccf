"""One teacher pass, many students: every student sees the same batches and learns from the same teacher forward.

Students are independent of each other: own random state, own optimiser, own clipping. Trained alone or beside
others they get the same weights, bit for bit, on the same machine with the same number of threads and processes.
"""

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featkd.distill.batches import (
    IGNORED,
    MicroBatch,
    batches,
    begins_anew,
    block_losses,
    mean_loss,
    micro_batches,
    steps_of,
)
from featkd.distill.cache import Cache
from featkd.distill.checkpoint import Checkpoints
from featkd.distill.forward import Forward, check_apart
from featkd.distill.learner import Learner
from featkd.distill.runtime import Runtime
from featkd.distill.signal import Signal, online
from featkd.errors import RunError

CURVE_POINTS = 12
SHARED = ("tokens", "batch_size", "micro_batch_size")


def train(
    learners: list[Learner],
    teacher: Any | None,
    train_blocks: np.ndarray,
    valid_blocks: np.ndarray,
    run: Runtime,
    on_step: Callable[..., None],
    checkpoints: Checkpoints | None = None,
    failed: Path | None = None,
    cache: Cache | None = None,
) -> dict[str, float]:
    """Train all learners on the same batches. Blocks: int32 [3, blocks, block_size]: ids, labels, positions.

    Learners agree on tokens and batch sizes (SHARED). `on_step(step=, steps=, tokens=, loss=, tokens_per_s=,
    validation_loss=)` is called after each step, with the first learner's loss; validation_loss: name to held-out loss
    of each learner, empty but at the points of the curves. `checkpoints`: where to go on from, and to write to.
    `failed`: the file (.npy) for a batch whose loss is not finite. `cache`: what need not be asked of the teacher,
    whose weights go where nothing has to be. Under bf16 the teacher's linear layers stay rounded: it is good for no
    second training.
    Returns {"teacher_seconds", "steps", "tokens"}. Raises RunError when a loss is not finite.
    """
    training = learners[0].training
    if any(getattr(learner.training, name) != getattr(training, name) for learner in learners for name in SHARED):
        raise ValueError(f"learners of one pass share {', '.join(SHARED)}")
    if not (train_blocks[1][:, 1:] != IGNORED).any():
        raise RunError("training: no token is learned: all labels are masked; check data.response_field and block_size")
    block = train_blocks.shape[2]
    steps = steps_of(training, block)
    twins = _twins(learners)
    everyone = [*learners, *(twin for twin in twins.values() if twin not in learners)]
    taught_by = _ready(teacher, everyone, train_blocks, run, cache)
    begun = checkpoints.restore(everyone) if checkpoints else {"step": 0, "teacher_seconds": 0.0}
    teacher_seconds, started = begun["teacher_seconds"], run.clock()
    marks = {round(point * steps / CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)} | {steps}
    for step, chosen in enumerate(batches(train_blocks.shape[1], training.batch_size, steps)):
        if step < begun["step"]:
            continue
        blocks = train_blocks[:, chosen]
        losses = dict.fromkeys(everyone, 0.0)
        for batch in micro_batches(blocks, training.micro_batch_size, run, chosen):
            clock = run.clock()
            signal = _signal(taught_by, everyone, batch, step / steps, run, cache)
            teacher_seconds += run.clock() - clock
            for learner in everyone:
                clock = run.clock()
                losses[learner] += learner.add_gradients(signal, batch, step, steps, run)
                if not math.isfinite(losses[learner]):
                    raise _not_finite(learner, signal, losses[learner], f"step {step + 1} of {steps}", blocks, failed)
                if batch.last:
                    learner.update(step, steps)
                learner.seconds += run.clock() - clock
            del signal  # before the next: logits are the largest tensors here
        done = (step + 1) * training.batch_size * block
        looked = {}
        if step + 1 in marks:
            looked = _look(learners, everyone, twins, valid_blocks, done, (step + 1) / steps, run)
        if checkpoints and run.processes.as_the_first(checkpoints.due()):
            checkpoints.save(step + 1, everyone, teacher_seconds)
        rate = (step + 1 - begun["step"]) * training.batch_size * block / (run.clock() - started)
        on_step(
            step=step + 1,
            steps=steps,
            tokens=done,
            loss=run.processes.total(losses[everyone[0]]),
            tokens_per_s=rate,
            validation_loss=looked,
        )
    return {"teacher_seconds": teacher_seconds, "steps": steps, "tokens": steps * training.batch_size * block}


def _ready(
    teacher: Any | None, learners: list[Learner], train_blocks: np.ndarray, run: Runtime, cache: Cache | None = None
) -> Forward | None:
    if teacher is not None:
        teacher.requires_grad_(False)
        run.processes.shard(teacher)
        teacher.to(run.device).eval()
    for learner in learners:
        learner.prepare(teacher, train_blocks, run)
    taught_by = Forward(teacher) if teacher is not None else None
    for forward in [taught_by, *(learner.forward for learner in learners)] if begins_anew(train_blocks) else []:
        if forward is not None:
            check_apart(forward)
    if taught_by and run.bf16 and run.processes.mesh is None:
        taught_by.round_once()
    if cache and cache.outputs and (cache.features or not any(learner.aligned for learner in learners)):
        taught_by.release(head=cache.last_hidden is not None)
    return taught_by


def _signal(
    teacher: Forward | None,
    learners: list[Learner],
    batch: MicroBatch,
    progress: float,
    run: Runtime,
    cache: Cache | None = None,
) -> Signal:
    """No more of the teacher than some learner needs."""
    if teacher is None or not any(learner.taught for learner in learners):
        return Signal()
    aligned = [learner.alignment for learner in learners if learner.needs_features(progress)]
    qkv_blocks = {blocks[1] for alignment in aligned if (blocks := alignment.blocks())}
    layers = {layer for alignment in aligned for _, layer in alignment.pairs}
    return (cache.signal if cache else online)(teacher, batch, layers, qkv_blocks, run)


def _look(
    learners: list[Learner],
    everyone: list[Learner],
    twins: dict[Learner, Learner],
    valid_blocks: np.ndarray,
    tokens: int,
    progress: float,
    run: Runtime,
) -> dict[str, float]:
    """Held-out losses, for the curves and for the guard. Returns those of `learners` by name."""
    size = learners[0].training.micro_batch_size or learners[0].training.batch_size
    size //= run.processes.count
    found = {learner: block_losses(learner.forward, valid_blocks, run, size) for learner in everyone}
    for learner in everyone:
        learner.curve.append({"tokens": tokens, "validation_loss": mean_loss(found[learner])})
    for learner, twin in twins.items():
        learner.alignment.judge(_means(found[learner]), _means(found[twin]), progress)
    return {learner.name: learner.curve[-1]["validation_loss"] for learner in learners}


def _means(losses: np.ndarray) -> np.ndarray:
    return losses[:, 0] / losses[:, 1]


def _not_finite(
    learner: Learner, signal: Signal, loss: float, where: str, blocks: np.ndarray, failed: Path | None
) -> RunError:
    kept = ""
    if failed:
        own = failed.with_stem(f"{failed.stem}-{os.getpid()}")  # several processes may come to this at once
        np.save(own, blocks)
        own.replace(failed)
        kept = f"; the batch is in {failed}"
    if signal.outputs is not None and not signal.outputs.hidden.isfinite().all():
        return RunError(
            f"teacher.model: its outputs are not finite at {where}, and nothing can be learned from them: check the "
            f"model, or write compute.precision: fp32{kept}"
        )
    return RunError(
        f"training: the loss of {learner.name} is {loss} at {where}; lower the learning_rate "
        f"({learner.training.learning_rate:g}) or check the data{kept}"
    )


def _twins(learners: list[Learner]) -> dict[Learner, Learner]:
    """For the guard: to every learner with feature terms its like without, trained beside it if need be.

    Learners of one size and seed start from the same weights and do not touch each other, so that it makes no
    difference where the twin comes from.
    """
    twins: dict[Learner, Learner] = {}
    for learner in learners:
        if not (learner.aligned and learner.recipe.guard):
            continue
        recipe = learner.recipe.outputs_only()
        wanted = (recipe, learner.training, learner.size, learner.seed)
        like = [o for o in [*learners, *twins.values()] if (o.recipe, o.training, o.size, o.seed) == wanted]
        if not like:
            name = f"{learner.name} without feature terms"
            like = [Learner(name, copy.deepcopy(learner.model), learner.seed, recipe, learner.training, learner.size)]
        twins[learner] = like[0]
    return twins
