"""The whole PoC on tiny.yaml, through the command line, as a user runs it: real server, real store, real MLflow."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import yaml
from recompute import recompute

from featkd.result import Result

ROOT = Path(__file__).parents[1]
TINY = ROOT / "flows" / "specs" / "tiny.yaml"
SECTIONS = {"quality", "fidelity", "transfer", "guardrails", "latency", "memory", "energy", "roi", "verdict"}


def featkd(*arguments, root):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    command = [str(Path(sys.executable).with_name("featkd")), *map(str, arguments), "--root", str(root)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)


def outcome(found):
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.strip().splitlines()[-1])


def states(found):
    """Stage line to its state: 'export sft' -> 'reused'."""
    words = ("made", "reused", "failed", "skipped")
    rows = {}
    for line in found.stderr.splitlines():
        for word in words:
            if f" {word} " in line + " ":
                rows[line.split(f" {word}")[0].strip()] = word
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("poc")


@pytest.fixture(scope="module")
def first(root):
    return featkd("run", TINY, root=root)


@pytest.fixture(scope="module")
def result(first):
    return Result.model_validate_json(Path(outcome(first)["result"]).read_text())


def test_one_spec_in_one_report_out(first, result, root):
    told = outcome(first)
    assert set(told["verdicts"]) == {"sft", "logit-kd", "feature-kd"}
    run = Path(told["report"]).parent
    assert run == root / ".featkd" / "runs" / told["run_id"]
    assert "<html" in (run / "report.html").read_text() and "判定" in (run / "report.ja.html").read_text()
    assert (run / "candidates" / "feature-kd-s" / "seed-0" / "hf" / "model.safetensors").is_file()
    assert (run / "candidates" / "feature-kd-s" / "seed-0" / "onnx" / "fp32" / "model.onnx").is_file()
    assert list(result.candidates) == ["teacher", "sft", "logit-kd", "feature-kd"]


def test_every_candidate_has_every_section_and_empty_ones_say_why(first):
    document = json.loads(Path(outcome(first)["result"]).read_text())
    assert document["schema"] == "featkd.result/1"
    for name, candidate in document["candidates"].items():
        assert set(candidate) >= SECTIONS
        checks = candidate["guardrails"]["checks"]
        assert {"own.stereotype", "generation.repetition", "generation.personal_data"} <= set(checks)
        assert all((check["worse"] is None) == (name == "teacher") for check in checks.values())
        assert len(candidate["quality"]["tasks"]) == 3
        assert all(task["overlap"]["value"] < 0.5 for task in candidate["quality"]["tasks"].values())
        assert candidate["parity"]["passed"]
        if name != "teacher":
            begun, trained = candidate["transfer"]["before"], candidate["transfer"]["after"]
            assert np.shape(trained["cka"]) == np.shape(begun["cka"]) == (2, 3) and begun != trained
            assert candidate["fidelity"]["held_out"]["tokens"] > 1000
        assert [point["concurrency"] for point in candidate["latency"]["points"]] == [1, 2]
        assert all(point["decode_tokens_per_s"]["value"] > 0 for point in candidate["latency"]["points"])
        assert candidate["memory"]["peak_rss_bytes"]["value"] > 1e6
        assert candidate["roi"]["monthly_cost"]["value"] > 0
        assert (candidate["verdict"]["verdict"] is None) == (name == "teacher")


def test_all_students_had_the_same_budget_and_size(result):
    trained = [candidate.training for candidate in result.candidates.values() if candidate.arm != "teacher"]
    assert len({(part.tokens, part.steps, part.parameters) for part in trained}) == 1
    assert len({part.weights_sha256 for part in trained}) == 3


def recomputed(run):
    """How many figures of a run are those of its raw evidence; all of them have to be."""
    document = json.loads((run / "result.json").read_text())
    figures = recompute(run)
    for place, expected in figures.items():
        told = document
        for part in place.split("/"):
            told = told[int(part) if isinstance(told, list) else part]
        near = {"rel": 0.1} if place.endswith("/ece") else {"rel": 2e-3, "abs": 2e-4}  # bounds of other resamples
        if isinstance(expected, tuple):
            for bound, figure in zip(("value", "low", "high"), expected, strict=True):
                assert told[bound] == (None if figure is None else pytest.approx(figure, **near)), (place, bound)
        else:
            assert (told["value"] if isinstance(told, dict) else told) == pytest.approx(expected), place
    return len(figures)


def test_every_aggregate_is_that_of_the_raw_evidence(first):
    assert recomputed(Path(outcome(first)["result"]).parent) > 300


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_so_is_every_aggregate_of_seeds_and_sizes(tmp_path):
    sizes = [{"name": name, "layers": 1, "hidden_size": width, "heads": 2, "intermediate_size": 2 * width}
             for name, width in (("m", 48), ("s", 32), ("xs", 16))]  # fmt: skip
    found = featkd("run", spec(tmp_path, students=sizes, seeds=[3, 4, 5], arms=["sft", "logit-kd"]), root=tmp_path)
    run = Path(outcome(found)["result"]).parent
    assert recomputed(run) > 600
    result = Result.model_validate_json((run / "result.json").read_text())
    ratios = [result.candidates[f"sft-{size}-fp32"].quality.tasks["heldout_perplexity"].ratio for size in ("m", "xs")]
    gate = {"metric": "quality.heldout_perplexity.ratio", "at_most": sum(ratio.value for ratio in ratios) / 2}
    met = ("--set", f"gates={json.dumps([gate])}")
    run = Path(outcome(featkd("run", tmp_path / "poc.yaml", *met, root=tmp_path))["result"]).parent
    assert recomputed(run) > 600
    crossed = Result.model_validate_json((run / "result.json").read_text()).sizes
    assert crossed.sizes == 3 and "sft" in {one.arm for one in crossed.crossings}


def test_mlflow_has_a_parent_and_its_children_with_the_same_keys(first, root, monkeypatch):
    from mlflow import MlflowClient

    told = outcome(first)["mlflow"]
    client = MlflowClient(tracking_uri=told["tracking_uri"])
    runs = client.search_runs([told["experiment_id"]])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == told["run_id"]]
    assert len(children) == 4
    students = [set(run.data.metrics) for run in children if run.data.tags.get("arm") != "teacher"]
    assert students[0] == students[1] == students[2]
    assert {"quality/heldout_routing", "latency/decode_tokens_per_s", "roi/monthly_saving"} <= students[0]
    parent = client.get_run(told["run_id"])
    assert parent.inputs.dataset_inputs[0].dataset.digest
    artifacts = {artifact.path for artifact in client.list_artifacts(told["run_id"])}
    assert {"report.html", "report.ja.html", "result.json"} <= artifacts


def test_a_new_price_changes_the_money_and_reuses_the_rest(first, root, result):
    again = featkd("run", TINY, "--set", "cost.price_per_hour=0.2", root=root)
    repriced = Result.model_validate_json(Path(outcome(again)["result"]).read_text())
    kept = {name: state for name, state in states(again).items() if name not in ("gates", "report", "mlflow")}
    assert set(kept.values()) == {"reused"}, kept
    for name, candidate in repriced.candidates.items():
        before = result.candidates[name].roi.monthly_cost.value
        assert candidate.roi.monthly_cost.value == pytest.approx(2 * before)
    again = outcome(featkd("roi", result.run_id, "--set", "cost.price_per_hour=0.2", root=root))
    priced = Result.model_validate_json(Path(again["result"]).read_text())
    assert (priced.priced_from, priced.run_id) == (result.run_id, f"{result.run_id}-priced-1")
    assert priced.candidates == repriced.candidates and priced.recommendation == repriced.recommendation
    assert (Path(again["report"]).parent / "evidence/latency/latency.json").is_file()
    assert again["ledger"]["record"] > 1
    wrong = featkd("roi", result.run_id, "--set", "training.tokens=5", root=root)
    assert wrong.returncode == 2 and "is not priced but measured or decided" in wrong.stderr


def test_a_second_run_makes_nothing_again_but_an_artefact_that_was_damaged(first, root, result):
    (model,) = (root / ".featkd" / "store" / "onnx").glob(f"{result.candidates['sft'].artefact[:20]}/model.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    again = featkd("run", TINY, root=root)
    outcome(again)
    stages = states(again)
    assert {name for name, state in stages.items() if state != "reused"} == {
        "export sft", "gates", "report", "mlflow"
    }  # fmt: skip
    assert len(stages) >= 20


def test_a_teacher_whose_export_differs_ends_the_run_and_says_so(first, root):
    found = featkd("run", TINY, "--set", "export.parity_tolerance=1e-12", root=root)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "the teacher's ONNX logits differ" in found.stderr and "nothing can be compared to it" in found.stderr


def spec(folder, **changes):
    tree = yaml.safe_load(TINY.read_text()) | changes
    path = folder / "poc.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_training_that_goes_wrong_ends_with_one_clear_line(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(tiny_models.text(n, 60) for n in range(120)))
    tree = yaml.safe_load(TINY.read_text())
    train = tree["teacher"]["train"] | {"learning_rate": 1e30, "grad_clip": 1e30, "vocab_size": 300}
    path = spec(
        tmp_path, data={"files": ["a.txt"], "held_out": 0.3}, teacher={"train": train},
        quality={"tasks": ["heldout_perplexity"]}, gates=[],
    )  # fmt: skip
    found = featkd("run", path, root=tmp_path)
    assert found.returncode == 1, found.stderr
    told = [line for line in found.stderr.splitlines() if line.startswith("featkd:")]
    assert len(told) == 1 and re.search("the loss of teacher is (nan|inf)", told[0]), found.stderr
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / ".featkd").rglob("*.partial-*"))


@pytest.mark.slow
def test_the_same_spec_gives_the_same_weights_in_two_fresh_runs(tmp_path):
    weights = []
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        told = outcome(featkd("run", TINY, root=root))
        result = Result.model_validate_json(Path(told["result"]).read_text())
        weights.append({name: found.training.weights_sha256 for name, found in result.candidates.items()})
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_given_student_of_another_family_beside_a_shape(tmp_path):
    """Llama teaches a GPT-2 whose vocabulary is padded, and a narrower Llama, in one run."""
    tiny_models.save("llama", tmp_path / "teacher", layers=3)
    tiny_models.save("gpt2", tmp_path / "small", seed=1, padding=12)
    (tmp_path / "a.txt").write_text("\n\n".join(tiny_models.text(n, 60) for n in range(300)))
    students = [{"name": "own", "model": "small"}, {"name": "s", "layers": 1, "hidden_size": 16, "heads": 2}]
    changes = {
        "data": {"files": ["a.txt"], "held_out": 0.2},
        "teacher": {"model": "teacher", "if_inadequate": "warn"},
        "students": students,
        "block_size": 64,
        "quality": {"tasks": ["heldout_perplexity"], "context_tokens": 16, "continuation_tokens": 8},
        "latency": {"prompt_tokens": 32, "new_tokens": 8},
        "gates": [],
    }
    told = outcome(featkd("run", spec(tmp_path, **changes), root=tmp_path))
    result = Result.model_validate_json(Path(told["result"]).read_text())
    assert {found.size for found in result.candidates.values() if found.size} == {"own", "s"}
    for found in result.candidates.values():
        assert found.parity.passed
    assert states(featkd("run", tmp_path / "poc.yaml", root=tmp_path))["distil"] == "reused"
