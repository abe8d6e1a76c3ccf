"""A training that was ended at any moment goes on to the same weights, bit for bit."""

import json
import random
import subprocess
import sys
import time

import pytest
import tiny_models
from test_engine import RUN, SMALL, TRAINING, blocks_of, same, students, train, weights

from featkd.child import run_child
from featkd.distill import engine
from featkd.distill.checkpoint import Checkpoints
from featkd.distill.learner import Learner
from featkd.errors import InputError
from featkd.models import given
from featkd.teaching import Distillation

ARMS = ["sft", "logit-kd", "feature-kd"]


class Ended(Exception):
    pass


def ended_after(step):
    def on_step(**fields):
        if fields["step"] == step:
            raise Ended

    return on_step


@pytest.mark.parametrize("step", [1, 5, 8])
@pytest.mark.parametrize(
    "wanted",
    [
        Distillation(),
        Distillation(projector="orthonormal", layer_pairs="auto"),
        Distillation(projector="pca", relation_weight=0.1, relation_heads=2, layer_pairs=[(0, 0), (1, 1)]),
    ],
)
def test_going_on_gives_the_weights_and_the_curve_of_an_uninterrupted_training(folder, tmp_path, step, wanted):
    training = TRAINING.model_copy(update={"micro_batch_size": 2})
    whole = train(folder, ARMS, training=training, distillation=wanted)
    made, learners = students(folder, ARMS, training=training, distillation=wanted)
    kept = Checkpoints(tmp_path, "x", every_s=0)
    with pytest.raises(Ended):
        engine.train(learners, made, *blocks_of(folder), RUN, ended_after(step), kept)
    taken = []
    made, learners = students(folder, ARMS, training=training, distillation=wanted)
    kept = Checkpoints(tmp_path, "x", every_s=0)
    engine.train(learners, made, *blocks_of(folder), RUN, lambda **fields: taken.append(fields["step"]), kept)
    assert taken == list(range(step + 1, 9)), "what is done is not done again"
    for learner in learners:
        assert same(weights(learner), weights(whole[learner.name])), learner.name
        assert learner.curve == whole[learner.name].curve
    assert len(list(tmp_path.iterdir())) == 1, "the newest checkpoint alone is kept"


def test_dropout_repeats(tmp_path, folder):
    teacher = given.load(tiny_models.save("gpt2", tmp_path / "teacher"))
    assert teacher.config.resid_pdrop > 0
    found = []
    for stop in (None, 4):
        for attempt in (stop, None) if stop else (None,):
            learner = Learner("s", given.load(tiny_models.save("gpt2", tmp_path / "s")), 0, Distillation(), TRAINING)
            kept = Checkpoints(tmp_path / "kept", "x", every_s=0) if stop else None
            on_step = ended_after(attempt) if attempt else lambda **fields: None
            try:
                engine.train([learner], teacher, *blocks_of(folder), RUN, on_step, kept)
            except Ended:
                pass
        found.append(weights(learner))
    assert same(*found)


def test_the_guard_s_verdict_is_kept(folder, tmp_path):
    made, learners = students(folder, ["feature-kd"])
    kept = Checkpoints(tmp_path, "x", every_s=0)
    with pytest.raises(Ended):
        engine.train(learners, made, *blocks_of(folder), RUN, ended_after(4), kept)
    file = next(tmp_path.glob("step-4/state.json"))
    state = json.loads(file.read_text())
    state["learners"][0]["guard"]["dropped_at"] = 0.5
    file.write_text(json.dumps(state))
    made, learners = students(folder, ["feature-kd"])
    engine.train(learners, made, *blocks_of(folder), RUN, lambda **fields: None, Checkpoints(tmp_path, "x", 1e9))
    assert learners[0].alignment.record()["dropped_at"] == 0.5


def test_a_checkpoint_of_another_training_is_refused(folder, tmp_path):
    made, learners = students(folder, ["sft"])
    with pytest.raises(Ended):
        engine.train(learners, made, *blocks_of(folder), RUN, ended_after(2), Checkpoints(tmp_path, "x", every_s=0))
    made, learners = students(folder, ["sft"])
    with pytest.raises(InputError, match=r"checkpoint: .*step-2 is of another spec, data or version; remove it"):
        engine.train(
            learners, made, *blocks_of(folder), RUN, lambda **fields: None, Checkpoints(tmp_path, "y", every_s=0)
        )


def job(folder, out, minutes=0.0):
    recipes = {"sft": None, "logit-kd": Distillation().outputs_only(), "feature-kd": Distillation()}
    return {
        "mode": "students",
        "teacher": str(folder / "teacher"),
        "tokenizer": str(folder / "teacher"),
        "tokens": str(folder),
        "students": [
            {"name": arm, "recipe": recipe and recipe.model_dump(), "seed": 0, "size": SMALL.model_dump()}
            for arm, recipe in recipes.items()
        ],
        "training": TRAINING.model_copy(update={"tokens": 60 * 4 * 32}).model_dump(),
        "compute": {"threads": 1, "checkpoint_minutes": minutes},
        "out": str(out),
        "checkpoints": str(out / "checkpoints"),
        "identity": "x",
    }


def digests(done):
    return {name: meta["weights_sha256"] for name, meta in done["models"].items()}


def kill_and_go_on(folder, out, moments):
    """The child is killed (-9) once at each of the moments, then left to finish. Returns its digests and the steps at
    which it went on."""
    given_job = json.dumps(job(folder, out))
    (out / "job.json").write_text(given_job)
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", "featkd.distill", str(out / "job.json")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        moment(process)
        process.kill()
        process.wait()
        process.stdout.close()
    events = []
    done = run_child("featkd.distill", job(folder, out), out, on_event=events.append)
    return digests(done), [event["step"] for event in events if event["event"] == "progress"]


def after_step(step, delay=0.0):
    def moment(process):
        for line in process.stdout:
            event = json.loads(line)
            assert event["event"] != "error", event
            if event.get("step", 0) >= step or event["event"] == "done":
                break
        time.sleep(delay)

    return moment


@pytest.mark.slow
def test_a_child_that_is_killed_at_twenty_random_moments_ends_with_the_same_weights(folder, tmp_path):
    """From its imports over loading, training, checkpoints and looks to the saving of its models."""
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = digests(run_child("featkd.distill", {**job(folder, whole), "checkpoints": None}, whole))
    rng, kills = random.Random(0), 0
    while kills < 20:
        out = tmp_path / str(kills)
        out.mkdir()
        moments = []
        for _ in range(4):
            step, delay = rng.randrange(0, 60), rng.random() * 0.05
            early = rng.random() * 6
            moments.append(after_step(step, delay) if step else lambda process, early=early: time.sleep(early))
        moments.append(after_step(60, rng.random() * 0.3))
        found, _ = kill_and_go_on(folder, out, moments)
        assert found == expected
        kills += len(moments)
