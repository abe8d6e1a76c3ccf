"""Times, memory and money of a result from the raw timings, by an independent hand; see recompute.py."""

import math
from typing import Any

import numpy as np
from scipy.stats import t as student_t

SECONDS_PER_MONTH = 365.25 * 24 / 12 * 3600


def latency(raw: dict, teacher: dict) -> dict[str, Any]:
    figures = {}
    prompt = raw["prompt_tokens"]
    for at, size in enumerate(sorted(map(int, raw["rounds"][0]["batches"]))):
        rounds, base = ([one["batches"][str(size)] for one in of["rounds"]] for of in (raw, teacher))
        place = f"latency/points/{at}"
        first, its_first = ([np.array(one["ttft_ms"]) for one in of] for of in (rounds, base))
        gaps, its_gaps = ([np.mean(one["inter_token_ms"], 1) for one in of] for of in (rounds, base))
        figures[f"{place}/ttft_ms/p50"] = geometric([np.median(one) for one in first])
        figures[f"{place}/ttft_ms/p90"] = geometric([np.quantile(one, 0.9) for one in first])
        all_gaps = [np.array(one["inter_token_ms"]) for one in rounds]
        ends = [np.array(one["ttft_ms"]) + gap.sum(1) for one, gap in zip(rounds, all_gaps, strict=True)]
        for name, values in (("inter_token_ms", all_gaps), ("end_to_end_ms", ends)):
            figures[f"{place}/{name}/p50"] = geometric([np.median(one) for one in values])
            figures[f"{place}/{name}/p90"] = geometric([np.quantile(one, 0.9) for one in values])
        for name, values in (("ttft_ms", first), ("inter_token_ms", all_gaps), ("end_to_end_ms", ends)):
            figures[f"{place}/{name}/p99"] = np.quantile(np.concatenate([one.ravel() for one in values]), 0.99)
        figures[f"{place}/prefill_tokens_per_s"] = geometric([np.median(1e3 * size * prompt / one) for one in first])
        figures[f"{place}/decode_tokens_per_s"] = geometric([np.median(1e3 * size / gap) for gap in gaps])
        if raw is not teacher:
            for name, theirs, mine in (("ttft", its_first, first), ("decode", its_gaps, gaps)):
                figures[f"{place}/{name}_speedup"] = geometric(
                    [np.median(t / m) for t, m in zip(theirs, mine, strict=True)]
                )
    peaks, base = ([one["peak_rss_bytes"] for one in of["rounds"]] for of in (raw, teacher))
    imports = [one["import_rss_bytes"] for one in raw["rounds"]]
    figures["memory/peak_rss_bytes"] = geometric(peaks)
    figures["memory/rss_above_import_bytes"] = geometric(np.subtract(peaks, imports))
    if raw is not teacher:
        figures["memory/rss_ratio"] = geometric(np.divide(peaks, base))
    return figures


def geometric(values: list[float]) -> tuple:
    """The mean over rounds with Student's interval of the logarithms."""
    logs = np.log(values)
    if np.ptp(logs) < 1e-12:
        return (float(values[0]), None, None)
    half = student_t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return tuple(np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]))


def money(candidate: dict, cost: dict, teacher: dict | None) -> dict[str, Any]:
    """From the rates at which it is priced; of a student beside the teacher's cost. The quicker, the cheaper."""
    said = {name: one["value"] for name, one in cost.items() if isinstance(one, dict)}
    bounds = ("value", "high", "low")  # of the rates, for value, low and high of a cost
    at = priced(candidate)
    prefill, decode = ([at[f"{rate}_tokens_per_s"][bound] for bound in bounds] for rate in ("prefill", "decode"))
    per_million = said["usd_per_hour"] * said["peak_factor"] * 1e6 / (3600 * said["utilisation"])
    figures = {
        "machines": machines(prefill[0], decode[0], said),
        "monthly_cost_usd": tuple(monthly(*rates, said) for rates in zip(prefill, decode, strict=True)),
        "usd_per_million_output_tokens": tuple(per_million / rate for rate in decode),
        "usd_per_million_input_tokens": tuple(per_million / rate for rate in prefill),
    }
    if teacher is None:
        return figures
    base, upkeep = priced(teacher), said["monthly_upkeep_usd"]
    assert base["concurrency"] == at["concurrency"], "rounds are compared then, not turns"
    value = monthly(*(base[f"{rate}_tokens_per_s"]["value"] for rate in ("prefill", "decode")), said)
    value -= figures["monthly_cost_usd"][0]
    savings = {
        side: [
            monthly(*pace, said)
            - monthly(pace[0] * at["ttft_speedup"][side], pace[1] * at["decode_speedup"][side], said)
            for bound in ("low", "high")
            for pace in [[base[f"{rate}_tokens_per_s"][bound] for rate in ("prefill", "decode")]]
        ]
        for side in ("low", "high")
    }
    saving = [one - upkeep for one in (value, min(value, *savings["low"]), max(value, *savings["high"]))]
    one_off = said["engineering_usd"] + candidate["training"]["seconds"] / 3600 * said["training_usd_per_hour"]
    months, rate = range(1, cost["horizon_months"] + 1), (1 + said["discount_rate"]) ** (1 / 12)
    payback = [one_off / one if one > 0 else "never" for one in saving]
    return figures | {
        "monthly_saving_usd": tuple(saving),
        "one_off_usd": one_off,
        "payback_months": payback[0],
        "payback_months_low": payback[2],
        "payback_months_high": payback[1],
        "npv_usd": sum(saving[0] / rate**month for month in months) - one_off,
        "cash_flow_usd": [month * saving[0] - one_off for month in (0, *months)],
    }


def priced(candidate: dict) -> dict:
    (at,) = (one for one in candidate["latency"]["points"] if one["concurrency"] == candidate["roi"]["concurrency"])
    return at


def machines(prefill: float, decode: float, said: dict) -> int:
    seconds = said["input_tokens_per_request"] / prefill + said["output_tokens_per_request"] / decode
    peak = said["requests_per_month"] / SECONDS_PER_MONTH * said["peak_factor"]
    return math.ceil(peak * seconds / said["utilisation"])


def monthly(prefill: float, decode: float, said: dict) -> float:
    return machines(prefill, decode, said) * said["usd_per_hour"] * SECONDS_PER_MONTH / 3600
