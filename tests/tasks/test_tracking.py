"""A run as MLflow keeps it, read back from a real SQLite store."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import make_results
import pytest
import tiny_models

from featkd import specfile
from featkd.errors import InputError, RunError
from featkd.result import Training
from tasks import tracking, train
from tasks.context import Context
from tasks.live import Live

PROBE = "import sys; from tasks import tracking; print(tracking.client(sys.argv[1]).get_experiment('0').name)"


@pytest.fixture(autouse=True)
def default_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # a run that some other tool has left active must not swallow ours
    monkeypatch.setenv("MLFLOW_RUN_ID", "stray")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work") / ".featkd"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "result.json").write_text(make_results.full().to_json())
    for name in ("report.html", "report.ja.html"):
        (folder / name).write_text("<html></html>")
    return folder


def test_four_processes_create_the_store_at_once(home):
    command = [sys.executable, "-c", PROBE, str(home)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in outputs] == ["Default"] * 4, outputs
    assert not any("Traceback" in err for _, err in outputs)


def test_parent_and_children(home, run_dir):
    result = make_results.full()
    tracked = tracking.log_poc(result, run_dir, "**no-go**", home)
    store = tracking.client(home)
    parent = store.get_run(tracked["run_id"])
    assert tracked["tracking_uri"] == f"sqlite:///{home / 'mlflow.db'}"
    assert parent.info.run_name == result.run_id and parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"] == "**no-go**"
    assert parent.data.tags["featkd.recommendation"] == result.recommendation.code
    assert parent.data.tags["featkd.spec_digest"] == result.spec_digest
    (dataset,) = parent.inputs.dataset_inputs
    assert result.data.digest.startswith(dataset.dataset.digest) and len(dataset.dataset.digest) >= 32
    names = {file.path for file in store.list_artifacts(parent.info.run_id)}
    assert names == {"result.json", "report.html", "report.ja.html"}

    found = store.search_runs([tracked["experiment_id"]], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    children = {child.info.run_name: child for child in found}
    assert set(children) == set(result.candidates)
    for name, candidate in result.candidates.items():
        logged = children[name]
        assert logged.info.status == "FINISHED"
        assert logged.data.tags["arm"] == candidate.arm and logged.data.tags["precision"] == candidate.precision
        for key, value in tracking.metrics(candidate).items():
            assert logged.data.metrics[key] == pytest.approx(value)
        curve = store.get_metric_history(logged.info.run_id, "training/validation_loss")
        points = [(point.step, point.value) for point in curve]
        assert points == [(int(point["tokens"]), point["validation_loss"]) for point in candidate.training.curve]
    students = [set(tracking.metrics(found)) for name, found in result.candidates.items() if name != "teacher"]
    assert all(keys == students[0] for keys in students)
    assert {"latency/ttft_ms_p50", "memory/peak_rss_mb", "roi/npv"} < students[0]


def test_empty_candidates_are_tracked_too(home, run_dir):
    result = make_results.inadequate()
    tracked = tracking.log_poc(result, run_dir, "", home)
    assert tracking.client(home).get_run(tracked["run_id"]).data.tags["featkd.teacher_adequate"] == "false"


def test_a_store_that_does_not_answer(home, run_dir, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"MLflow at http://127.0.0.1:9.*the run itself is complete") as raised:
        tracking.log_poc(make_results.full(), run_dir, "", home)
    assert "\n" not in str(raised.value)


TREE = {
    "name": "live",
    "data": {"files": ["a.txt"]},
    "students": [{"name": "s", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 32}],
    "block_size": 32,
    "latency": {"prompt_tokens": 8, "new_tokens": 8},
    "training": {"tokens": 24 * 4 * 32, "batch_size": 4},
}


def context_of(home, teacher="folder"):
    return Context(specfile.validate(TREE | {"teacher": {"model": str(teacher)}}), home.parent)


def opened(live):
    while not live.opened:
        time.sleep(0.05)


def under_way(home, run_id):
    """The parent's status, and name to (status, curve) of its children, as another process sees them."""
    store = tracking.client(home)
    experiment = store.get_experiment_by_name("live").experiment_id
    (parent,) = store.search_runs([experiment], f"tags.featkd.run_id = '{run_id}' and tags.candidate IS NULL")
    children = store.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    curves = {
        child.info.run_name: (child.info.status, [
            (point.step, point.value) for point in store.get_metric_history(child.info.run_id, tracking.CURVE)
        ])
        for child in children
    }  # fmt: skip
    return parent.info.status, curves


def test_curves_are_there_while_training_and_each_point_once_at_the_end(home, run_dir, tmp_path):
    made = tiny_models.save_with_blocks(tmp_path)
    context, seen = context_of(home, made / "teacher"), []

    def watch(event):
        live(event)
        if event["step"] == 13 and event["tokens"] == 13 * 4 * 32:
            for _ in range(200):
                seen.append(under_way(home, "run-1"))
                if [len(points) for _, points in seen[-1][1].values()] == [6, 6, 6]:
                    break
                time.sleep(0.1)

    with Live(context, "run-1") as live:
        opened(live)
        teacher = train.Model(made / "teacher", "digest", Training(parameters=1))
        models = train.distil.fn(context, teacher, SimpleNamespace(path=made, key="live"), watch)
        base = make_results.full()
        trained = {
            arm: base.candidates[arm].model_copy(update={"training": model.training})
            for (arm, _, _), model in models.items()
        }
        result = base.model_copy(update={"run_id": "run-1", "candidates": base.candidates | trained})
        during = seen[-1]
        tracking.log_poc(result, run_dir, "", home, live.end())
    assert during[0] == "RUNNING" and set(during[1]) == {"sft", "logit-kd", "feature-kd"}
    curves = {name: [(int(p["tokens"]), p["validation_loss"]) for p in c.training.curve] for name, c in trained.items()}
    assert all(found == ("RUNNING", curves[name][:6]) for name, found in during[1].items())
    status, after = under_way(home, "run-1")
    assert status == "FINISHED" and set(after) == set(result.candidates)
    assert all(after[name] == ("FINISHED", curves[name]) for name in curves)


def a_look(live, tokens):
    live({"event": "progress", "step": 1, "tokens": tokens, "validation_loss": {"sft-s-0": 3.5, "twin": 1.0}})
    live({"event": "progress", "step": 2, "tokens": tokens + 1, "validation_loss": {}})


def test_a_run_that_fails_stays_visible_with_its_curves(home):
    with pytest.raises(InputError), Live(context_of(home), "run-2") as live:
        opened(live)
        a_look(live, 128)
        raise InputError("data: too little")
    assert under_way(home, "run-2") == ("FAILED", {"sft": ("FAILED", [(128, 3.5)])})
    assert not list((home / "mlflow-running").iterdir())


def test_a_run_that_was_killed_is_failed_by_the_next_and_one_under_way_is_not(home):
    code = (
        "import os, sys; from tasks import tracking;"
        "begun = tracking.begin(sys.argv[1], 'run-3', {'name': 'live'}, '');"
        "tracking.add_point(begun, 'sft', 64, 3.5); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(home)], check=False).returncode == -9
    assert under_way(home, "run-3") == ("RUNNING", {"sft": ("RUNNING", [(64, 3.5)])})
    with Live(context_of(home), "run-4") as first:
        opened(first)
        with Live(context_of(home), "run-5") as second:
            opened(second)
            assert under_way(home, "run-3") == ("FAILED", {"sft": ("FAILED", [(64, 3.5)])})
            assert under_way(home, "run-4")[0] == "RUNNING"


def test_training_does_not_wait_for_a_store_that_does_not_answer(home, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("tasks.live.WAIT_AFTER_FAILURE_S", 0.1)
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with Live(context_of(home), "run-6") as live:
            start = time.monotonic()
            a_look(live, 128)
            assert live.end(0.2) is None and time.monotonic() - start < 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Live(context_of(home), "run-7") as live:
        a_look(live, 128)
        assert live.end() is None
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines and all(line.startswith("mlflow: ") and line.endswith("tracked at its end") for line in lines)
