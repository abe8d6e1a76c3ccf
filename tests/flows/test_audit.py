"""The drill: a champion's answers go bad, its alias goes back, and a record says why. Nothing else moves it."""

import json
import os
import shutil
import time
import urllib.request

from served import STUDENT, bad, champion, featkd, healthy, offered, written

from featkd.decide import ledger
from featkd.errors import RunError
from featkd.store import Store
from flows import promotion
from tasks.registry import Registry


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


def test_the_flow_can_be_scheduled(server):
    from flows.audit import audit

    deployment = audit.to_deployment("weekly", cron="0 6 * * 1", parameters={"spec": "a.yaml", "logs": ["*.jsonl"]})
    assert deployment.entrypoint.endswith("audit.py:audit") and deployment.schedules
