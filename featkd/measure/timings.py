"""From the raw timings of latency.py to figures with 95 % intervals, and to speed-ups over the teacher.

Each round, a process of its own, gives one figure: a quantile of its generations, or for a ratio the median of the
quotients, turn by turn. The value is the geometric mean over rounds, the interval Student's t (1908) of the logarithms
with rounds - 1 degrees of freedom: what drifts between rounds widens it, and it keeps its coverage with a handful of
rounds, where a bootstrap is too narrow. One round, or rounds that all give the same, have no bounds.
"""

import itertools
import math
from typing import Any

import numpy as np
from scipy.special import stdtrit

from featkd.result import Energy, Interval, Latency, Memory, OperatingPoint, Times

Raw = dict[str, Any]
LEVEL = 0.95
COUNTERS = ("rapl", "nvml")
PRECISE = 0.05  # what a speed-up is to be known to


def summarise(raw: Raw, teacher_raw: Raw | None) -> tuple[Latency, Memory, Energy]:
    """What `latency.measure` found of one model, beside the teacher's.

    Without `teacher_raw` there are no ratios; of a model to itself they are exactly 1.
    """
    sizes = sorted(map(int, raw["rounds"][0]["batches"]))
    points = [_point(raw, teacher_raw, size) for size in sizes]
    alone = points[0]
    peak = _rounds(raw, "peak_rss_bytes")
    base_peak = _rounds(teacher_raw, "peak_rss_bytes") if teacher_raw else None
    above = np.maximum(peak - _rounds(raw, "import_rss_bytes"), 1)  # a logarithm is taken
    ttft, gaps = _turns(raw, alone.concurrency)
    latency = Latency(
        provider=raw["provider"],
        points=points,
        rounds_needed=_rounds_needed(alone.decode_speedup, len(ttft)) if alone.decode_speedup else None,
        generations=ttft.size,
        raw_ttft_ms=ttft.ravel().tolist(),
        raw_decode_tokens_per_s=(1e3 / gaps.mean(-1)).ravel().tolist(),
    )
    memory = Memory(
        peak_rss_bytes=over_rounds(peak),
        rss_above_import_bytes=over_rounds(above),
        device_bytes=None
        if raw["rounds"][0]["device_bytes"] is None
        else over_rounds(np.maximum(_rounds(raw, "device_bytes"), 1)),
        rss_ratio=None if base_peak is None else _ratio(peak[:, None], base_peak[:, None]),
        file_bytes=raw["file_bytes"],
        cache_bytes_per_token=raw["cache_bytes_per_token"],
    )
    return latency, memory, _energy(raw, teacher_raw)


def _energy(raw: Raw, teacher_raw: Raw | None) -> Energy:
    if raw["energy"] not in COUNTERS:
        return Energy(why=raw["energy"])

    def per_1000_tokens(of: Raw) -> Any:
        return 1e3 * _rounds(of, "joules") / (_rounds(of, "energy_requests") * of["new_tokens"])

    own = per_1000_tokens(raw)
    if not (own > 0).all():  # a counter that stands still
        return Energy(why="energy-counter")
    base = per_1000_tokens(teacher_raw) if teacher_raw else None
    ratio = None if base is None or not (base > 0).all() else _ratio(own[:, None], base[:, None])
    return Energy(counter=raw["energy"], joules_per_1000_tokens=over_rounds(own), ratio=ratio)


def _point(raw: Raw, teacher_raw: Raw | None, size: int) -> OperatingPoint:
    (ttft, gaps), prompt = _turns(raw, size), raw["prompt_tokens"]
    gap = gaps.mean(-1)
    point = OperatingPoint(
        concurrency=size,
        ttft_ms=_times(ttft),
        inter_token_ms=_times(gaps.reshape(len(gaps), -1)),
        end_to_end_ms=_times(ttft + gaps.sum(-1)),
        prefill_tokens_per_s=over_rounds(np.median(1e3 * size * prompt / ttft, axis=1)),
        decode_tokens_per_s=over_rounds(np.median(1e3 * size / gap, axis=1)),
        rounds_prefill_tokens_per_s=np.median(1e3 * size * prompt / ttft, axis=1).tolist(),
        rounds_decode_tokens_per_s=np.median(1e3 * size / gap, axis=1).tolist(),
    )
    if teacher_raw is None:
        return point
    teacher_ttft, teacher_gaps = _turns(teacher_raw, size)
    speedups = {"ttft_speedup": _ratio(teacher_ttft, ttft), "decode_speedup": _ratio(teacher_gaps.mean(-1), gap)}
    return point.model_copy(update=speedups)


def over_rounds(values: Any) -> Interval:
    """The geometric mean of one figure per round [rounds] with its interval."""
    logs = np.log(np.asarray(values, np.float64))
    rounds, mean = len(logs), logs.mean()
    if np.ptp(logs) < 1e-12:  # rounding
        return Interval(value=float(np.exp(mean)))
    half = stdtrit(rounds - 1, (1 + LEVEL) / 2) * logs.std(ddof=1) / np.sqrt(rounds)
    return Interval(value=float(np.exp(mean)), low=float(np.exp(mean - half)), high=float(np.exp(mean + half)))


def _times(table: Any) -> Times:
    """Of a table [rounds, values]."""
    quantiles = {name: over_rounds(np.quantile(table, q, axis=1)) for name, q in (("p50", 0.5), ("p90", 0.9))}
    return Times(**quantiles, p99=float(np.quantile(table, 0.99)))


def _ratio(table: Any, over: Any) -> Interval:
    """Of two tables [rounds, turns], turn by turn."""
    if np.array_equal(table, over):
        return Interval(value=1.0, low=1.0, high=1.0)
    return over_rounds(np.median(table / over, axis=1))


def _turns(raw: Raw, size: int) -> tuple[Any, Any]:
    """Of the batches of this size: time to first token [rounds, turns], times to the others [rounds, turns, tokens]."""
    rounds = [done["batches"][str(size)] for done in raw["rounds"]]
    return tuple(np.array([batch[key] for batch in rounds], np.float64) for key in ("ttft_ms", "inter_token_ms"))


def _rounds(raw: Raw, key: str) -> Any:
    return np.array([done[key] for done in raw["rounds"]], np.float64)


def _rounds_needed(found: Interval, rounds: int) -> int | None:
    """How many would bring the interval to `PRECISE` on both sides, at the spread that these rounds had."""
    if found.low is None or found.low == found.high or found.high / found.value <= 1 + PRECISE:
        return None

    def width(of: float) -> float:
        return float(stdtrit(of - 1, (1 + LEVEL) / 2)) / math.sqrt(of)

    spread = math.log(found.high / found.value) / width(rounds)
    return next(n for n in itertools.count(rounds + 1) if spread * width(n) <= math.log1p(PRECISE))
