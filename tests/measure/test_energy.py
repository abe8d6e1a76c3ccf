"""Energy is what a counter told, or there is none."""

import sys
import threading
import time

import pytest

from featkd import spec
from featkd.measure import energy, latency
from featkd.measure.timings import summarise

WATTS = 40.0


@pytest.fixture
def rapl(tmp_path):
    """A powercap folder whose package uses `WATTS`, a part of them for its cores."""
    counters = {}
    for place, name, watts in (("", "package-0", WATTS), ("intel-rapl:0:0", "core", WATTS / 2)):
        folder = tmp_path / "powercap" / "intel-rapl" / "intel-rapl:0" / place
        folder.mkdir(parents=True)
        (folder / "name").write_text(name)
        (folder / "max_energy_range_uj").write_text("262143328850")
        (folder / "energy_uj").write_text(f"{1_000_000:020d}")
        counters[folder / "energy_uj"] = watts
    start, ended = time.monotonic(), threading.Event()

    def count():
        while not ended.wait(0.005):
            for file, watts in counters.items():
                with file.open("r+") as counter:  # in place: there is never nothing to read
                    counter.write(f"{round(1e6 + 1e6 * watts * (time.monotonic() - start)):020d}")

    counting = threading.Thread(target=count)
    counting.start()
    yield str(tmp_path / "powercap" / "intel-rapl")
    ended.set()
    counting.join()


def test_joules_since_the_last_call(rapl):
    meter = energy.meter("cpu", rapl)
    assert meter.counter == "rapl"
    meter.joules()
    for seconds in (0.2, 0.4):
        start = time.monotonic()
        time.sleep(seconds)
        found = meter.joules()
        assert found == pytest.approx(WATTS * (time.monotonic() - start), rel=0.1)


def test_without_a_counter_nothing_is_guessed(tmp_path, monkeypatch):
    assert energy.meter("cpu", str(tmp_path)) == "energy-counter"
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    assert energy.meter("cpu", str(tmp_path)) == "energy-extra"


def test_energy_of_real_processes(exported, rapl, monkeypatch):
    meter = energy.meter("cpu", rapl)
    monkeypatch.setattr(latency.energy, "meter", lambda device: meter)
    settings = spec.Latency(prompt_tokens=8, new_tokens=6, warmup=1, repeats=3, rounds=1, batch_sizes=[])
    folders = {"teacher": exported("llama").onnx, "student": exported("gpt2").onnx}
    done = latency.measure(folders, settings, list(range(8)), 1, "cpu")
    for raw in done.values():
        assert raw["energy"] == "rapl"
        for one in raw["rounds"]:  # three seconds in the process, which does not see the patch
            assert WATTS * 2.9 < one["joules"] < WATTS * 4 and one["energy_requests"] > 10
    _, _, found = summarise(done["student"], done["teacher"])
    by_hand = [1e3 * one["joules"] / one["energy_requests"] / 6 for one in done["student"]["rounds"]]
    assert found.joules_per_1000_tokens.value == pytest.approx(by_hand[0]) and found.counter == "rapl"
    assert found.ratio.value > 0
    assert summarise(done["teacher"], done["teacher"])[2].ratio.model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_machine_without_counters_says_so(exported):
    if isinstance(energy.meter("cpu"), energy.Meter):
        pytest.skip("this machine has a counter")
    settings = spec.Latency(prompt_tokens=8, new_tokens=6, warmup=1, repeats=3, rounds=1, batch_sizes=[])
    done = latency.measure({"a": exported("gpt2").onnx}, settings, list(range(8)), 1, "cpu")["a"]
    assert done["rounds"][0]["joules"] is None and summarise(done, None)[2].why == "energy-counter"
