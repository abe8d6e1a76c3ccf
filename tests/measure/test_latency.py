import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.stats import t

from featkd import environment, spec
from featkd.errors import InputError
from featkd.measure import latency

SMALL = spec.Latency(prompt_tokens=8, new_tokens=6, warmup=1, repeats=3, rounds=2)


@pytest.fixture(scope="module")
def raw(exported):
    folders = {"teacher": exported("llama").onnx, "student": exported("gpt2").onnx}
    order = []
    done = latency.measure(folders, SMALL, exported("llama").probe[0], 1, "cpu", lambda *at: order.append(at))
    return done, order


def test_raw_values_of_real_processes(raw, exported):
    done, order = raw
    assert order == [("teacher", 0), ("student", 0), ("student", 1), ("teacher", 1)]
    assert done["teacher"]["in_turns"]
    assert json.loads(json.dumps(done)) == done
    for name, kind in (("teacher", "llama"), ("student", "gpt2")):
        assert done[name]["provider"] == "CPUExecutionProvider" and done[name]["threads"] == 1
        assert done[name]["file_bytes"] == sum(file.stat().st_size for file in exported(kind).onnx.glob("*.onnx*"))
        assert done[name]["cache_bytes_per_token"] == {"llama": 2 * 2 * 2 * 8 * 4, "gpt2": 2 * 2 * 32 * 4}[kind]
        assert len(done[name]["rounds"]) == 2
        for one in done[name]["rounds"]:
            assert len(one["ttft_ms"]) == len(one["decode_tokens_per_s"]) == 3
            assert min(one["ttft_ms"] + one["decode_tokens_per_s"]) > 0
            # this process holds torch: the child must not be charged with its size
            assert 20e6 < one["import_rss_bytes"] < one["peak_rss_bytes"] < 200e6


def test_models_that_do_not_fit_together_follow_each_other(exported, monkeypatch):
    monkeypatch.setattr(environment, "free_memory_bytes", lambda device: 1)
    folders = {"teacher": exported("llama").onnx, "student": exported("gpt2").onnx}
    done = latency.measure(folders, SMALL, exported("llama").probe[0], 1, "cpu")
    assert not done["student"]["in_turns"] and len(done["student"]["rounds"][1]["ttft_ms"]) == 3


def test_summary(raw):
    done, _ = raw
    times, memory = latency.summarise(done["student"], done["teacher"])
    assert times.generations == 6 and len(times.raw_ttft_ms) == 6
    by_round = [np.median(one["ttft_ms"]) for one in done["student"]["rounds"]]
    assert times.ttft_ms.value == pytest.approx(np.sqrt(np.prod(by_round)))
    for interval in (times.ttft_ms, times.decode_speedup, times.ttft_speedup, memory.rss_ratio):
        assert interval.low <= interval.value <= interval.high
    itself, same = latency.summarise(done["teacher"], done["teacher"])
    assert itself.decode_speedup.model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0} == same.rss_ratio.model_dump()
    assert latency.summarise(done["teacher"], None)[0].decode_speedup is None


def test_a_change_of_pace_within_a_round_cancels():
    def paced(ms):
        pace = np.array([1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.0, 1.5, 1.0])
        rounds = [{"ttft_ms": list(ms * np.roll(pace, 3 * turn)), "decode_tokens_per_s": [1.0] * 10,
                   "peak_rss_bytes": 1.0, "import_rss_bytes": 0.0} for turn in range(4)]  # fmt: skip
        return {"provider": "x", "prompt_tokens": 8, "file_bytes": 1, "cache_bytes_per_token": 8, "rounds": rounds}

    times = latency.summarise(paced(2.0), paced(6.0))[0]
    assert times.ttft_speedup.value == pytest.approx(3.0)


def test_the_ratio_is_right_and_drift_that_hits_both_cancels():
    rng = np.random.default_rng(0)
    student, teacher = (made(ms, [1.0, 1.6, 2.5, 1.3], rng) for ms in (2.0, 6.0))
    times, _ = latency.summarise(student, teacher)
    assert times.ttft_speedup.low < 3.0 < times.ttft_speedup.high
    relative = lambda interval: (interval.high - interval.low) / interval.value  # noqa: E731
    assert relative(times.ttft_speedup) < 0.5 * relative(times.ttft_ms)


def test_intervals_cover_what_they_say():
    """Drift of 3 % between rounds and noise of 2 % within, 5 rounds. A two-level bootstrap covers 0.90."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(1500):
        student, teacher = (made(ms, np.exp(rng.normal(0, 0.03, 5)), rng) for ms in (2.0, 6.0))
        speedup = latency.summarise(student, teacher)[0].ttft_speedup
        covered.append(speedup.low < 3.0 < speedup.high)
    assert 0.93 < np.mean(covered) < 0.97


def test_without_spread_between_rounds_there_are_no_bounds():
    rng = np.random.default_rng(0)
    student, teacher = made(2.0, [1.0], rng), made(6.0, [1.0], rng)
    speedup = latency.summarise(student, teacher)[0].ttft_speedup
    assert speedup.value == pytest.approx(3.0, rel=0.05) and speedup.low is None and speedup.high is None
    times, memory = latency.summarise(made(2.0, [1.0, 1.1, 1.2], rng), made(6.0, [1.0, 1.1, 1.2], rng))
    assert times.ttft_ms.low < 2.2 < times.ttft_ms.high
    for same in (times.decode_tokens_per_s, times.decode_speedup, memory.peak_rss_bytes, memory.rss_ratio):
        assert same.low is None and same.high is None


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3])
def test_it_says_how_many_rounds_a_speed_up_needs(spread):
    ratios = 2 * np.exp(spread * np.array([-1.0, 0.5, 0.0, 1.0, -0.5]))
    raw = [
        {"provider": "x", "prompt_tokens": 8, "file_bytes": 1, "cache_bytes_per_token": 8,
         "rounds": [{"ttft_ms": [1.0], "decode_tokens_per_s": [rate], "peak_rss_bytes": 1.0, "import_rss_bytes": 0.0}
                    for rate in rates]}
        for rates in (ratios, np.ones(5))
    ]  # fmt: skip
    found = latency.summarise(*raw)[0]
    deviation = np.log(ratios).std(ddof=1)
    half = {n: t.ppf(0.975, n - 1) * deviation / np.sqrt(n) for n in range(2, 1000)}
    enough = next(n for n in half if half[n] <= np.log(1.05))
    assert found.rounds_needed == (enough if enough > 5 else None)
    assert (found.rounds_needed is None) == (spread == 0.01)


def made(ms, drift, rng):
    """Raw values of a model that takes `ms` to its first token, each round slowed by its drift."""
    rounds = [{"ttft_ms": list(ms * slow * rng.normal(1, 0.02, 20)), "decode_tokens_per_s": [10 / ms] * 20,
               "peak_rss_bytes": 1e6 * ms, "import_rss_bytes": 1e6} for slow in drift]  # fmt: skip
    return {"provider": "x", "prompt_tokens": 8, "file_bytes": 1, "cache_bytes_per_token": 8, "rounds": rounds}


def test_bad_input_is_told_in_one_line(exported, tmp_path):
    with pytest.raises(InputError, match=r"latency\.prompt_tokens: 8"):
        latency.measure({"a": exported("gpt2").onnx}, SMALL, [1, 2], 1, "cpu")
    with pytest.raises(InputError, match=r"model\.onnx"):
        latency.measure({"a": tmp_path}, SMALL, list(range(8)), 1, "cpu")


def test_the_child_dies_with_its_parent(exported, tmp_path):
    parent = f"""
import sys
from pathlib import Path
from featkd import spec
from featkd.measure import latency
long = spec.Latency(prompt_tokens=8, new_tokens=60, repeats=100000, rounds=1)
latency.measure({{"a": Path({str(exported("gpt2").onnx)!r})}}, long, list(range(8)), 1, "cpu")
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    child = _wait_for(lambda: _children(process.pid))[0]
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert _wait_for(lambda: not _alive(child))


def _wait_for(condition, seconds=20):
    end = time.time() + seconds
    while time.time() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def _children(pid):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


def _alive(pid):
    try:
        state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
