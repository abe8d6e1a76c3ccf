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
    per_million = said["price_per_hour"] * said["peak_factor"] * 1e6 / (3600 * said["utilisation"])
    figures = {
        "machines": machines(prefill[0], decode[0], said),
        "monthly_cost": tuple(monthly(*rates, said) for rates in zip(prefill, decode, strict=True)),
        "cost_per_million_output_tokens": tuple(per_million / rate for rate in decode),
        "cost_per_million_input_tokens": tuple(per_million / rate for rate in prefill),
    }
    if teacher is None:
        return figures
    assert not said["error_cost"], "what errors cost is in tests/decide/test_case.py alone"
    base, hours = priced(teacher), candidate["training"]["seconds"] / 3600
    assert base["concurrency"] == at["concurrency"], "rounds are compared then, not turns"
    its = [base[f"{rate}_tokens_per_s"]["value"] for rate in ("prefill", "decode")]
    own, horizon = [prefill[0], decode[0]], cost["horizon_months"]
    served = monthly(*its, said) - figures["monthly_cost"][0]
    savings = {
        side: [
            monthly(*pace, said)
            - monthly(pace[0] * at["ttft_speedup"][side], pace[1] * at["decode_speedup"][side], said)
            for bound in ("low", "high")
            for pace in [[base[f"{rate}_tokens_per_s"][bound] for rate in ("prefill", "decode")]]
        ]
        for side in ("low", "high")
    }
    value, one_off = business(its, own, said, hours)
    running = served - value
    saving = [value, *(one - running for one in (min(served, *savings["low"]), max(served, *savings["high"])))]
    payback = [one_off / one if one > 0 else "never" for one in saving]
    figures |= {
        "monthly_saving": tuple(saving),
        "one_off_cost": one_off,
        "payback_months": payback[0],
        "payback_months_low": payback[2],
        "payback_months_high": payback[1],
        "npv": tuple(worth(one, one_off, said, horizon) for one in saving),
        "return_on_investment": tuple((one * horizon - one_off) / one_off for one in saving),
        "cash_flow": [month * saving[0] - one_off for month in range(horizon + 1)],
        "break_even_requests": break_even(its, own, said, hours, horizon),
    }
    for at_, bar in enumerate(candidate["roi"]["sensitivities"]):
        for end in ("low", "high"):
            changed = said if bar["name"] == "throughput" else said | {bar["name"]: bar[end]}
            rates = [prefill[1 + (end == "low")], decode[1 + (end == "low")]] if bar["name"] == "throughput" else own
            figures[f"sensitivities/{at_}/npv_{end}"] = worth(*business(its, rates, changed, hours), changed, horizon)
    return figures


def business(its: list, own: list, said: dict, hours: float) -> tuple[float, float]:
    """Saving per month, and the cost before it."""
    again = hours * said["training_price_per_hour"] + said["evaluation_cost"]
    running = said["monthly_upkeep"] + said["redistillations_per_year"] / 12 * again
    return monthly(*its, said) - monthly(*own, said) - running, said["engineering_cost"] + again


def worth(saving: float, one_off: float, said: dict, horizon: int) -> float:
    rate = (1 + said["discount_rate"]) ** (1 / 12)
    return sum(saving / rate**month for month in range(1, horizon + 1)) - one_off


def break_even(its: list, own: list, said: dict, hours: float, horizon: int) -> float | str:
    """The first jump of the teacher's machines right above which it pays, of twenty thousand."""
    seconds = said["input_tokens_per_request"] / its[0] + said["output_tokens_per_request"] / its[1]
    one = SECONDS_PER_MONTH * said["utilisation"] / said["peak_factor"] / seconds
    for jump in range(20_000):
        then = said | {"requests_per_month": math.floor(jump * one * (1 + 1e-9)) + 1}
        if worth(*business(its, own, then, hours), said, horizon) >= 0:
            return then["requests_per_month"]
    return "never"


def priced(candidate: dict) -> dict:
    (at,) = (one for one in candidate["latency"]["points"] if one["concurrency"] == candidate["roi"]["concurrency"])
    return at


def machines(prefill: float, decode: float, said: dict) -> int:
    seconds = said["input_tokens_per_request"] / prefill + said["output_tokens_per_request"] / decode
    peak = said["requests_per_month"] / SECONDS_PER_MONTH * said["peak_factor"]
    return math.ceil(peak * seconds / said["utilisation"] * (1 - 1e-9))


def monthly(prefill: float, decode: float, said: dict) -> float:
    return machines(prefill, decode, said) * said["price_per_hour"] * SECONDS_PER_MONTH / 3600
