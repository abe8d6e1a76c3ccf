"""A run as MLflow keeps it, read back from a real SQLite store."""

import subprocess
import sys
from pathlib import Path

import make_results
import pytest

from featkd.errors import RunError
from tasks import tracking

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
    assert {"latency/ttft_ms_p50", "memory/peak_rss_mb", "roi/npv_usd"} < students[0]


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
