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
    for at, told in enumerate(document["comparisons"]):
        a, b = (tables[told[side]].query("task == @told['task']").reset_index(drop=True) for side in "ab")
        value = quality(a, b, None, itself=False)["ratio" if told["kind"] == "ratio" else "difference"]
        found[f"comparisons/{at}/estimate"] = value
    return found


def fieller(above: pandas.Series, below: pandas.Series, groups: pandas.Series, cells: list) -> tuple:
    """The ratio of two means with the bounds of r for which above - r below is not told from 0, found by bisection."""
    table = pandas.DataFrame({"above": above, "below": below, "group": groups})
    value = above.sum() / below.sum()
    totals = table.groupby("group")[["above", "below"]].sum()
    n = len(totals)
    rest = above - value * below
    by_group = rest.groupby(groups).sum()
    effect = max(1.0, (by_group**2).sum() / (rest**2).sum()) if (rest**2).sum() else len(rest) / n

    spread = by_group.var(ddof=1) * n + 0.5 * effect * sum((a - value * b) ** 2 for a, b in cells)
    shift = (by_group**3).sum() / spread**1.5 * (1 + 2 * 1.959963984540054**2) / 6 if spread else 0.0

    def surplus(r: float, sign: int) -> float:
        """Above 0 where r is rejected; sign: the side it is on, where the long tail may move it further out."""
        apart = totals.above - r * totals.below
        extra = [a - r * b for a, b in cells]
        variance = apart.var(ddof=1) * n + 0.5 * effect * sum(one**2 for one in extra)
        critical = student_t.ppf(0.975, n - 1) + max(0.0, sign * shift)
        return abs(apart.sum() + 0.5 * sum(extra)) - critical * math.sqrt(variance)

    middle = (above.sum() + 0.5 * sum(a for a, _ in cells)) / (below.sum() + 0.5 * sum(b for _, b in cells))
    bounds = []
    for sign in (-1, 1):
        near, far = 0.0, 1e-6
        while surplus(middle + sign * far, sign) < 0:
            near, far = far, 2 * far
            if far > 1e9:
                return value, None, None
        for _ in range(200):
            half = (near + far) / 2
            near, far = (near, half) if surplus(middle + sign * half, sign) > 0 else (half, far)
        bounds.append(middle + sign * near)
    return (value, *bounds)


def average(values: pandas.Series, groups: pandas.Series) -> tuple:
    return fieller(values.astype(float), values * 0 + 1.0, groups, [])


def share(hits: pandas.Series, groups: pandas.Series, t: float | None = None) -> tuple:
    """Wilson's interval with as many examples as the documents are worth, and Student's t of them."""
    hits = hits.astype(float)
    n, p = groups.nunique(), hits.mean()
    if n < 2:
        return (p, None, None)
    rest = hits - p
    squares = (rest**2).sum()
    effect = max(1.0, (rest.groupby(groups).sum() ** 2).sum() / squares) if squares else len(hits) / n
    effective, t2 = len(hits) / effect, (t or student_t.ppf(0.975, n - 1)) ** 2
    middle = (p + t2 / (2 * effective)) / (1 + t2 / effective)
    half = math.sqrt(t2 * (p * (1 - p) / effective + t2 / (4 * effective**2))) / (1 + t2 / effective)
    return (p, max(0.0, middle - half), min(1.0, middle + half))


def apart(mine: pandas.Series, theirs: pandas.Series, groups: pandas.Series) -> tuple:
    """The paired difference of two shares."""
    return fieller(mine - theirs, mine * 0 + 1.0, groups, [(a - b, 1) for a in (0, 1) for b in (0, 1)])


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


def latency(raw: dict, teacher: dict) -> dict[str, float]:
    figures = {}
    for at, size in enumerate(sorted(map(int, raw["rounds"][0]["batches"]))):
        rounds, base = ([one["batches"][str(size)] for one in of["rounds"]] for of in (raw, teacher))
        place = f"latency/points/{at}"
        figures[f"{place}/ttft_ms/p50"] = geometric([np.median(one["ttft_ms"]) for one in rounds])
        gaps = [np.mean(one["inter_token_ms"], 1) for one in rounds]
        figures[f"{place}/decode_tokens_per_s"] = geometric([np.median(1e3 * size / gap) for gap in gaps])
        if raw is not teacher:
            slower = [np.mean(one["inter_token_ms"], 1) for one in base]
            figures[f"{place}/decode_speedup"] = geometric(
                [np.median(theirs / mine) for theirs, mine in zip(slower, gaps, strict=True)]
            )
    figures["memory/peak_rss_bytes"] = geometric([one["peak_rss_bytes"] for one in raw["rounds"]])
    return figures


def geometric(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def money(candidate: dict, cost: dict, teacher: dict | None) -> dict[str, Any]:
    """From the rates at which it is priced; of a student beside the teacher's cost."""
    said = {name: one["value"] for name, one in cost.items() if isinstance(one, dict)}
    (at,) = (one for one in candidate["latency"]["points"] if one["concurrency"] == candidate["roi"]["concurrency"])
    prefill, decode = (at[f"{rate}_tokens_per_s"]["value"] for rate in ("prefill", "decode"))
    seconds = said["input_tokens_per_request"] / prefill + said["output_tokens_per_request"] / decode
    peak = said["requests_per_month"] / SECONDS_PER_MONTH * said["peak_factor"]
    machines = math.ceil(peak * seconds / said["utilisation"])
    monthly = machines * said["usd_per_hour"] * SECONDS_PER_MONTH / 3600
    figures = {
        "machines": machines,
        "monthly_cost_usd": monthly,
        "usd_per_million_output_tokens": said["usd_per_hour"] * said["peak_factor"] * 1e6
        / (3600 * decode * said["utilisation"]),
        "usd_per_million_input_tokens": said["usd_per_hour"] * said["peak_factor"] * 1e6
        / (3600 * prefill * said["utilisation"]),
    }  # fmt: skip
    if teacher is None:
        return figures
    saving = money(teacher, cost, None)["monthly_cost_usd"] - monthly - said["monthly_upkeep_usd"]
    one_off = said["engineering_usd"] + candidate["training"]["seconds"] / 3600 * said["training_usd_per_hour"]
    months, rate = range(1, cost["horizon_months"] + 1), (1 + said["discount_rate"]) ** (1 / 12)
    return figures | {
        "monthly_saving_usd": saving,
        "one_off_usd": one_off,
        "payback_months": one_off / saving if saving > 0 else "never",
        "npv_usd": sum(saving / rate**month for month in months) - one_off,
        "cash_flow_usd": [month * saving - one_off for month in (0, *months)],
    }
