"""What the person who waits reads."""

import io
import re

import pytest

from featkd.store import Store
from tasks.progress import Progress
from tasks.stages import StageLog, obtain


def test_made_then_reused(tmp_path, capsys):
    log, store = StageLog(), Store(tmp_path)

    def build(folder):
        (folder / "file").write_text("x")
        return {"documents": 3}

    for _ in range(2):
        obtain(log, "data", store, "data", "3fa9c1" * 8, build, note=lambda made: f"{made.meta['documents']} documents")
    assert [(entry.state, entry.note) for entry in log.stages] == [("made", "3 documents"), ("reused", "3 documents")]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split()[:2] == ["data", "made"] and lines[1].split()[:2] == ["data", "reused"]
    assert "3fa9c13fa9c1" in lines[0]


def test_a_failed_stage_is_told(capsys):
    log = StageLog()
    with pytest.raises(ZeroDivisionError), log.timed("roi"):
        _ = 1 / 0
    assert log.stages[0].state == "failed" and "failed" in capsys.readouterr().err


def test_progress_off_a_terminal_is_a_line_every_ten_seconds():
    stream = io.StringIO()
    with Progress("teacher", stream) as progress:
        for step in range(1, 11):
            progress.shown -= 4
            progress({"event": "progress", "step": step, "steps": 10, "loss": 2.5, "tokens_per_s": 12000.0})
        progress({"event": "something else"})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all(len(line) < 80 and re.search(r"  \d+ s left$", line) for line in lines), "whole on a narrow terminal"
    assert "loss 2.500" in lines[0] and "12,000 tokens/s" in lines[0] and "\r" not in stream.getvalue()


@pytest.mark.parametrize(("seconds", "told"), [(9.6, "10 s"), (600, "10 min"), (36_000, "10.0 h")])
def test_what_a_training_will_take_is_told_before_its_first_step(seconds, told):
    stream = io.StringIO()
    with Progress("distil", stream) as progress:
        progress({"event": "estimate", "seconds": seconds})
    assert stream.getvalue() == f"distil       about {told} in all on this machine\n"
