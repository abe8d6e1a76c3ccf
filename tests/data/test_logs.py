"""Logs of a model in service: read once, in a memory that does not grow, and refused by file and line."""

import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime

import pytest

from featkd.data import logs
from featkd.errors import InputError
from featkd.judging import Audit

FEW = Audit(examples=30)


def row(number, **changes):
    time = datetime.fromtimestamp(1_780_000_000 + 60 * number, UTC).isoformat()
    return {"time": time, "prompt": f"prompt {number}", "response": f"answer {number}"} | changes


def written(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def drawn(path, audit=FEW, after=None, key=b"a"):
    return logs.draw([path], audit, after, key)


def test_a_sample_of_different_prompts_with_what_was_read(tmp_path):
    rows = [row(n) for n in range(200)] + [row(n, response="later") for n in range(100)] + [row(300, prompt=" ")]
    path = written(tmp_path / "a.jsonl", rows)
    found = drawn(path)
    assert found.counts == {"records": 301, "earlier": 0, "others": 0, "without_prompt": 1}
    assert (found.first, found.last) == (rows[0]["time"], rows[-1]["time"])
    assert len({one["prompt"] for one in found.rows}) == len(found.rows) == 30
    assert all(one["response"].startswith("answer") for one in found.rows)  # the first of each prompt
    assert all(rows[one["line"] - 1]["prompt"] == one["prompt"] and one["file"] == str(path) for one in found.rows)
    content = path.read_bytes()
    assert found.files == [{"file": str(path), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    assert drawn(path).rows == found.rows
    assert {one["prompt"] for one in drawn(path, key=b"b").rows} != {one["prompt"] for one in found.rows}


def test_prompts_have_equal_chances_however_often_they_are_asked(tmp_path):
    rows = [row(n % 60 if n < 120 else 0) for n in range(600)]  # the first one is asked 482 times
    path, seen = written(tmp_path / "a.jsonl", rows), Counter()
    for draw in range(200):
        seen.update(one["prompt"] for one in drawn(path, key=str(draw).encode()).rows)
    assert len(seen) == 60 and all(70 <= count <= 130 for count in seen.values())  # of 200 draws of 30 in 60


def test_what_is_not_later_is_left_out(tmp_path):
    path = written(tmp_path / "a.jsonl", [row(n) for n in range(50)])
    found = drawn(path, after=logs.as_time(row(9)["time"]))
    assert found.counts["earlier"] == 10 and len(found.rows) == 30 and found.first == row(10)["time"]
    none = drawn(path, after=logs.as_time(row(99)["time"]))
    assert none.rows == [] and none.first is None is none.last


def test_names_of_fields_and_kinds_of_time(tmp_path):
    names = Audit(prompt_field="request.0.content", response_field="out", time_field="at", feedback_field="stars")
    times = ["2026-11-26T08:00:00Z", "2026-11-26T17:00:00+09:00", "2026-11-26 08:00:00", 1795680000, 1795680000000]
    rows = [{"at": at, "request": [{"content": f"q{n}"}], "out": "", "stars": n} for n, at in enumerate(times)]
    rows.append({"at": times[0], "request": [{"content": "cut \ud83d"}], "out": "語"})
    found = drawn(written(tmp_path / "a.jsonl", rows), names)
    assert {one["time"] for one in found.rows} == {"2026-11-26T08:00:00+00:00"}
    assert {one["prompt"]: one["feedback"] for one in found.rows} == {
        **{f"q{n}": float(n) for n in range(5)}, "cut \ufffd": None,
    }  # fmt: skip


def test_compressed_logs_and_a_byte_order_mark(tmp_path):
    plain = written(tmp_path / "a.jsonl", [row(n) for n in range(40)])
    marked, packed = tmp_path / "b.jsonl", tmp_path / "c.jsonl.gz"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    answers = [[one["response"] for one in drawn(path).rows] for path in (plain, marked, packed)]
    assert answers[0] == answers[1] == answers[2]
    whole = packed.read_bytes()
    assert drawn(packed).files[0]["sha256"] == hashlib.sha256(whole).hexdigest()
    for damaged in (whole[:-20], whole[:40] + bytes(20) + whole[60:]):
        packed.write_bytes(damaged)
        with pytest.raises(InputError, match=r"^LOGS: .*c\.jsonl\.gz cannot be read"):
            drawn(packed)


def test_no_answer_an_old_format_and_a_line_that_is_being_written(tmp_path):
    old = [{"time": row(0)["time"], "q": "of another format"}]
    rows = [*old, row(1, response=None), row(2, prompt=None), row(3)]
    path = written(tmp_path / "a.jsonl", rows)
    with path.open("a") as file:
        file.write('{"time": "2026-0')
    found = drawn(path, after=logs.as_time(row(0)["time"]))
    assert found.counts == {"records": 4, "earlier": 1, "others": 0, "without_prompt": 1}
    assert {one["response"] for one in found.rows} == {"", "answer 3"}


def test_answers_of_others_are_left_out(tmp_path):
    rows = [row(n, model={"name": "champion" if n % 3 else "teacher"}) for n in range(60)]
    found = drawn(written(tmp_path / "a.jsonl", rows), Audit(examples=30, where={"model.name": "champion"}))
    assert found.counts["others"] == 20 and all(int(one["prompt"].split()[1]) % 3 for one in found.rows)


GOOD = json.dumps(row(0)).encode()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (json.dumps({"time": row(1)["time"], "prompt": "q", "answer": "a"}).encode(),
         "field 'response' is missing, it has time, prompt, answer; write its name in audit.response_field"),
        (json.dumps(row(1, response=["a"])).encode(),
         "field 'response' is no text but a list; name what is in it: audit.response_field: response.0.content"),
        (json.dumps({"prompt": "q", "response": "a"}).encode(), "field 'time' is missing.*audit.time_field"),
        (json.dumps(row(1, time="my secret")).encode(),
         "field 'time' is no time but a text of 9 characters; write e.g. 2026"),
        (json.dumps(row(1, time=True)).encode(), "field 'time' is no time but a bool"),
        (json.dumps(row(1, time="2099-01-01")).encode(), "field 'time' is a time to come, 2099-01-01T00:00:00.00:00"),
        (json.dumps(row(1, feedback="secret")).encode(), "field 'feedback' is no number but a text of 6 characters"),
        (json.dumps(row(1, feedback=10**400)).encode(), "field 'feedback' is no number but a int"),
        ('{"prompt": "Größe"}'.encode("latin-1"), r"not UTF-8 \(byte 14\); write one JSON object per line, in UTF-8"),
        (json.dumps(row(1)).encode("utf-16"), "not UTF-8"),
        (b'{"prompt": ', r"not JSON \(.*\); write one JSON object per line"),
        (b"[1, 2]", "a list, no object"),
    ],
)  # fmt: skip
def test_bad_lines_are_told_by_file_and_line(tmp_path, line, told):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n")
    with pytest.raises(InputError, match=rf"^LOGS: {path}, line 3: {told}") as raised:
        drawn(path)
    assert "secret" not in str(raised.value)


def test_a_line_without_an_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + b'{"prompt": "' + b"x" * (9 * 2**20))
    with pytest.raises(InputError, match="line 2: longer than 8 MiB"):
        drawn(path)


MEMORY = """
import resource, sys
from pathlib import Path
from featkd.data import logs
from featkd.judging import Audit
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = logs.draw([Path(sys.argv[1])], Audit(), None, b"a")
print(found.counts['records'], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("megabytes", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_logs(tmp_path, megabytes):
    lines = "".join(json.dumps(row(n, response="word " * 400)) + "\n" for n in range(500)).encode()
    path, times = tmp_path / "a.jsonl", megabytes * 10**6 // len(lines) + 1
    with path.open("wb") as file:
        for part in range(times):
            file.write(lines.replace(b"prompt ", f"prompt {part} ".encode()))
    found = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    records, grown = map(int, found.stdout.split())
    assert path.stat().st_size > megabytes * 10**6 and records == 500 * times
    assert grown < 20  # MiB
