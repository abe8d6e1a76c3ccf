"""Who becomes champion, by whom, and the way back. Every move is on record, or does not take place."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from served import STUDENT, TREE, champion, copied, featkd, offered

from featkd import specfile
from featkd.decide import ledger
from featkd.result import Champion, Decision, GateOutcome
from featkd.store import Store
from flows import promotion
from tasks.context import Context
from tasks.registry import Registry


def test_the_alias_is_put_back_where_no_record_can_be_written(work, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    record = ledger.verdict(work.ledger, work.result)
    context = Context(specfile.validate(TREE), work.root)
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "append", full)
        with pytest.raises(OSError, match="No space left"):
            promotion.offer(context, work.result, record)
        assert champion(work) is None
    promotion.offer(context, work.result, record)
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "append", full)
        with pytest.raises(OSError, match="No space left"):
            promotion.roll_back(work.home, "drill", "me", "a try")
    assert champion(work) == STUDENT and [one["kind"] for one in ledger.whole(work.ledger)] == ["verdict", "promotion"]


def test_a_person_approves_and_takes_back(work, capsys):
    assert offered(work, promotion="approval") == {"model": "drill", "version": "2", "alias": "challenger"}
    registry = Registry(work.home, "drill")
    assert champion(work) is None and registry.challenger().candidate == STUDENT
    code, _, err = featkd(work, capsys, "approve", "last", "--by", "Ada", "--reason", " ")
    assert code == 2 and "--reason: say why" in err
    code, told, _ = featkd(work, capsys, "approve", "last", "--by", "Ada", "--reason", "looked at 50 answers")
    assert (code, told["kind"], told["decided_by"], told["reason"]) == (0, "promotion", "Ada", "looked at 50 answers")
    assert champion(work) == STUDENT and registry.challenger() is None
    assert featkd(work, capsys, "approve", "last", "--by", "Ada", "--reason", "again")[0] == 2
    code, _, err = featkd(work, capsys, "approve", "last", "--by", "Ada", "--reason", "r", "--candidate", "sft")
    assert code == 2 and "--candidate: sft is no-go; featkd override comes first" in err

    code, told, _ = featkd(work, capsys, "rollback", "drill", "--by", "Ada", "--reason", "complaints")
    assert (code, told["kind"], told["candidate"], champion(work)) == (0, "rollback", "teacher", "teacher")
    code, _, err = featkd(work, capsys, "rollback", "drill", "--reason", "more complaints")
    assert code == 2 and "is the first: there is none to go back to" in err
    assert featkd(work, capsys, "rollback", "other", "--reason", "r")[0] == 2
    code, told, _ = featkd(work, capsys, "approve", "last", "--by", "Ada", "--reason", "it was the network")
    assert (code, champion(work)) == (0, STUDENT)
    assert ledger.verify(ledger.read(work.ledger)) == []


def test_the_teacher_of_a_champion_is_its_own(work, capsys):
    """Another run has registered another teacher since: nobody promoted it, and nothing is held against it."""
    offered(work)
    other = Store(work.home / "store").make(
        "onnx", 64 * "x", lambda out: copied(work.home / "store/onnx" / ("f" * 20), out)
    )
    teacher = work.result.candidates["teacher"].model_copy(update={"artefact": other.key})
    result = work.result.model_copy(update={"candidates": {**work.result.candidates, "teacher": teacher}})
    Registry(work.home, "drill").register(result, "teacher", other)
    record = ledger.whole(work.ledger)[0]
    code, told, _ = featkd(work, capsys, "rollback", "drill", "--reason", "r", "--to-teacher")
    assert told["artefact"] == work.result.candidates["teacher"].artefact != other.key and record


def test_a_go_replaces_the_student_that_it_was_held_against_and_no_other(work, exported):
    assert offered(work)["alias"] == "champion"
    folder, student, registry = exported("gpt2").onnx, work.result.candidates[STUDENT], Registry(work.home, "drill")
    better = Store(work.home / "store").make("onnx", 64 * "b", lambda out: copied(folder, out))
    for against, severity, version, alias in (
        ("champion", "block", "1", "challenger"),
        ("champion", "warn", "2", "challenger"),
        ("teacher", "block", "2", "challenger"),
        ("champion", "block", "2", "champion"),
    ):
        rule = GateOutcome(metric="memory.rss_ratio", at_most=1, outcome="pass", against=against, severity=severity)
        verdict = Decision(verdict="go", gates=[rule])
        judged = student.model_copy(update={"artefact": better.key, "verdict": verdict})
        serving = Champion(version=version, run_id="r", candidate=STUDENT, artefact="a")
        changes = {"candidates": {**work.result.candidates, STUDENT: judged}, "champion": serving}
        work.result = work.result.model_copy(update=changes)
        assert offered(work) == {"model": "drill", "version": "3", "alias": alias}
    assert registry.champion().number == "3" and registry.challenger() is None
    promotion.roll_back(work.home, "drill", "me", "a try")
    assert registry.champion().number == "2"


@pytest.fixture
def mlflow_server(tmp_path, monkeypatch):
    """MLflow's own server on loopback; what work fixtures make after this is kept there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
               "--artifacts-destination", str(tmp_path / "served")]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    for _ in range(240):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            break
        time.sleep(0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    yield
    os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.slow
def test_a_server_gets_what_others_can_load(own_store, mlflow_server, work, capsys, tmp_path):
    import mlflow

    offered(work)
    registry = Registry(work.home, "drill")
    assert champion(work) == STUDENT
    found = registry.store.get_model_version_by_alias("drill", "champion")
    assert found.run_id and found.source.startswith("mlflow-artifacts:")
    loaded = mlflow.artifacts.download_artifacts("models:/drill@champion", dst_path=str(tmp_path / "elsewhere"))
    assert list(Path(loaded).rglob("model.onnx"))
    code, _, _ = featkd(work, capsys, "rollback", "drill", "--reason", "a try")
    assert (code, champion(work)) == (0, "teacher")
