"""Every aggregate of a result from its raw evidence, by an independent hand: pandas and quantiles of Student's t.

Nothing of featkd is imported here. `recompute(run)` gives {place: figure or (figure, low, high)}; a place is the keys
of result.json, parted by /.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from intervals import apart, average, fieller, off_calibration, over_seeds, share
from recompute_timings import latency, money
from scipy.stats import binom


def recompute(run: Path) -> dict[str, Any]:
    document = json.loads((run / "result.json").read_text())
    timings = json.loads((run / "evidence/latency/latency.json").read_text())
    seen = pandas.read_parquet(run / "evidence/overlap/overlap.parquet")
    names = [*document["candidates"], *(["champion"] if document["champion"] else [])]
    tables = {name: pandas.read_parquet(run / f"evidence/accuracy-{name}/samples.parquet").sort_values("doc_id")
              for name in names}  # fmt: skip
    found: dict[str, Any] = {}
    for name, candidate in document["candidates"].items():
        place = f"candidates/{name}"
        told = beside(run, candidate, name, "teacher", tables)
        for task in candidate["quality"]["tasks"]:
            groups = of_task(tables[name], task).set_index("doc_id").group
            mine = seen[seen.task == task].set_index("doc_id").seen
            told[f"quality/tasks/{task}/overlap"] = share(mine, groups.loc[mine.index])
        told |= latency(timings[name], timings["teacher"])
        teacher = None if name == "teacher" else document["candidates"]["teacher"]
        told |= {f"roi/{key}": value for key, value in money(candidate, document["spec"]["cost"], teacher).items()}
        found |= {f"{place}/{key}": value for key, value in told.items()}
        found |= {f"{place}/verdict/gates/{key}": value for key, value in gates(run, candidate, name, tables, told)}
    for at, check in enumerate(document["adequacy"]["checks"]):
        for side, name in (("teacher", "teacher"), ("other", check["control"])):
            if name:
                found[f"adequacy/checks/{at}/{side}"] = found[
                    f"candidates/{name}/quality/tasks/{check['task']}/estimate"
                ]
    return found | over_all_seeds(run, document, tables) | crossings(document, tables)


def beside(run: Path, candidate: dict, name: str, other: str, tables: dict, level: float = 0.95) -> dict[str, Any]:
    """What the examples tell of one model beside another."""
    told: dict[str, Any] = {}
    for task, score in candidate["quality"]["tasks"].items():
        mine, theirs = (of_task(tables[one], task) for one in (name, other))
        for key, value in quality(mine, theirs, score["chance"], name == other, level).items():
            told[f"quality/tasks/{task}/{key}"] = value
        if task in candidate["fidelity"]["tasks"]:
            for key, value in fidelity(mine, theirs, level).items():
                told[f"fidelity/tasks/{task}/{key}"] = value
    if name != other == "teacher":
        tokens = pandas.read_parquet(run / f"evidence/tokens-{name}/tokens.parquet")
        told["fidelity/held_out/kl"] = average(tokens.kl, tokens.group, level)
        told["fidelity/held_out/agreement"] = share(tokens.same, tokens.group, level)
    if (run / f"evidence/guardrails-{other}").exists():
        for key, value in guardrails(run, name, other, level).items():
            told[f"guardrails/checks/{key}"] = value
    return told


def gates(run: Path, candidate: dict, name: str, tables: dict, of_teacher: dict) -> Iterator[tuple[str, Any]]:
    """What each gate looked at, at the level at which this student was tested, and what follows from it.

    Not recomputed: times, memory and money beside the champion. of_teacher: what is told of it at 95 %.
    """
    level = candidate["verdict"]["level"] or 0.95
    at_level = {
        other: beside(run, candidate, name, other, tables, level)
        for other in {gate["against"] for gate in candidate["verdict"]["gates"]}
    }
    for at, gate in enumerate(candidate["verdict"]["gates"]):
        section, *task, key = gate["metric"].split(".")
        if section in ("quality", "fidelity", "guardrails"):
            parts = {"quality": "tasks", "guardrails": "checks"}.get(section, "tasks" if task != ["held_out"] else "")
            place = "/".join(filter(None, (section, parts, ".".join(task), key)))
            told = at_level[gate["against"]][place]
        elif gate["against"] == "teacher":
            place = gate["metric"].replace("latency.", "latency/points/0/").replace(".", "/")
            told = of_teacher[place]
            if key == "payback_months":
                told = (told, *(of_teacher[f"{place}_{side}"] for side in ("low", "high")))
        else:
            continue
        if gate["observed"]:
            yield f"{at}/observed", tuple(None if one == "never" else one for one in told)
        yield f"{at}/outcome", outcome(gate, *(math.inf if one == "never" else one for one in told[1:]))


def outcome(gate: dict, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "inconclusive"
    if gate["at_least"] is not None:
        return "pass" if low >= gate["at_least"] else "fail" if high < gate["at_least"] else "inconclusive"
    return "pass" if high <= gate["at_most"] else "fail" if low > gate["at_most"] else "inconclusive"


def over_all_seeds(run: Path, document: dict, tables: dict) -> dict[str, Any]:
    """Recipes, comparisons of candidates, and each beside the champion."""
    found: dict[str, Any] = {}
    seeds = {name: all_seeds(run, name, candidate, tables[name]) for name, candidate in document["candidates"].items()}
    for name, candidate in document["candidates"].items():
        for task, score in candidate["quality"]["recipe"].items():
            mine, teacher = ([of_task(one, task) for one in seeds[who]] for who in (name, "teacher"))
            for key, value in over_seeds(mine, teacher, score["chance"]).items():
                found[f"candidates/{name}/quality/recipe/{task}/{key}"] = value
    leads = [(f"comparisons/{at}", told, seeds) for at, told in enumerate(document["comparisons"])]
    for curve_at, curve in enumerate((document["sizes"] or {"curves": []})["curves"]):
        for at, point in enumerate(curve["points"]):
            if point["lead"]:
                leads.append((f"sizes/curves/{curve_at}/points/{at}/lead", point["lead"], seeds))
    serving, shipped = document["champion"] or {"comparisons": []}, {name: [table] for name, table in tables.items()}
    for at, told in enumerate(serving["comparisons"]):
        if document["candidates"][told["a"]]["artefact"] != serving["artefact"]:  # beside itself it is exact
            leads.append((f"champion/comparisons/{at}", told, shipped))
    for place, told, of in leads:
        a, b = ([of_task(one, told["task"]) for one in of[told[side]]] for side in "ab")
        kind = "ratio" if told["kind"] == "ratio" else "difference"
        found[f"{place}/estimate"] = over_seeds(a, b, None)[kind]
    return found


def crossings(document: dict, tables: dict) -> dict[str, Any]:
    """Where a line through the sizes meets a gate: the sizes on a grid whose interval holds its bound."""
    found = {}
    for at, told in enumerate((document["sizes"] or {"crossings": []})["crossings"]):
        _, *task, measure = told["metric"].split(".")
        rule = next(one for one in document["spec"]["gates"] if one["metric"] == told["metric"])
        bound, task = rule["at_most"] if rule["at_least"] is None else rule["at_least"], ".".join(task)
        line = {name: one["training"]["parameters"] for name, one in document["candidates"].items()
                if (one["arm"], one["precision"]) == (told["arm"], told["precision"])}  # fmt: skip
        sizes, teacher = np.log(list(line.values())), of_task(tables["teacher"], task)
        students = [of_task(tables[name], task).score for name in line]
        if measure == "ratio":
            each, below, bound = [teacher.score - one for one in students], teacher.weight, math.log(bound)
        else:
            chance = document["candidates"]["teacher"]["quality"]["tasks"][task]["chance"]
            nothing = -math.log(chance) * teacher.weight if teacher.metric[0].endswith("perplexity") else chance
            each, below = [one - nothing for one in students], teacher.score - nothing
        slope, start = np.polyfit(sizes, [one.sum() / below.sum() for one in each], 1)
        fit = np.linalg.pinv(np.stack([np.ones_like(sizes), sizes], 1))

        def holds(size: float, each=each, below=below, fit=fit, bound=bound, groups=teacher.group) -> bool:
            _, low, high = fieller(sum(map(np.multiply, np.array([1, size]) @ fit, each)), below, groups, [])
            return low is None or low <= bound <= high

        grid, value = np.linspace(sizes.min(), sizes.max(), 201), (bound - start) / slope
        middle = int(np.abs(grid - value).argmin())
        low = bisect_left(range(middle), True, key=lambda place: holds(grid[place]))
        high = middle + bisect_left(range(middle, 201), True, key=lambda place: not holds(grid[place])) - 1
        bounds = (float(np.exp(grid[end])) if 0 < end < 200 else None for end in (low, high))
        found[f"sizes/crossings/{at}/parameters"] = (float(np.exp(value)), *bounds)
    return found


def all_seeds(run: Path, name: str, candidate: dict, shipped: pandas.DataFrame) -> list[pandas.DataFrame]:
    """In the order of the spec; the one that ships is the first."""
    others = list(candidate["quality"]["replicates"])[1:]
    files = [run / f"evidence/accuracy-{name}-seed-{seed}/samples.parquet" for seed in others]
    return [shipped, *(pandas.read_parquet(file).sort_values("doc_id") for file in files)]


def of_task(table: pandas.DataFrame, task: str) -> pandas.DataFrame:
    return table[table.task == task].reset_index(drop=True)


def quality(
    mine: pandas.DataFrame, theirs: pandas.DataFrame, chance: float | None, itself: bool, level: float
) -> dict[str, Any]:
    s, t, w, groups = mine.score, theirs.score, mine.weight, mine.group
    if mine.metric[0].endswith("perplexity"):
        loss, base = -s.sum() / w.sum(), -t.sum() / w.sum()
        figures = {"estimate": tuple(math.exp(one) for one in fieller(-s, w, groups, [], level=level))}
        if not itself:
            figures["ratio"] = tuple(math.exp(one) for one in fieller(t - s, w, groups, [], level=level))
            figures["difference"] = math.exp(loss) - math.exp(base)
        if not itself and chance is not None:
            lead = [math.log(chance) * w + one for one in (s, t)]
            figures["retained"] = fieller(*lead, groups, [], level=level)
        return figures
    figures = {"estimate": share(s, groups, level)}
    cells = [(a, b) for a in (0, 1) for b in (0, 1)]
    if not itself:
        figures["difference"] = apart(s, t, groups, level)
        if chance is not None and t.mean() - chance > 1e-9:
            added = [(a - chance, b - chance) for a, b in cells]
            figures["retained"] = fieller(s - chance, t - chance, groups, added, level=level)
    return figures


def fidelity(mine: pandas.DataFrame, theirs: pandas.DataFrame, level: float) -> dict[str, Any]:
    same, right, wrong = mine.choice == theirs.choice, theirs.score == 1, theirs.score == 0
    p, q = (np.exp(np.vstack(table.choice_logprobs)) for table in (theirs, mine))
    p, q = (one / one.sum(1, keepdims=True) for one in (p, q))
    lost, won = right & (mine.score == 0), wrong & (mine.score == 1)
    truth = np.eye(q.shape[1])[mine.gold]
    brier, its_brier = (pandas.Series(((one - truth) ** 2).sum(1)) for one in (q, p))
    confidence, hit = q.max(1), q.argmax(1) == mine.gold
    figures = {
        "agreement": share(same, mine.group, level),
        "correct_to_wrong": share(lost, mine.group, level),
        "wrong_to_correct": share(won, mine.group, level),
        "mcnemar_p": float(min(1, 2 * binom.cdf(min(lost.sum(), won.sum()), lost.sum() + won.sum(), 0.5))),
        "on_right": share(same[right], mine.group[right], level) if right.any() else None,
        "on_wrong": share(same[wrong], mine.group[wrong], level) if wrong.any() else None,
        "kl": average(pandas.Series((p * np.log(p / q)).sum(1)), mine.group, level),
        "calibration/brier": average(brier, mine.group, level),
        "calibration/brier_difference": average(brier - its_brier, mine.group, level),
        "calibration/ece": off_calibration(confidence, hit, mine.group, level),
    }
    sizes = mine["class"].value_counts() if mine["class"].notna().any() else pandas.Series(dtype=int)
    names = sizes.index[sizes >= 20]
    if len(names) > 1:
        behind = (mine.score - theirs.score).groupby(mine["class"]).mean()[names]
        at = mine["class"] == behind.idxmin()
        sides = (table.score[at] for table in (mine, theirs))
        figures["worst_class/difference"] = apart(*sides, mine.group[at], 1 - (1 - level) / len(names))
        figures["worst_class/examples"] = int(at.sum())
        figures["worst_class/classes"] = len(names)
    return {name: value for name, value in figures.items() if value is not None}


def guardrails(run: Path, name: str, other: str, level: float) -> dict[str, Any]:
    folders = [run / f"evidence/guardrails-{one}" for one in (name, other)]
    samples, base = (pandas.read_parquet(folder / "samples.parquet") for folder in folders)
    own, its = (
        table[table.task == "guard_own"].sort_values("doc_id").reset_index(drop=True) for table in (samples, base)
    )
    figures = {"own.stereotype/estimate": share(1 - own.score, own.group, level)}
    said, teacher_said = (pandas.read_parquet(folder / "generations.parquet") for folder in folders)
    flags = [column for column in said if said[column].dtype == bool and column != "sampled"]
    figures |= {f"generation.{flag}/estimate": share(said[flag], said.prompt, level) for flag in flags}
    if name != other:
        figures["own.stereotype/worse"] = apart(1 - own.score, 1 - its.score, own.group, level)
        for flag in flags:
            figures[f"generation.{flag}/worse"] = apart(
                said[flag].astype(float), teacher_said[flag].astype(float), said.prompt, level
            )
    return figures
