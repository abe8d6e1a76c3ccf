"""Runs whose gates are against the student that serves, through the command line."""

import json
from pathlib import Path

import pytest
from test_poc import TINY, featkd, outcome, recomputed

from featkd.result import Interval, Result

AGAINST = [
    {"metric": "quality.heldout_perplexity.ratio", "at_most": 1.0},
    {"metric": "latency.decode_speedup", "at_least": 0.1},
    {"metric": "guardrails.own.stereotype.worse", "at_most": 1.0},
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gates_against_the_student_that_serves(tmp_path):
    """A person makes sft champion; the next run, trained otherwise, is held against it in everything."""
    outcome(featkd("run", TINY, root=tmp_path))
    outcome(featkd("override", "last", "--candidate", "sft", "--reason", "a drill", root=tmp_path))
    outcome(featkd("approve", "last", "--candidate", "sft", "--by", "Ada", "--reason", "a drill", root=tmp_path))
    gates = json.dumps([gate | {"against": "champion"} for gate in AGAINST])
    again = ("run", TINY, "--set", f"gates={gates}")
    run = Path(outcome(featkd(*again, root=tmp_path))["result"]).parent
    same = Result.model_validate_json((run / "result.json").read_text())
    outcomes = {gate.metric: gate for gate in same.candidates["sft"].verdict.gates}
    assert outcomes["quality.heldout_perplexity.ratio"].observed == Interval(value=1.0, low=1.0, high=1.0)

    run = Path(outcome(featkd(*again, "--set", "training.learning_rate=0.002", root=tmp_path))["result"]).parent
    found = Result.model_validate_json((run / "result.json").read_text())
    assert (found.champion.version, found.champion.candidate) == ("2", "sft")
    assert len(found.champion.comparisons) == 9 and recomputed(run) > 250
    for name in ("sft", "logit-kd", "feature-kd"):
        gates = found.candidates[name].verdict.gates
        assert [gate.against for gate in gates] == ["champion"] * 3 and all(gate.observed for gate in gates)
    assert "Beside the champion" in (run / "report.html").read_text()
