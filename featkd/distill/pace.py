"""How long a training will take, told before it starts.

The teacher's pass over one micro-batch is timed, and steps of students that have a few of their blocks only, at two
depths, one student after the other: every further block is taken to add the same time. `make bench-scale` holds this
against what trainings took.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from featkd import spec
from featkd.distill.batches import block_losses, micro_batches, steps_of
from featkd.distill.engine import CURVE_POINTS
from featkd.distill.forward import Forward
from featkd.distill.learner import Learner
from featkd.distill.runtime import Runtime
from featkd.distill.signal import Signal, online
from featkd.models.student import student_config
from featkd.teaching import Recipe
from featkd.training import Optimisation

DEPTHS = (2, 4)
FEWEST_STEPS = 50  # a shorter training is over before its estimate is worth having
REPEATS = 2


class Work(NamedTuple):
    """How often a training does what: micro-batches, updates, micro-batches of held-out text."""

    micro_batches: int
    updates: int
    looks: int


def work(training: Optimisation, block_size: int, valid_blocks: int) -> Work:
    steps, size = steps_of(training, block_size), training.micro_batch_size or training.batch_size
    return Work(steps * training.batch_size // size, steps, CURVE_POINTS * -(-valid_blocks // size))


def seconds(
    learners: list[Learner], teacher: Any, blocks: np.ndarray, times: Work, run: Runtime
) -> tuple[float, float]:
    """(of the teacher's pass, of all students) of a whole training; the learners are not touched.

    teacher: a model, which goes to the device, or None. blocks: the training text, as for `engine.train`, of which
    something is learned.
    """
    training = learners[0].training
    size = training.micro_batch_size or training.batch_size
    batch = next(micro_batches(blocks, size, run))
    signal, of_teacher = Signal(), 0.0
    if teacher is not None:
        forward = Forward(teacher.to(run.device).eval())
        aligned = any(learner.aligned for learner in learners)
        layers = set(range(teacher.config.num_hidden_layers + 1)) if aligned else set()
        signal = online(forward, batch, layers, set(), run)
        with run.autocast():  # which keeps the weights that it has rounded for the next round
            (of_teacher,) = _timed([lambda: online(forward, batch, layers, set(), run)], run)

    def of_student(config: Any, recipe: Recipe) -> list[float]:
        if recipe:  # pairs that fit any depth, and no hooks
            recipe = recipe.model_copy(update={"layer_pairs": "uniform", "relation_weight": 0.0})
        learner = Learner("", _model(config, run), 0, recipe, training)
        learner.prepare(teacher, blocks, run)
        step = [
            lambda: learner.add_gradients(signal, batch, 0, 1, run),
            lambda: learner.update(0, 1),
            lambda: block_losses(learner.forward, blocks[:, :size], run, size),
        ]
        return _timed(step, run)

    known: dict[str, float] = {}
    students_s = 0.0
    for config, recipe in _everyone(learners):
        kind = config.to_json_string() + repr(recipe)
        if kind not in known:
            each = _deepened(config, lambda config, recipe=recipe: of_student(config, recipe))
            known[kind] = sum(often * one for often, one in zip(times, each, strict=True))
        students_s += known[kind]
    return times.micro_batches * of_teacher, students_s


def _everyone(learners: list[Learner]) -> list[tuple[Any, Recipe]]:
    """Configuration and recipe of every learner, and of the twins that a guard needs (engine.py)."""
    found = {(str(x.recipe), x.size, x.seed): (x.model.config, x.recipe) for x in learners}
    for learner in learners:
        if learner.aligned and learner.recipe.guard:
            recipe = learner.recipe.outputs_only()
            found.setdefault((str(recipe), learner.size, learner.seed), (learner.model.config, recipe))
    return list(found.values())


def _deepened(config: Any, measure: Callable[[Any], list[float]]) -> list[float]:
    """What `measure` finds for a configuration, of its own depth from those of DEPTHS."""
    depth = config.num_hidden_layers
    low, high = (min(depth, few) for few in DEPTHS)
    first = measure(_at_depth(config, low))
    if high == low:
        return first
    second = measure(_at_depth(config, high))
    blocks = (depth - low) / (high - low)
    return [a + max(0.0, b - a) * blocks for a, b in zip(first, second, strict=True)]


def _at_depth(config: Any, layers: int) -> Any:
    return student_config(spec.Student(name="probe", layers=layers), config)


def _model(config: Any, run: Runtime) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(run.device)


def _timed(parts: list[Callable[[], Any]], run: Runtime) -> list[float]:
    """Seconds of each part, one after the other: of the rounds after the first the fastest."""
    rounds = []
    for _ in range(REPEATS):
        clocks = [run.clock()]
        for part in parts:
            part()
            clocks.append(run.clock())
        rounds.append(np.diff(clocks))
    return np.min(rounds[1:], axis=0).tolist()
