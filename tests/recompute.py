"""Every aggregate of a result from its raw evidence, by an independent hand: pandas and quantiles of Student's t.

Nothing of featkd is imported here. `recompute(run)` gives {place: figure or (figure, low, high)}; a place is the keys
of result.json, parted by /.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from intervals import apart, average, fieller, over_seeds, share
from scipy.stats import binom
from scipy.stats import t as student_t

SECONDS_PER_MONTH = 365.25 * 24 / 12 * 3600


def recompute(run: Path) -> dict[str, Any]:
    document = json.loads((run / "result.json").read_text())
    timings = json.loads((run / "evidence/latency/latency.json").read_text())
    seen = pandas.read_parquet(run / "evidence/overlap/overlap.parquet")
    tables = {name: pandas.read_parquet(run / f"evidence/accuracy-{name}/samples.parquet").sort_values("doc_id")
              for name in document["candidates"]}  # fmt: skip
    found: dict[str, Any] = {}
    for name, candidate in document["candidates"].items():
        place = f"candidates/{name}"
        for task, score in candidate["quality"]["tasks"].items():
            both = (tables[name], tables["teacher"])
            mine, theirs = (table[table.task == task].reset_index(drop=True) for table in both)
            for key, value in quality(mine, theirs, score["chance"], name == "teacher").items():
                found[f"{place}/quality/tasks/{task}/{key}"] = value
            found[f"{place}/quality/tasks/{task}/overlap"] = seen[seen.task == task].seen.mean()
            if task in candidate["fidelity"]["tasks"]:
                for key, value in fidelity(mine, theirs).items():
                    found[f"{place}/fidelity/tasks/{task}/{key}"] = value
        if name != "teacher":
            tokens = pandas.read_parquet(run / f"evidence/tokens-{name}/tokens.parquet")
            found[f"{place}/fidelity/held_out/kl"] = average(tokens.kl, tokens.group)
            found[f"{place}/fidelity/held_out/agreement"] = share(tokens.same, tokens.group)
        for key, value in guardrails(run, name).items():
            found[f"{place}/guardrails/checks/{key}"] = value
        found |= {f"{place}/{key}": value for key, value in latency(timings[name], timings["teacher"]).items()}
        teacher = document["candidates"]["teacher"]
        spent = money(candidate, document["spec"]["cost"], None if name == "teacher" else teacher)
        found |= {f"{place}/roi/{key}": value for key, value in spent.items()}
    seeds = {name: all_seeds(run, name, candidate, tables[name]) for name, candidate in document["candidates"].items()}
    serving = document["champion"] or {"comparisons": []}
    for at, told in enumerate(serving["comparisons"]):
        champion = pandas.read_parquet(run / "evidence/accuracy-champion/samples.parquet").sort_values("doc_id")
        if document["candidates"][told["a"]]["artefact"] != serving["artefact"]:
            sides = (of_task(table, told["task"]) for table in (tables[told["a"]], champion))
            kind = "ratio" if told["kind"] == "ratio" else "difference"
            found[f"champion/comparisons/{at}/estimate"] = over_seeds(*([side] for side in sides), None)[kind]
    for name, candidate in document["candidates"].items():
        for task, score in candidate["quality"]["recipe"].items():
            mine, teacher = ([of_task(one, task) for one in seeds[who]] for who in (name, "teacher"))
            for key, value in over_seeds(mine, teacher, score["chance"]).items():
                found[f"candidates/{name}/quality/recipe/{task}/{key}"] = value
    leads = [(f"comparisons/{at}", told) for at, told in enumerate(document["comparisons"])]
    for curve_at, curve in enumerate((document["sizes"] or {"curves": []})["curves"]):
        for at, point in enumerate(curve["points"]):
            if point["lead"]:
                leads.append((f"sizes/curves/{curve_at}/points/{at}/lead", point["lead"]))
    for place, told in leads:
        a, b = ([of_task(one, told["task"]) for one in seeds[told[side]]] for side in "ab")
        kind = "ratio" if told["kind"] == "ratio" else "difference"
        found[f"{place}/estimate"] = over_seeds(a, b, None)[kind]
    return found


def all_seeds(run: Path, name: str, candidate: dict, shipped: pandas.DataFrame) -> list[pandas.DataFrame]:
    """In the order of the spec; the one that ships is the first."""
    others = list(candidate["quality"]["replicates"])[1:]
    files = [run / f"evidence/accuracy-{name}-seed-{seed}/samples.parquet" for seed in others]
    return [shipped, *(pandas.read_parquet(file).sort_values("doc_id") for file in files)]


def of_task(table: pandas.DataFrame, task: str) -> pandas.DataFrame:
    return table[table.task == task].reset_index(drop=True)


def quality(mine: pandas.DataFrame, theirs: pandas.DataFrame, chance: float | None, itself: bool) -> dict[str, Any]:
    s, t, w, groups = mine.score, theirs.score, mine.weight, mine.group
    if mine.metric[0].endswith("perplexity"):
        loss, base = -s.sum() / w.sum(), -t.sum() / w.sum()
        figures = {"estimate": tuple(math.exp(one) for one in fieller(-s, w, groups, []))}
        if not itself:
            figures["ratio"] = tuple(math.exp(one) for one in fieller(t - s, w, groups, []))
            figures["difference"] = math.exp(loss) - math.exp(base)
        if not itself and chance is not None:
            lead = [math.log(chance) * w + one for one in (s, t)]
            figures["retained"] = fieller(*lead, groups, [])
        return figures
    figures = {"estimate": share(s, groups)}
    cells = [(a, b) for a in (0, 1) for b in (0, 1)]
    if not itself:
        figures["difference"] = apart(s, t, groups)
        if chance is not None and t.mean() - chance > 1e-9:
            figures["retained"] = fieller(s - chance, t - chance, groups, [(a - chance, b - chance) for a, b in cells])
    return figures


def fidelity(mine: pandas.DataFrame, theirs: pandas.DataFrame) -> dict[str, Any]:
    same, right, wrong = mine.choice == theirs.choice, theirs.score == 1, theirs.score == 0
    p, q = (np.exp(np.vstack(table.choice_logprobs)) for table in (theirs, mine))
    p, q = (one / one.sum(1, keepdims=True) for one in (p, q))
    lost, won = right & (mine.score == 0), wrong & (mine.score == 1)
    truth = np.eye(q.shape[1])[mine.gold]
    brier, its_brier = (pandas.Series(((one - truth) ** 2).sum(1)) for one in (q, p))
    confidence, hit = q.max(1), q.argmax(1) == mine.gold
    bins = pandas.DataFrame({"bin": np.minimum(confidence * 10 // 1, 9), "gap": confidence - hit})
    figures = {
        "agreement": share(same, mine.group),
        "correct_to_wrong": share(lost, mine.group),
        "wrong_to_correct": share(won, mine.group),
        "mcnemar_p": float(min(1, 2 * binom.cdf(min(lost.sum(), won.sum()), lost.sum() + won.sum(), 0.5))),
        "on_right": share(same[right], mine.group[right]) if right.any() else None,
        "on_wrong": share(same[wrong], mine.group[wrong]) if wrong.any() else None,
        "kl": average(pandas.Series((p * np.log(p / q)).sum(1)), mine.group),
        "calibration/brier": average(brier, mine.group),
        "calibration/brier_difference": average(brier - its_brier, mine.group),
        "calibration/ece": bins.groupby("bin").gap.sum().abs().sum() / len(bins),
    }
    sizes = mine["class"].value_counts() if mine["class"].notna().any() else pandas.Series(dtype=int)
    names = sizes.index[sizes >= 20]
    if len(names) > 1:
        behind = (mine.score - theirs.score).groupby(mine["class"]).mean()[names]
        figures["worst_class/difference"] = behind.min()
        figures["worst_class/classes"] = len(names)
    return {name: value for name, value in figures.items() if value is not None}


def guardrails(run: Path, name: str) -> dict[str, Any]:
    folders = [run / f"evidence/guardrails-{one}" for one in (name, "teacher")]
    samples, base = (pandas.read_parquet(folder / "samples.parquet") for folder in folders)
    own, its = (
        table[table.task == "guard_own"].sort_values("doc_id").reset_index(drop=True) for table in (samples, base)
    )
    figures = {"own.stereotype/estimate": share(1 - own.score, own.group)}
    said, teacher_said = (pandas.read_parquet(folder / "generations.parquet") for folder in folders)
    flags = [column for column in said if said[column].dtype == bool and column != "sampled"]
    figures |= {f"generation.{flag}/estimate": share(said[flag], said.prompt) for flag in flags}
    if name != "teacher":
        figures["own.stereotype/worse"] = apart(1 - own.score, 1 - its.score, own.group)
        for flag in flags:
            figures[f"generation.{flag}/worse"] = apart(
                said[flag].astype(float), teacher_said[flag].astype(float), said.prompt
            )
    return figures


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
        figures[f"{place}/prefill_tokens_per_s"] = geometric([np.median(1e3 * size * prompt / one) for one in first])
        figures[f"{place}/decode_tokens_per_s"] = geometric([np.median(1e3 * size / gap) for gap in gaps])
        if raw is not teacher:
            for name, theirs, mine in (("ttft", its_first, first), ("decode", its_gaps, gaps)):
                figures[f"{place}/{name}_speedup"] = geometric(
                    [np.median(t / m) for t, m in zip(theirs, mine, strict=True)]
                )
    figures["memory/peak_rss_bytes"] = geometric([one["peak_rss_bytes"] for one in raw["rounds"]])
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
