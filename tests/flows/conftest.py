"""Fixtures of a student in service: real models in a real store, MLflow's registry on SQLite, a Prefect server."""

from types import SimpleNamespace

import make_results
import pytest
import yaml
from served import STUDENT, TREE, copied

from featkd.result import Recommendation
from featkd.store import Store
from flows import runtime
from tasks import tracking


@pytest.fixture
def own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One Prefect server for all: what a command starts is then left alone."""
    with runtime.session(tmp_path_factory.mktemp("prefect") / ".featkd") as opened:
        opened.ready()
        yield


@pytest.fixture
def work(tmp_path, exported, server, own_store):
    """A finished PoC whose run recommends a student: models in the store, the run in MLflow, a verdict on record."""
    home, result = tmp_path / ".featkd", make_results.full().model_copy(update={"name": "drill"})
    candidates = dict(result.candidates)
    for name, kind in (("teacher", "llama"), (STUDENT, "gpt2")):
        folder = exported(kind).onnx
        made = Store(home / "store").make("onnx", 64 * name[0], lambda out, folder=folder: copied(folder, out))
        candidates[name] = candidates[name].model_copy(update={"artefact": made.key})
    recommended = Recommendation(candidate=STUDENT, code="replace")
    result = result.model_copy(update={"candidates": candidates, "recommendation": recommended})
    run = home / "runs" / result.run_id
    run.mkdir(parents=True)
    (run / "result.json").write_text(result.to_json())
    tracking.log_poc(result, run, "", home)
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(TREE))
    return SimpleNamespace(root=tmp_path, home=home, result=result, spec=spec, ledger=home / "ledger")
