"""The estimate of a training's time: it times what the training will do, and touches nothing of it."""

import torch
from test_engine import RUN, SMALL, blocks_of, students, weights

from featkd.distill import pace
from featkd.distill.__main__ import main
from featkd.models.llama import llama_config
from featkd.spec import Optimisation
from featkd.training import Shape


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


def test_every_further_block_adds_the_same_time():
    config = llama_config(Shape(hidden_size=16, layers=9, heads=2, intermediate_size=32), 300, 32, 0)
    assert pace._deepened(config, lambda found: [5.0 + 3 * found.num_hidden_layers, 7.0]) == [5.0 + 27, 7.0]
    config.num_hidden_layers = 1
    assert pace._deepened(config, lambda found: [5.0 + 3 * found.num_hidden_layers]) == [8.0]


def test_the_child_tells_it_before_a_long_training_and_trains_without_where_it_fails(folder, tmp_path, monkeypatch):
    def events(steps):
        told = []
        job = {
            "mode": "students",
            **dict.fromkeys(("teacher", "tokenizer"), str(folder / "teacher")),
            "tokens": str(folder),
            "students": [{"name": "s", "recipe": {}, "seed": 0, "size": SMALL.model_dump()}],
            "training": {"tokens": steps * 4 * 32, "batch_size": 4},
            "compute": {"threads": 1, "precision": "fp32"},
            "out": str(tmp_path),
        }
        main(job, lambda event, **fields: told.append(event))
        return told

    assert events(50) == ["estimate", *["progress"] * 50]
    assert events(49) == ["progress"] * 49
    monkeypatch.setattr(pace, "seconds", lambda *given: 1 / 0)
    assert events(50) == ["progress"] * 50
