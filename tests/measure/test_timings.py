"""Intervals and ratios of made-up timings, whose truth is known."""

import numpy as np
import pytest
from scipy.stats import t

from featkd.measure.timings import summarise


def test_a_change_of_pace_within_a_round_cancels():
    def paced(ms):
        pace = np.array([1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.0, 1.5, 1.0])
        return raw([(ms * np.roll(pace, 3 * turn), np.ones(10), 1.0) for turn in range(4)])

    times = summarise(paced(2.0), paced(6.0))[0]
    assert times.ttft_speedup.value == pytest.approx(3.0)


def test_the_ratio_is_right_and_drift_that_hits_both_cancels():
    rng = np.random.default_rng(0)
    student, teacher = (made(ms, [1.0, 1.6, 2.5, 1.3], rng) for ms in (2.0, 6.0))
    times, _, _ = summarise(student, teacher)
    assert times.ttft_speedup.low < 3.0 < times.ttft_speedup.high

    def relative(interval):
        return (interval.high - interval.low) / interval.value

    assert relative(times.ttft_speedup) < 0.5 * relative(times.alone.ttft_ms.p50)


def test_intervals_cover_what_they_say():
    """Drift of 3 % between rounds and noise of 2 % within, 5 rounds. A two-level bootstrap covers 0.90."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(1500):
        student, teacher = (made(ms, np.exp(rng.normal(0, 0.03, 5)), rng) for ms in (2.0, 6.0))
        speedup = summarise(student, teacher)[0].ttft_speedup
        covered.append(speedup.low < 3.0 < speedup.high)
    assert 0.93 < np.mean(covered) < 0.97


def test_without_spread_between_rounds_there_are_no_bounds():
    rng = np.random.default_rng(0)
    student, teacher = made(2.0, [1.0], rng), made(6.0, [1.0], rng)
    speedup = summarise(student, teacher)[0].ttft_speedup
    assert speedup.value == pytest.approx(3.0, rel=0.05) and speedup.low is None and speedup.high is None
    times, memory, _ = summarise(made(2.0, [1.0, 1.1, 1.2], rng), made(6.0, [1.0, 1.1, 1.2], rng))
    assert times.alone.ttft_ms.p50.low < 2.2 < times.alone.ttft_ms.p50.high
    for same in (times.alone.decode_tokens_per_s, times.decode_speedup, memory.peak_rss_bytes, memory.rss_ratio):
        assert same.low is None and same.high is None


def test_memory_of_an_accelerator_is_told_where_there_is_one():
    on_a_processor = raw([([1.0], [1.0], 1.0)] * 3)
    assert summarise(on_a_processor, None)[1].device_bytes is None
    for one, taken in zip(on_a_processor["rounds"], (4e8, 5e8, 6e8), strict=True):
        one["device_bytes"] = taken
    found = summarise(on_a_processor, None)[1].device_bytes
    assert found.value == pytest.approx((4e8 * 5e8 * 6e8) ** (1 / 3)) and found.low < found.value < found.high


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3])
def test_it_says_how_many_rounds_a_speed_up_needs(spread):
    ratios = 2 * np.exp(spread * np.array([-1.0, 0.5, 0.0, 1.0, -0.5]))
    student, teacher = (raw([([1.0], [1e3 / rate], 1.0) for rate in rates]) for rates in (ratios, np.ones(5)))
    found = summarise(student, teacher)[0]
    deviation = np.log(ratios).std(ddof=1)
    half = {n: t.ppf(0.975, n - 1) * deviation / np.sqrt(n) for n in range(2, 1000)}
    enough = next(n for n in half if half[n] <= np.log(1.05))
    assert found.rounds_needed == (enough if enough > 5 else None)
    assert (found.rounds_needed is None) == (spread == 0.01)


def made(ms, drift, rng):
    """A model that takes `ms` to its first token, each round slowed by its drift."""
    return raw([(ms * slow * rng.normal(1, 0.02, 20), [100 * ms] * 20, 1e6 * ms) for slow in drift])


def raw(rounds):
    """What is measured of (times to first token, times to the second, peak of memory) per round."""
    return {
        "provider": "x", "prompt_tokens": 8, "file_bytes": 1, "cache_bytes_per_token": 8,
        "energy": "energy-counter",
        "rounds": [
            {"batches": {"1": {"ttft_ms": list(first), "inter_token_ms": [[gap] for gap in gaps]}},
             "peak_rss_bytes": peak, "import_rss_bytes": 1e6, "device_bytes": None}
            for first, gaps, peak in rounds
        ],
    }  # fmt: skip
