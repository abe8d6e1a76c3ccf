"""Each command ends with one line and the right exit status; the last line of stdout is JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from featkd.decide import ledger
from flows import cli, status

SPEC = """
name: small
data: {builtin: docstrings, packages: [stdlib]}
teacher: {model: folder}
students: [{name: s, layers: 1}]
training: {tokens: 1000}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    code = cli._guarded([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_validate(capsys, spec):
    code, out, err = call(capsys, "validate", spec, "--set", "block_size=64")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["candidates"] == ["teacher", "sft", "logit-kd", "feature-kd"]
    assert "is valid" in err


def test_schema(capsys):
    code, out, _ = call(capsys, "validate", "--schema")
    schema = json.loads(out.splitlines()[-1])
    assert code == 0
    assert schema["additionalProperties"] is False and "cost" in schema["properties"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SPEC + "colour: red\n", "colour: unknown key"),
        (SPEC.replace("1000", "many"), "training.tokens"),
        (SPEC.replace("name: small", "name: [small"), ""),
        ("- a list\n", ""),
        ("", ""),
    ],
    ids=["unknown-key", "wrong-type", "bad-yaml", "list", "empty"],
)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_wrong_spec(capsys, spec, command, text, told):
    spec.write_text(text)
    code, _, err = call(capsys, command, spec)
    assert code == 2
    assert told in err and len(err.splitlines()) == 1 and err.startswith("featkd: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nowhere.yaml"],
        ["validate"],
        ["validate", "nowhere.yaml"],
        ["runn"],
        ["run"],
        ["run", "a.yaml", "--fail-on", "maybe"],
        ["run", "a.yaml", "--colour"],
        ["report", "nothing"],
        ["report", "last"],
        ["ui", "--port", "web"],
    ],
    ids=" ".join,
)
def test_wrong_use(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_an_override_without_a_value(capsys, spec):
    code, _, err = call(capsys, "validate", spec, "--set", "block_size")
    assert code == 2 and "key=value" in err


def test_doctor(capsys, tmp_path):
    code, out, _ = call(capsys, "doctor", "--root", tmp_path)
    found = json.loads(out.splitlines()[-1])
    assert found["cores"] >= 1 and found["memory_bytes"] > 0 and "torch" in found["versions"]
    assert code == (1 if found["problems"] else 0)


def test_doctor_sees_a_package_that_shadows_ours(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    assert status.shadows([str(tmp_path), str(status.OURS)]) == [("tasks", str(tmp_path / "tasks"))]


def test_an_unexpected_error_keeps_its_traceback_in_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(status, "runs", lambda home: 1 / 0)
    code, _, err = call(capsys, "list", "--root", tmp_path)
    assert code == 1 and len(err.splitlines()) == 1
    path = Path(err.partition("(details: ")[2].strip().rstrip(")"))
    assert "ZeroDivisionError" in path.read_text() and path.is_relative_to(tmp_path)


def test_the_traceback_lies_in_the_root_however_that_is_written(capsys, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(status, "runs", lambda home: 1 / 0)
    _, _, err = call(capsys, "list", f"--root={tmp_path}")
    assert f"(details: {tmp_path}/.featkd/logs/" in err


@pytest.mark.parametrize("arguments", [["run", "spec.yaml"], ["ui"]], ids=" ".join)
def test_a_root_in_which_nothing_can_be_kept(capsys, spec, monkeypatch, arguments):
    monkeypatch.chdir(spec.parent)
    (spec.parent / ".featkd").write_text("a file")
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1 and f"{spec.parent}/.featkd" in err and "--root" in err


def test_an_unexpected_error_where_no_log_can_be_kept(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(status, "runs", lambda home: 1 / 0)
    (tmp_path / ".featkd").write_text("a file")
    code, _, err = call(capsys, "list", "--root", tmp_path)
    assert code == 1 and err == "featkd: ZeroDivisionError: division by zero\n"


def test_interrupted(capsys, tmp_path, monkeypatch):
    def interrupt(home):
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "runs", interrupt)
    code, _, err = call(capsys, "list", "--root", tmp_path)
    assert code == 130 and "same command" in err


def test_list_and_report(capsys, tmp_path, a_run):
    code, out, _ = call(capsys, "list", "--root", tmp_path)
    (row,) = json.loads(out.splitlines()[-1])["runs"]
    assert code == 0 and row["run_id"] == a_run.name
    for run in (a_run.name, "last", a_run):
        code, out, _ = call(capsys, "report", run, "--lang", "ja", "--root", tmp_path)
        assert code == 0
        assert Path(json.loads(out.splitlines()[-1])["report"]) == a_run / "report.ja.html"


def test_a_result_that_is_none(capsys, tmp_path, a_run):
    (a_run / "result.json").write_text("{}")
    assert call(capsys, "report", "last", "--root", tmp_path)[0] == 2
    code, out, _ = call(capsys, "list", "--root", tmp_path)
    assert code == 0 and json.loads(out)["runs"][0]["recommendation"] == "unreadable"


@pytest.fixture
def a_run(tmp_path):
    import make_results

    result = make_results.full()
    folder = tmp_path / ".featkd" / "runs" / result.run_id
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(result.to_json())
    return folder


def test_an_override_needs_a_reason_and_is_kept(capsys, tmp_path, a_run):
    def override(*arguments):
        return call(capsys, "override", "last", *arguments, "--root", tmp_path)

    wrong = {
        "--reason: say why": ("--candidate", "sft", "--reason", " "),
        "--candidate: 'x' is not one of sft, logit-kd, feature-kd": ("--candidate", "x", "--reason", "r"),
        "go is what the gates said of feature-kd": ("--candidate", "feature-kd", "--reason", "r"),
    }
    for told, arguments in wrong.items():
        code, _, err = override(*arguments)
        assert code == 2 and told in err
    assert json.loads(call(capsys, "audit", "--root", tmp_path)[1])["records"] == 0
    code, out, err = override("--candidate", "sft", "--reason", "cheap enough", "--by", "Ada")
    record = json.loads(out.splitlines()[-1])
    assert code == 0 and "Ada says go, the gates no-go" in err
    assert (record["kind"], record["reason"], record["gates_said"]) == ("override", "cheap enough", "no-go")
    (shown,) = ledger.overrides(tmp_path / ".featkd" / "ledger", record["poc"])
    assert (shown.candidate, shown.decided_by) == ("sft", "Ada")
    code, _, err = override("--candidate", "sft", "--reason", "again")
    assert code == 2 and "go is what Ada said of sft" in err
    call(capsys, "report", "last", "--root", tmp_path)
    assert "cheap enough" in (a_run / "report.html").read_text()
    assert override("--candidate", "sft", "--reason", "it was not", "--verdict", "no-go")[0] == 0


def test_audit_verifies_the_chain(capsys, tmp_path, a_run):
    for reason, verdict in (("one", "go"), ("two", "no-go")):
        decided = ("--candidate", "sft", "--reason", reason, "--verdict", verdict)
        assert call(capsys, "override", "last", *decided, "--root", tmp_path)[0] == 0
    code, out, err = call(capsys, "audit", "--verify", "--root", tmp_path)
    assert code == 0 and json.loads(out) == {"records": 2, "verified": True, "problems": []}
    first = min((tmp_path / ".featkd" / "ledger").glob("*.json"))
    first.write_text(first.read_text().replace("one", "better"))
    code, out, err = call(capsys, "audit", "--verify", "--root", tmp_path)
    assert code == 1 and "record 1 was changed" in json.loads(out)["problems"][0] and "record 1 was changed" in err


def test_the_installed_command(spec):
    command = [str(Path(sys.executable).with_name("featkd")), "validate", str(spec)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and json.loads(found.stdout.splitlines()[-1])["valid"]
