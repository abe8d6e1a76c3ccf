"""The wiring of the PoC: in which order things are made, and what the decision is given."""

import json
from types import SimpleNamespace

import make_results
import numpy as np
import pytest

from featkd import specfile
from featkd.errors import InputError, ModelFailed, RunError
from flows import poc
from tasks.context import Context

TREE = {
    "name": "x",
    "data": {"files": ["a.txt"]},
    "teacher": {"model": "folder"},
    "students": [{"name": "m", "layers": 2}, {"name": "s", "layers": 1}],
    "training": {"tokens": 1000},
}
OWN = {"shape": {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 64}, "tokens": 1000}


def work(tmp_path, **changes):
    found = poc.Poc(Context(specfile.validate(TREE | changes), tmp_path))
    found.chance = {}
    return found


def artefact(folder, largest=7, probe=3):
    for part in ("train", "valid"):
        np.save(folder / f"{part}.npy", np.full((3, 3, 8), largest, dtype=np.int32))
    (folder / "probe.json").write_text("")
    return SimpleNamespace(path=folder, key="k", meta={"chance": {}}, json=lambda name: [[1, probe], [2]])


def test_the_teacher_is_held_against_every_control_that_was_measured(tmp_path, monkeypatch):
    found = work(tmp_path)
    given = []
    monkeypatch.setattr(poc.judgement, "scores", lambda samples, teacher, chance: f"{samples} beside {teacher}")
    monkeypatch.setattr(poc.judgement.verdict, "adequacy", lambda *arguments: given.append(arguments))
    found.evidence["teacher"].samples = "teacher"
    found.adequacy()
    found.evidence["sft-m-fp32"].samples = "m"
    found.evidence["sft-s-fp32"].samples = "s"
    found.evidence["logit-kd-s-fp32"].samples = "no control"
    found.adequacy()
    controls = {"sft-m-fp32": "m beside teacher", "sft-s-fp32": "s beside teacher"}
    assert given == [("teacher beside teacher", {}, "stop", None), ("teacher beside teacher", controls, "stop", None)]


def test_tasks_that_cannot_be_built_are_told_before_a_teacher_is_trained(tmp_path, monkeypatch):
    found = work(tmp_path, teacher={"train": OWN}, block_size=256)
    made = artefact(tmp_path)
    for name in ("corpus", "tokenizer", "blocks"):
        monkeypatch.setattr(poc.data, name, lambda *arguments: made)

    def no_tasks(context, corpus, blocks, tokenizer, window):
        assert (tokenizer, window) == (str(tmp_path), 256)
        raise InputError("quality.tasks: too few")

    monkeypatch.setattr(poc.data, "quality_tasks", no_tasks)
    monkeypatch.setattr(poc.train, "trained_teacher", lambda *arguments: pytest.fail("trained first"))
    with pytest.raises(InputError, match="too few"):
        found.prepare()


def test_what_fails_stops_its_candidate_alone(tmp_path, monkeypatch):
    found, model = work(tmp_path), SimpleNamespace(training="trained")
    done = artefact(tmp_path)

    def export(context, label, model, tasks, precision):
        if label in ("sft-m-fp32", "teacher"):
            raise RunError("an operator that ONNX does not know")
        return done, SimpleNamespace(passed=True)

    def accuracy(context, label, onnx, tasks):
        if label == "logit-kd-m-fp32":
            raise RunError("out of memory")
        return "measured"

    def guardrails(*arguments):
        raise RunError("no data for toxigen")

    monkeypatch.setattr(poc.deploy, "export", export)
    monkeypatch.setattr(poc.measure, "accuracy", accuracy)
    monkeypatch.setattr(poc.measure, "guardrails", guardrails)
    monkeypatch.setattr(poc, "_samples", lambda accuracy: "samples")
    monkeypatch.setattr(poc.beside.transfer, "tokens", guardrails)
    found.onnx[poc._place(found.evidence["teacher"], None)] = done
    found.tasks = found.suites = done
    for name in ("sft-m-fp32", "logit-kd-m-fp32", "sft-s-fp32"):
        found.measure_quality(name, {0: model})
    told = {name: (one.why, one.failure, one.samples) for name, one in found.evidence.items()}
    assert told["sft-m-fp32"] == ("export-failed", "an operator that ONNX does not know", None)
    assert told["logit-kd-m-fp32"] == ("accuracy-failed", "out of memory", None)
    going = found.evidence["sft-s-fp32"]  # without its guardrails, which say why
    assert (going.samples, going.guards_why, going.failure) == ("samples", "guardrails-failed", "no data for toxigen")
    with pytest.raises(RunError, match="operator"):
        found.measure_quality("teacher", {None: model})


def test_a_model_that_cannot_be_timed_is_left_out_and_the_others_are_timed(tmp_path, monkeypatch):
    found, asked = work(tmp_path), []
    for name in ("teacher", "sft-m-fp32", "logit-kd-m-fp32"):
        found.evidence[name].samples = "samples"
        found.onnx[poc._place(found.evidence[name], found.evidence[name].seed)] = name

    def latency(context, folders, tasks):
        asked.append(list(folders))
        if "sft-m-fp32" in folders:
            raise ModelFailed("sft-m-fp32", "killed")
        return SimpleNamespace(json=lambda file: {name: f"times of {name}" for name in folders})

    monkeypatch.setattr(poc.measure, "latency", latency)
    found.tasks = None
    found.speed()
    assert asked == [["teacher", "sft-m-fp32", "logit-kd-m-fp32"], ["teacher", "logit-kd-m-fp32"]]
    failed = found.evidence["sft-m-fp32"]
    assert (failed.latency, failed.why, failed.failure) == (None, "latency-failed", "killed")
    assert found.evidence["logit-kd-m-fp32"].latency == "times of logit-kd-m-fp32"


@pytest.mark.parametrize(("largest", "probe"), [(10, 3), (7, 10)], ids=["blocks", "probe"])
def test_a_token_that_the_teacher_does_not_know(tmp_path, monkeypatch, largest, probe):
    found = work(tmp_path)
    made = artefact(tmp_path, largest, probe)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10}))
    monkeypatch.setattr(poc.given, "locate", lambda model: str(tmp_path))
    for name in ("corpus", "blocks", "quality_tasks", "suites"):
        monkeypatch.setattr(poc.data, name, lambda *arguments: made)
    with pytest.raises(InputError, match="its tokenizer gives id 10, its vocabulary ends at 9"):
        found.prepare()


def test_the_page_that_is_named_is_the_first_language_s(tmp_path):
    result = make_results.full()
    for languages, name in [(["ja"], "report.ja.html"), (["en", "ja"], "report.html")]:
        result = result.model_copy(update={"spec": result.spec | {"report": {"languages": languages}}})
        assert poc.summary(result, tmp_path, {})["report"] == str(tmp_path / name)
