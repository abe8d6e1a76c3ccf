"""The drill: a champion's answers go bad, its alias goes back, and a record says why. Nothing else moves it.

Real models in a real store, MLflow's registry on SQLite, a real Prefect server.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import make_results
import pytest
import tiny_models
import yaml

from featkd import specfile
from featkd.decide import ledger
from featkd.errors import RunError
from featkd.result import Recommendation
from featkd.store import Store
from flows import cli, promotion, runtime
from tasks import tracking
from tasks.context import Context
from tasks.registry import Registry

TREE = {
    "name": "drill",
    "data": {"files": ["x.jsonl"], "prompt_field": "prompt", "response_field": "response", "prompt_format": "plain"},
    "teacher": {"model": "teacher"},
    "students": [{"name": "s", "layers": 1}],
    "training": {"tokens": 1000},
    "audit": {"examples": 60, "fail_safe": "previous"},
    "compute": {"device": "cpu", "threads": 2},
}
STUDENT = "feature-kd"


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One Prefect server for all: what a command starts is then left alone."""
    with runtime.session(tmp_path_factory.mktemp("prefect") / ".featkd") as opened:
        opened.ready()
        yield


@pytest.fixture
def work(tmp_path, exported, server):
    """A finished PoC whose run recommends a student: models in the store, the run in MLflow, a verdict on record."""
    home, result = tmp_path / ".featkd", make_results.full().model_copy(update={"name": "drill"})
    candidates = dict(result.candidates)
    for name, kind in (("teacher", "llama"), (STUDENT, "gpt2")):
        folder = exported(kind).onnx
        made = Store(home / "store").make("onnx", 64 * name[0], lambda out, folder=folder: _copied(folder, out))
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


def _copied(folder, out):
    shutil.copytree(folder, out, dirs_exist_ok=True)
    return {}


def offered(work, **changes):
    record = ledger.verdict(work.ledger, work.result)
    return promotion.offer(Context(specfile.validate(TREE | changes), work.root), work.result, record)


def featkd(work, capsys, *arguments):
    code = cli._guarded([*map(str, arguments), "--root", str(work.root)])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err


def champion(work):
    found = Registry(work.home, "drill").champion()
    return found and found.candidate


def written(work, name, week, answer):
    """80 records of a `week` from now on, which is five minutes here; answer: of a prompt's number."""
    start = datetime.now(UTC) + timedelta(minutes=5 * week)
    rows = [
        {"time": (start + timedelta(seconds=n)).isoformat(), "prompt": tiny_models.text(n, 6), "response": answer(n)}
        for n in range(80)
    ]
    path = work.root / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def healthy(week):
    return lambda n: tiny_models.text(1000 * week + n, 8)


def bad(n):
    return "the list of " * 8


def test_answers_gone_bad_move_the_alias_back_and_leave_a_record(work, capsys):
    assert offered(work) == {"model": "drill", "version": "2", "alias": "champion"}
    assert champion(work) == STUDENT
    for week in range(3):
        code, told, _ = featkd(work, capsys, "audit", work.spec, written(work, "a.jsonl", week, healthy(week)))
        assert (code, told["verdict"], told["examples"]) == (0, "healthy" if week else "reference", 60)
    logs = written(work, "bad.jsonl", 4, bad)
    code, told, err = featkd(work, capsys, "audit", work.spec, logs, "--fail-on", "alarm")
    assert (code, told["verdict"], champion(work)) == (3, "alarm", "teacher")
    assert "repetition" in {test["figure"] for test in told["alarms"]} and "champion is version 1, teacher" in err

    *_, alarm, rollback = ledger.whole(work.ledger)
    assert [alarm["kind"], rollback["kind"]] == ["audit", "rollback"] and rollback["decided_by"] == "featkd"
    assert rollback["candidate"] == "teacher" and rollback["taken_back"]["candidate"] == STUDENT
    assert rollback["audit"] == alarm["hash"] and told["ledger"]["hash"] == rollback["hash"]
    assert alarm["logs"][0]["bytes"] == logs.stat().st_size and alarm["settings"]["fail_safe"] == "previous"
    assert Store(work.home / "store").get("audit", alarm["evidence"])
    code, told, _ = featkd(work, capsys, "audit", "--verify")
    assert (code, told["verified"], told["records"]) == (0, True, 7)
    code, told, err = featkd(work, capsys, "audit", work.spec, logs)
    assert (code, told["verdict"]) == (0, "teacher-serves")
    assert offered(work)["alias"] == "challenger"  # what was taken back comes again by a person alone
    assert {"featkd.audit.reference", "featkd.audit.healthy", "featkd.audit.alarm"} <= events()


def events():
    """The names of the events that Prefect's server has of us."""
    asked = {"filter": {"event": {"prefix": ["featkd."]}}, "limit": 50}
    for _ in range(40):
        request = urllib.request.Request(
            f"{os.environ['PREFECT_API_URL']}/events/filter",
            json.dumps(asked).encode(),
            {"content-type": "application/json"},
        )
        found = {event["event"] for event in json.load(urllib.request.urlopen(request))["events"]}
        if "featkd.audit.alarm" in found:
            break
        time.sleep(0.5)
    return found


def test_an_alarm_is_only_told_where_the_spec_has_no_fail_safe(work, capsys):
    offered(work)
    featkd(work, capsys, "audit", work.spec, written(work, "a.jsonl", 0, healthy(0)))
    logs = written(work, "b.jsonl", 1, bad)
    code, told, _ = featkd(work, capsys, "audit", work.spec, logs, "--set", "audit.fail_safe=none")
    assert (code, told["verdict"], told["champion"]["candidate"], champion(work)) == (0, "alarm", STUDENT, STUDENT)
    code, told, err = featkd(work, capsys, "audit", work.spec, logs)
    assert (code, told["verdict"], told["earlier"]) == (0, "too-few", 80)  # the same logs again
    assert "0 different prompts" in err


def test_a_fail_safe_that_was_cut_short_is_done_by_the_next_audit(work, capsys, monkeypatch):
    offered(work)
    featkd(work, capsys, "audit", work.spec, written(work, "a.jsonl", 0, healthy(0)))
    logs = written(work, "b.jsonl", 1, bad)

    def lost(*arguments, **named):
        raise RunError("MLflow does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "roll_back", lost)
        assert featkd(work, capsys, "audit", work.spec, logs)[0] == 1
    assert champion(work) == STUDENT and ledger.whole(work.ledger)[-1]["verdict"] == "alarm"
    code, told, err = featkd(work, capsys, "audit", work.spec, logs)
    assert (code, told["verdict"], champion(work)) == (0, "alarm", "teacher") and "that is done now" in err
    assert [one["kind"] for one in ledger.whole(work.ledger)][-2:] == ["audit", "rollback"]


def test_a_student_that_comes_back_begins_anew(work, capsys):
    """Its old reference and the audit that ended its service do not count."""
    offered(work)
    for week, answer in enumerate((healthy(0), bad)):
        featkd(work, capsys, "audit", work.spec, written(work, "a.jsonl", week, answer))
    assert champion(work) == "teacher"
    featkd(work, capsys, "approve", "last", "--by", "Ada", "--reason", "it was the network")
    logs = written(work, "b.jsonl", 2, healthy(2))
    _, told, _ = featkd(work, capsys, "audit", work.spec, logs)
    assert (told["verdict"], told["audit"], told["examples"]) == ("reference", 1, 60)
    assert champion(work) == STUDENT


def test_the_teacher_of_a_champion_is_its_own(work, capsys):
    """Another run has registered another teacher since: nobody promoted it, and nothing is held against it."""
    offered(work)
    other = Store(work.home / "store").make(
        "onnx", 64 * "x", lambda out: _copied(work.home / "store/onnx" / ("f" * 20), out)
    )
    teacher = work.result.candidates["teacher"].model_copy(update={"artefact": other.key})
    result = work.result.model_copy(update={"candidates": {**work.result.candidates, "teacher": teacher}})
    Registry(work.home, "drill").register(result, "teacher", other)
    record = ledger.whole(work.ledger)[0]
    code, told, _ = featkd(work, capsys, "rollback", "drill", "--reason", "r", "--to-teacher")
    assert told["artefact"] == work.result.candidates["teacher"].artefact != other.key and record


def test_nothing_moves_on_bad_input(work, capsys):
    logs = written(work, "a.jsonl", 0, healthy(0))
    code, _, err = featkd(work, capsys, "audit", work.spec, logs)
    assert code == 2 and "name: drill has no champion in MLflow's registry" in err
    offered(work)
    featkd(work, capsys, "audit", work.spec, logs)
    known, good = len(ledger.whole(work.ledger)), written(work, "b.jsonl", 1, bad)
    lines = good.read_text().splitlines()
    broken = {
        "no-field.jsonl": "\n".join([*lines[:50], lines[50].replace('"response"', '"answer"')]).encode(),
        "latin.jsonl": "\n".join(lines[:50]).encode() + '\n{"prompt": "Größe"}\n'.encode("latin-1"),
    }
    for name, content in broken.items():
        (work.root / name).write_bytes(content)
        code, _, err = featkd(work, capsys, "audit", work.spec, work.root / name)
        assert code == 2 and f"{name}, line 51: " in err and err.count("\n") == 1
    assert featkd(work, capsys, "audit", work.spec, work.root / "none*.jsonl")[0] == 2
    assert len(ledger.whole(work.ledger)) == known and champion(work) == STUDENT

    record = sorted(work.ledger.glob("*.json"))[1]
    record.write_text(record.read_text().replace("featkd", "nobody"))
    code, _, err = featkd(work, capsys, "audit", work.spec, good)
    assert code == 1 and "is broken, nothing is done: record 2 was changed" in err
    assert champion(work) == STUDENT and len(ledger.read(work.ledger)) == known
    for command in (("rollback", "drill", "--reason", "r"), ("approve", "last", "--by", "b", "--reason", "r")):
        assert featkd(work, capsys, *command)[0] == 1
    assert champion(work) == STUDENT


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


def test_an_alias_that_was_moved_by_hand_is_told(work, capsys):
    offered(work)
    registry = Registry(work.home, "drill")
    registry.store.set_registered_model_alias("drill", "champion", "1")
    registry.store.set_registered_model_alias("drill", "champion", "2")
    logs = written(work, "a.jsonl", 0, healthy(0))
    _, told, err = featkd(work, capsys, "audit", work.spec, logs)
    assert told["unrecorded"] is False and "by hand" not in err
    featkd(work, capsys, "rollback", "drill", "--reason", "a try")
    registry.store.set_registered_model_alias("drill", "champion", "2")
    _, told, err = featkd(work, capsys, "audit", work.spec, written(work, "b.jsonl", 1, healthy(1)))
    assert told["unrecorded"] is True and "made it version 1: it was moved by hand" in err


def test_models_that_are_not_here_are_told(work, capsys):
    offered(work)
    shutil.rmtree(next((work.home / "store" / "onnx").glob("f*")))
    code, _, err = featkd(work, capsys, "audit", work.spec, written(work, "a.jsonl", 0, healthy(0)))
    assert code == 2 and f"the exported {STUDENT} of run {work.result.run_id} is not in" in err


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


def test_the_flow_can_be_scheduled(server):
    from flows.audit import audit

    deployment = audit.to_deployment("weekly", cron="0 6 * * 1", parameters={"spec": "a.yaml", "logs": ["*.jsonl"]})
    assert deployment.entrypoint.endswith("audit.py:audit") and deployment.schedules
