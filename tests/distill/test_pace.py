"""The estimate of a training's time: it times what the training will do, and touches nothing of it."""

import torch
from test_engine import RUN, blocks_of, students, weights

from featkd.distill import pace
from featkd.spec import Optimisation


def test_work_is_counted_as_the_engine_does_it():
    training = Optimisation(tokens=100 * 8 * 64, batch_size=8, micro_batch_size=2)
    assert pace.work(training, 64, 5) == pace.Work(micro_batches=400, updates=100, looks=12 * 3)


def test_the_estimate_follows_the_work_and_leaves_the_models_alone(folder):
    teacher, learners = students(folder, ["sft", "logit-kd", "feature-kd"])
    before, blocks = [weights(learner) for learner in learners], blocks_of(folder)[0]
    of_teacher, of_students = pace.seconds(learners, teacher, blocks, pace.Work(1000, 1000, 0), RUN)
    assert of_teacher > 0 and of_students > of_teacher / 10
    for learner, its in zip(learners, before, strict=True):
        assert learner.optimiser is None
        assert all(torch.equal(value, its[name]) for name, value in weights(learner).items())
    alone, nothing = learners[:1], pace.Work(0, 0, 0)
    assert pace.seconds(alone, None, blocks, pace.Work(1000, 1000, 0), RUN)[0] == 0.0
    assert pace.seconds(learners, teacher, blocks, nothing, RUN) == (0.0, 0.0)


def test_a_twin_that_a_guard_needs_is_counted_once(folder):
    _, learners = students(folder, ["feature-kd"], ablations={"no-norm": {"norm_weight": 0}})
    assert len(pace._everyone(learners)) == 3
    _, learners = students(folder, ["logit-kd", "feature-kd"])
    assert len(pace._everyone(learners)) == 2
