"""Students into the store: only what is missing is trained, in as many passes as memory asks for, on from where a run
was ended. And what is told of a teacher that the user gave."""

import contextlib
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import tiny_models

from featkd import specfile
from featkd.child import run_child
from featkd.distill.estimate import Need, passes
from featkd.errors import InputError
from featkd.models import given
from featkd.result import Training
from tasks import plan, signal, train
from tasks.context import Context

TREE = {
    "name": "x",
    "data": {"files": ["a.txt"]},
    "students": [{"name": "s", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 32}],
    "block_size": 32,
    "latency": {"prompt_tokens": 8, "new_tokens": 8},
    "training": {"tokens": 20 * 4 * 32, "batch_size": 4},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher and token blocks."""
    return tiny_models.save_with_blocks(tmp_path_factory.mktemp("made"))


def distilled(made, root, **changes):
    """(arm, size, seed) to model, and the line that the stage said."""
    tree = TREE | {"teacher": {"model": str(made / "teacher")}}
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


def test_a_cached_signal_is_made_once_and_learned_from_by_all_who_come(made, first, tmp_path, capsys):
    cached = {"teacher_signal": {"outputs": "top-k", "top_k": 8, "features": "int8"}}
    found, note = distilled(made, tmp_path, **cached)
    assert note == "3 trained, 0 reused"
    assert re.search(r"signal +made .* 68 bytes per token, 0.1 MB; 9.\d% of the pr.*; cos", capsys.readouterr().err)
    assert digests(found)["sft", "s", 0] == digests(first[1])["sft", "s", 0], "it has no teacher"
    trained = {arm: model.training for (arm, _, _), model in found.items()}
    parts = list((tmp_path / ".featkd" / "store" / "signal").glob("*/manifest.json"))
    seconds = sum(json.loads(part.read_text())["meta"]["seconds"] for part in parts)
    assert seconds / 2 < trained["logit-kd"].teacher_seconds == trained["feature-kd"].teacher_seconds < seconds
    assert trained["sft"].signal is None and trained["sft"].teacher_seconds == 0
    of_outputs, of_all = trained["logit-kd"].signal, trained["feature-kd"].signal
    assert (of_outputs.outputs, of_outputs.top_k, of_outputs.bytes_per_token) == ("top-k", 8, 8 * (4 + 2))
    assert (of_outputs.features, of_outputs.cosine) == (None, None) and 0 < of_outputs.coverage < 1
    assert (of_all.features, of_all.layers, of_all.bytes_per_token) == ("int8", [0], 8 * (4 + 2) + 16 + 4)

    found, note = distilled(made, tmp_path, **cached, ablations={"no-norm": {"norm_weight": 0}})
    assert note == "1 trained, 3 reused" and re.search("signal +reused", capsys.readouterr().err)
    added = found["feature-kd-no-norm", "s", 0].training
    assert seconds / 3 < added.teacher_seconds < seconds / 2, "its share of what the making took, and its reading"
    shutil.rmtree(tmp_path / ".featkd" / "store" / "signal")
    assert distilled(made, tmp_path, **cached)[1] == "0 trained, 3 reused", "a cache that has done its work may go"


def wanted_parts(made, root, **changes):
    """Keys of the students by arm, and the parts of a signal that they want."""
    tree = TREE | {"teacher": {"model": str(made / "teacher")}} | changes
    context = Context(specfile.validate(tree), root)
    config = given.configuration(made / "teacher")
    students = plan.wanted(context, "digest", "blocks")
    parts = {student["arm"]: list(signal.parts(context.spec, student, config)) for student in students}
    return {student["arm"]: student["key"] for student in students}, parts


def test_a_student_wants_the_parts_it_learns_from_and_only_those_make_it_another(made, tmp_path):
    keys, parts = wanted_parts(made, tmp_path)
    assert not any(parts.values())
    ablations = {"a": {"layer_pairs": [[1, 1]], "temperature": 2}, "b": {"layer_pairs": "auto"}}
    cached = {"outputs": "top-k", "features": "int8"}
    other, parts = wanted_parts(made, tmp_path, teacher_signal=cached, ablations=ablations)
    assert parts == {
        "sft": [],
        "logit-kd": ["top-64-at-1"],
        "feature-kd": ["top-64-at-1", "layer-0"],
        "feature-kd-a": ["top-64-at-2", "layer-1"],
        "feature-kd-b": ["top-64-at-1", "layer-0", "layer-1"],
    }
    assert [other[arm] == keys[arm] for arm in keys] == [True, False, False]
    features, parts = wanted_parts(made, tmp_path, teacher_signal={"features": "int8", "top_k": 3})
    assert parts["logit-kd"] == [] and parts["feature-kd"] == ["layer-0"]
    assert [features[arm] == keys[arm] for arm in keys] == [True, True, False]


def test_a_cache_is_of_its_teacher_its_text_and_what_is_asked_of_it(made, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(signal, "_make", lambda context, teacher, tokens, missing: taken.append(missing) or {})
    tree = TREE | {"teacher": {"model": str(made / "teacher")}}

    def identity(teacher="t", tokens="k", part=None, **changes):
        context = Context(specfile.validate(tree | changes), tmp_path)
        blocks = SimpleNamespace(path=made, key=tokens)
        with contextlib.suppress(KeyError):  # nothing was made
            signal.obtain(context, made / "teacher", teacher, blocks, {"x": part or {"kind": "last-hidden"}})
        return taken[-1]["x"]["identity"]

    same = identity()
    longer, shorter = ({"training": {"tokens": n * 4 * 32, "batch_size": 4}} for n in (40, 2))
    assert identity(**longer) == same, "more epochs take the same blocks"
    others = [
        identity(teacher="u"),
        identity(tokens="l"),
        identity(part={"kind": "top-k", "k": 8}),
        identity(**shorter),
    ]
    others.append(identity(compute={"precision": "bf16"}))
    assert len({same, *others}) == 6


def test_a_cache_that_the_disk_has_no_room_for_is_refused_before_it_is_made(made, tmp_path, monkeypatch):
    monkeypatch.setattr(signal.shutil, "disk_usage", lambda folder: SimpleNamespace(free=20_000))
    with pytest.raises(
        InputError, match=r"teacher_signal: about .* GB are to be kept, .* has room for 0.0; lower top_k"
    ):
        distilled(made, tmp_path, teacher_signal={"outputs": "top-k", "top_k": 64})
    assert not list(tmp_path.rglob("log_p.npy"))


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
