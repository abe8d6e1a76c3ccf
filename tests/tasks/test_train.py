"""Students into the store: only what is missing is trained, in as many passes as memory asks for, on from where a run
was ended. And what is told of a teacher that the user gave."""

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny_models

from featkd import specfile
from featkd.child import run_child
from featkd.distill.estimate import Need, passes
from featkd.errors import InputError
from featkd.result import Training
from tasks import plan, train
from tasks.context import Context


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher and token blocks."""
    return tiny_models.save_with_blocks(tmp_path_factory.mktemp("made"))


def distilled(made, root, **changes):
    """(arm, size, seed) to model, and the line that the stage said."""
    tree = {
        "name": "x",
        "data": {"files": ["a.txt"]},
        "teacher": {"model": str(made / "teacher")},
        "students": [{"name": "s", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 32}],
        "block_size": 32,
        "latency": {"prompt_tokens": 8, "new_tokens": 8},
        "training": {"tokens": 20 * 4 * 32, "batch_size": 4},
    }
    context = Context(specfile.validate(tree | changes), root)
    teacher = train.Model(made / "teacher", "digest", Training(parameters=1))
    found = train.distil.fn(context, teacher, SimpleNamespace(path=made, key="blocks"))
    return found, context.log.stages[-1].note


@pytest.fixture(scope="module")
def first(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("first")
    return root, distilled(made, root)[0]


def digests(found):
    return {name: model.digest for name, model in found.items()}


def test_what_each_student_cost_is_recorded(first):
    trained = {arm: model.training for (arm, _, _), model in first[1].items()}
    assert trained["sft"].teacher_seconds == 0
    assert trained["logit-kd"].teacher_seconds == trained["feature-kd"].teacher_seconds > 0
    assert all(part.seconds > part.teacher_seconds for part in trained.values())
    assert trained["sft"].memory_bytes == 16 * trained["sft"].parameters + 4 * 12, "with a step count per tensor"
    assert trained["feature-kd"].memory_bytes > trained["logit-kd"].memory_bytes == trained["sft"].memory_bytes


def test_adding_an_ablation_trains_that_alone_and_another_name_nothing(made, first):
    root, before = first
    found, note = distilled(made, root, ablations={"no-norm": {"norm_weight": 0}})
    assert note == "1 trained, 3 reused"
    assert {name: digest for name, digest in digests(found).items() if name in before} == digests(before)
    found, note = distilled(made, root, ablations={"without-norm": {"norm_weight": 0}})
    assert note == "0 trained, 4 reused" and ("feature-kd-without-norm", "s", 0) in found


def test_passes_and_a_run_that_was_ended_change_no_weights(made, first, tmp_path, monkeypatch, capsys):
    """memory_gb has room for two students: two passes; the first is ended at its tenth step and goes on."""

    def needs(spec, teacher, places, device):
        return Need(0, 0), [Need(100_000_000, 0)] * len(places)

    monkeypatch.setattr(plan, "needs", needs)
    once = {"compute": {"memory_gb": 0.71, "checkpoint_minutes": 0}}

    def ended(module, job, workdir, on_event, env):
        def watch(event):
            on_event(event)
            if event.get("step") == 10:
                raise KeyboardInterrupt

        return run_child(module, job, workdir, on_event=watch, env=env)

    with monkeypatch.context() as patched:
        patched.setattr(train, "run_child", ended)
        with pytest.raises(KeyboardInterrupt):
            distilled(made, tmp_path, **once)
    assert "distil: 2 passes of the teacher, for 0.7 GB hold no more students at a time" in capsys.readouterr().err
    found, note = distilled(made, tmp_path, **once)
    assert digests(found) == digests(first[1])
    assert note == "3 trained, 0 reused; 2 passes of the teacher"
    assert "2 students go on from the checkpoint" in capsys.readouterr().err
    assert not list((tmp_path / ".featkd" / "checkpoints").iterdir()), "nothing is left"


def test_as_many_students_side_by_side_as_memory_has_room_for():
    teacher, small, large = Need(1000, 500), Need(100, 200), Need(300, 50)
    room = 500_000_000 + 1500
    assert passes(teacher, [small] * 3, room + 500, "cpu") == [[0, 1, 2]]
    assert passes(teacher, [small] * 3, room + 499, "cpu") == [[0, 1], [2]]
    assert passes(teacher, [small, large, small], room + 400, "cpu") == [[0], [1], [2]]
    with pytest.raises(InputError, match=r"compute.memory_gb: the teacher and one student need about 0.5 GB to train"):
        passes(teacher, [small, large], room + 349, "cpu")


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_models.save("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert train._parameters(folder) == expected
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert train._parameters(folder) == expected
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=30_000)
    assert len(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]) > 1
    assert train._parameters(folder) == expected
