import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from featkd import environment, spec
from featkd.errors import InputError, ModelFailed
from featkd.measure import latency
from featkd.measure.timings import summarise

SMALL = spec.Latency(prompt_tokens=8, new_tokens=6, warmup=1, repeats=3, rounds=2, batch_sizes=[3])


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
            assert list(one["batches"]) == ["1", "3"]
            for batch in one["batches"].values():
                assert np.shape(batch["ttft_ms"]) == (3,) and np.shape(batch["inter_token_ms"]) == (3, 5)
                assert min(batch["ttft_ms"]) > 0 and np.min(batch["inter_token_ms"]) > 0
            # this process holds torch: the child must not be charged with its size
            assert 20e6 < one["import_rss_bytes"] < one["peak_rss_bytes"] < 200e6


def test_models_that_do_not_fit_together_follow_each_other(exported, monkeypatch):
    monkeypatch.setattr(environment, "free_memory_bytes", lambda device: 1)
    folders = {"teacher": exported("llama").onnx, "student": exported("gpt2").onnx}
    done = latency.measure(folders, SMALL, exported("llama").probe[0], 1, "cpu")
    assert not done["student"]["in_turns"] and len(done["student"]["rounds"][1]["batches"]["1"]["ttft_ms"]) == 3


def test_summary(raw):
    done, _ = raw
    times, memory, _ = summarise(done["student"], done["teacher"])
    assert times.generations == 6 and len(times.raw_ttft_ms) == len(times.raw_decode_tokens_per_s) == 6
    alone, batch = times.points
    assert (alone.concurrency, batch.concurrency) == (1, 3) and times.alone is alone
    by_round = [one["batches"]["1"] for one in done["student"]["rounds"]]
    assert alone.ttft_ms.p50.value == pytest.approx(np.sqrt(np.prod([np.median(one["ttft_ms"]) for one in by_round])))
    slowest = [np.quantile(one["inter_token_ms"], 0.9) for one in by_round]
    assert alone.inter_token_ms.p90.value == pytest.approx(np.sqrt(np.prod(slowest)))
    for point in times.points:
        assert point.prefill_tokens_per_s.value == pytest.approx(point.concurrency * 8e3 / point.ttft_ms.p50.value)
        assert point.end_to_end_ms.p50.value > point.ttft_ms.p50.value + 4 * point.inter_token_ms.p50.value
        assert point.end_to_end_ms.p50.value <= point.end_to_end_ms.p90.value <= point.end_to_end_ms.p99 * 1.5
    # a step of three at once takes less than three steps
    assert batch.decode_tokens_per_s.value > 1.2 * alone.decode_tokens_per_s.value
    for interval in (alone.ttft_ms.p50, times.decode_speedup, times.ttft_speedup, memory.rss_ratio):
        assert interval.low <= interval.value <= interval.high
    itself, same, _ = summarise(done["teacher"], done["teacher"])
    for point in itself.points:
        assert point.decode_speedup.model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert same.rss_ratio.model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert summarise(done["teacher"], None)[0].decode_speedup is None


def test_bad_input_is_told_in_one_line(exported, tmp_path):
    with pytest.raises(InputError, match=r"latency\.prompt_tokens: 8"):
        latency.measure({"a": exported("gpt2").onnx}, SMALL, [1, 2], 1, "cpu")
    with pytest.raises(InputError, match=r"model\.onnx"):
        latency.measure({"a": tmp_path}, SMALL, list(range(8)), 1, "cpu")
    with pytest.raises(ModelFailed, match="b: .*does not load") as caught:
        shutil.copytree(exported("gpt2").onnx, tmp_path / "broken")
        (tmp_path / "broken" / "generate.onnx").write_bytes(b"no graph")
        folders = {"a": exported("gpt2").onnx, "b": tmp_path / "broken"}
        latency.measure(folders, SMALL, list(range(8)), 1, "cpu")
    assert caught.value.model == "b"


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
