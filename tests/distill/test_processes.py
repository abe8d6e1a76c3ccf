"""Several processes (gloo) train as one does, whole or divided by FSDP2; what fails in one of them ends them all."""

import textwrap
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tiny_models
from safetensors.torch import load_file
from test_engine import RUN, SMALL, TRAINING, apart, same

from featkd import specfile
from featkd.child import run_child
from featkd.distill import engine
from featkd.distill.batches import IGNORED, micro_batches
from featkd.distill.learner import Learner
from featkd.distill.parallel import Processes
from featkd.distill.runtime import Runtime
from featkd.errors import InputError, RunError
from featkd.models import given, student
from featkd.teaching import Distillation

ARMS = {
    "sft": None,
    "logit-kd": Distillation().outputs_only(),
    "feature-kd": Distillation(),
    "feature-kd-pca": Distillation(
        projector="pca", layer_pairs=[(0, 0), (1, 1)], relation_weight=0.1, relation_heads=2, guard=False
    ),
}
SIZE = SMALL.model_copy(update={"layers": 2, "intermediate_size": 33})  # 33 rows: unequal parts of two processes
BATCH = TRAINING.batch_size
MICRO = {"none": BATCH, "fsdp": BATCH // 2}  # blocks of all processes together


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A teacher, and blocks that are learned in whole, in part, and not at all."""
    root = tiny_models.save_with_blocks(tmp_path_factory.mktemp("uneven"))
    for part in ("train", "valid"):
        blocks = np.load(root / f"{part}.npy")
        blocks[1][::2, :27] = IGNORED
        blocks[1][::3] = IGNORED
        np.save(root / f"{part}.npy", blocks)
    return root


def trained(folder, out, stop=None, sharding="none", **changes):
    """What the child said at its end, the steps it told, and the weights it saved.

    stop: the step after which it is ended for once; the second goes on.
    """
    job = {
        "mode": "students",
        "teacher": str(folder / "teacher"),
        "tokenizer": str(folder / "teacher"),
        "tokens": str(folder),
        "students": [
            {"name": arm, "recipe": recipe and recipe.model_dump(), "seed": 0, "size": SIZE.model_dump()}
            for arm, recipe in ARMS.items()
        ],
        "training": TRAINING.model_copy(update={"micro_batch_size": MICRO[sharding], **changes}).model_dump(),
        "compute": {"threads": 2, "precision": "fp32", "processes": 2, "sharding": sharding, "checkpoint_minutes": 0},
        "out": str(out),
        "checkpoints": str(out / "checkpoints"),
        "identity": "x",
    }
    steps = []

    def watch(event):
        steps.append(event["step"])
        if len(steps) == 1:
            assert {socket.laddr.ip for p in at_work(out) for socket in p.net_connections()} == {"127.0.0.1"}
        if event["step"] == stop and steps.count(stop) == 1:
            raise KeyboardInterrupt

    if stop:
        with pytest.raises(KeyboardInterrupt):
            run_child("featkd.distill", job, out, on_event=watch)
        gone(out)
    done = run_child("featkd.distill", job, out, on_event=watch)
    gone(out)
    return SimpleNamespace(
        done=done, steps=steps, weights={arm: load_file(out / arm / "model.safetensors") for arm in ARMS}
    )


def gone(out, within_s=10):
    """Nobody works on the job in `out` any more, at the latest in a moment."""
    deadline = time.monotonic() + within_s
    while left := at_work(out):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def at_work(out):
    """The processes on the job in `out`, the launcher among them."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(out / "job.json") in (p.info["cmdline"] or [])]


def alone(folder, micro):
    """(weights at the start, {arm: its learner}) of one process."""
    training = TRAINING.model_copy(update={"micro_batch_size": micro})
    made = given.load(folder / "teacher")
    learners = [Learner(arm, student.build(SIZE, made, 0)[0], 0, ARMS[arm], training, "s") for arm in ARMS]
    start = {name: value.clone() for name, value in learners[0].model.state_dict().items()}
    blocks = [np.load(folder / f"{part}.npy") for part in ("train", "valid")]
    engine.train(learners, made, *blocks, RUN, lambda **fields: None)
    return start, {learner.name: learner for learner in learners}


@pytest.fixture(scope="module", params=["none", "fsdp"])
def together(request, uneven, tmp_path_factory):
    return request.param, trained(uneven, tmp_path_factory.mktemp(request.param), sharding=request.param)


def check(found, reference, arm):
    start, learners = reference
    expected, (curve, own) = learners[arm].model.state_dict(), (learners[arm].curve, found.done["models"][arm]["curve"])
    assert apart(found.weights[arm], {name: expected[name] for name in found.weights[arm]}) < 1e-4 * apart(
        expected, start
    )
    assert [point["validation_loss"] for point in own] == pytest.approx(
        [point["validation_loss"] for point in curve], rel=1e-6
    )


def test_two_processes_train_as_one(together, uneven):
    """Each has half of a micro-batch: feature terms, whose scales are a micro-batch's, are those of one process that
    takes so few. Without them it is the whole batch that is learned from, whatever its parts."""
    sharding, found = together
    for micro, arms in ((MICRO[sharding] // 2, list(ARMS)), (BATCH, ["sft", "logit-kd"])):
        reference = alone(uneven, micro)
        for arm in arms:
            check(found, reference, arm)
    assert found.steps == list(range(1, 9)), "one of them tells"


def test_models_are_divided_where_that_was_asked_for(together):
    sharding, found = together
    types, students = found.done["parameter_types"], found.done["models"]
    assert found.done["world_size"] == 2
    assert set(types) == {*ARMS, "teacher"}
    blocks, rest = 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 33 + 2 * 16), 2 * 300 * 16 + 16
    held = rest + (blocks if sharding == "none" else 2 * (16 * 16 + 8 * 16 + 2 * 17 * 16 + 8 * 33 + 16))
    for arm in ARMS:
        whole = {"Parameter": blocks + rest} if sharding == "none" else {"Parameter": rest, "DTensor": blocks}
        assert types[arm] == whole
        assert students[arm]["parameters"] == blocks + rest
    assert set(types["teacher"]) == ({"Parameter"} if sharding == "none" else {"Parameter", "DTensor"})
    assert students["sft"]["memory_bytes"] == 16 * held + 4 * 21, "of the first process; a step count per tensor"


def test_parts_of_a_batch_add_up_to_it(uneven):
    batch = np.load(uneven / "train.npy")[:, :12]
    runs = [Runtime("cpu", False, Processes(3, rank)) for rank in range(3)]
    whole, parts = list(micro_batches(batch, 6, RUN)), [list(micro_batches(batch, 6, run)) for run in runs]
    assert {len(found) for found in parts} == {2}
    for number, micro in enumerate(whole):
        own = [found[number] for found in parts]
        assert sum(part.share for part in own) == pytest.approx(micro.share)
        assert np.concatenate([part.ids for part in own]).tolist() == micro.ids.tolist()
        assert all(len(part.targets) for part in own), "a part with nothing to learn takes part, at a share of 0"
        assert np.concatenate([part.targets for part in own if part.share]).tolist() == micro.targets.tolist()
    numbers = [part.number for found in parts for part in found]
    assert len(set(numbers)) == len(numbers), "their random numbers differ"


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"processes": 3}, "compute.processes: 3 must divide training.micro_batch_size 4"),
        ({"sharding": "fsdp"}, "sharding: fsdp divides models among processes: write processes: 2 or more"),
    ],
)
def test_what_cannot_be_divided_is_named(compute, message):
    tree = {
        "name": "x",
        "data": {"files": ["a.txt"]},
        "teacher": {"model": "m"},
        "students": [{"name": "s", "layers": 1}],
    }
    training = {"tokens": 1, "micro_batch_size": 4}
    with pytest.raises(InputError, match=message):
        specfile.validate({**tree, "training": training, "compute": compute})


WORKER = """
import os, signal, sys, time
from featkd.distill import launch
from featkd.errors import InputError

def main(job, emit):
    rank, what = int(os.environ["RANK"]), job["what"]
    emit("progress", step=rank)
    if rank == 1 and what == "input":
        raise InputError("data.files: no such file")
    if rank == 1 and what == "crash":
        print("the reason", file=sys.stderr, flush=True)
        os._exit(7)
    if what == "lost":
        raise RuntimeError("connection closed by peer") if rank == 0 else os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

if __name__ == "__main__":
    launch.run("some_ranks", main)
"""


def ranks(out, monkeypatch, what, on_event=lambda event: None):
    (out / "some_ranks.py").write_text(textwrap.dedent(WORKER))
    monkeypatch.syspath_prepend(out)
    monkeypatch.setenv("PYTHONPATH", str(out), prepend=":")
    try:
        return run_child("some_ranks", {"what": what, "compute": {"processes": 2}}, out, on_event)
    finally:
        gone(out, within_s=5)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("input", InputError, "data.files: no such file"),
        ("lost", RunError, "some_ranks was killed by SIGKILL (out of memory?"),
        pytest.param("crash", RunError, "some_ranks ended with exit status 7: the reason", marks=pytest.mark.slow),
    ],
)
def test_what_one_of_them_fails_of_ends_all(tmp_path, monkeypatch, what, error, message):
    started = time.monotonic()
    with pytest.raises(error) as raised:
        ranks(tmp_path, monkeypatch, what)
    assert str(raised.value).startswith(message)
    assert time.monotonic() - started < 40, "they would sleep for a minute"
    assert not list(tmp_path.glob("ranks-*")), "and nothing is left behind"


@pytest.mark.slow
def test_an_exception_in_the_parent_ends_all(tmp_path, monkeypatch):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ranks(tmp_path, monkeypatch, "sleep", stop)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 5])
def test_going_on_gives_the_same_weights_bit_for_bit(together, uneven, tmp_path, stop):
    sharding, whole = together
    found = trained(uneven, tmp_path, stop, sharding=sharding)
    assert found.steps[:stop] == list(range(1, stop + 1)) and found.steps[-1] == 8
    assert len(found.steps) < 8 + stop, "what is done is not done again"
    for arm in ARMS:
        assert same(found.weights[arm], whole.weights[arm]), arm
        assert found.done["models"][arm]["curve"] == whole.done["models"][arm]["curve"]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_token_that_one_process_cannot_read_ends_both(uneven, tmp_path, sharding):
    root = tiny_models.save_with_blocks(tmp_path)
    blocks = np.load(root / "train.npy")
    blocks[:, 3, 5] = 100_000
    np.save(root / "train.npy", blocks)
    with pytest.raises(RunError, match="IndexError: index out of range"):
        trained(root, tmp_path, sharding=sharding)
    gone(tmp_path)


@pytest.mark.slow
def test_nan_is_told_as_of_one_process(uneven, tmp_path):
    with pytest.raises(RunError, match=r"the loss of \S+ is (nan|inf) at step \d of 8; lower .* the batch is in .*npy"):
        trained(uneven, tmp_path, learning_rate=1e30, grad_clip=1e30)
    assert np.load(tmp_path / "checkpoints" / "failed-batch.npy").shape == (3, BATCH, 32)
