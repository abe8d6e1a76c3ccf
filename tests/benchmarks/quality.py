"""What distillation and the alignment of features are worth: `make bench-quality`, or one setting with ONLY.

The search: as many trials for every arm, on one corpus and two seeds: for students with random weights learning rate x
activation penalty, then options of the arm's own; for copied ones learning rate x activation penalty. Its best are
confirmed, once, on corpora and seeds that the search did not see; the summary tells the confirmation alone. All
students of a corpus, seed and setting start from the same weights and see the same batches; the order of batches
differs by seed.

random_init: depth and width cut, random weights. copied_init: the same depth in the teacher's width, copied layers; in
the confirmation with the guard, which is on by default (elsewhere it is off here, so that ablations show what they do).
little_data: as random_init, on 256 blocks of text over and over. other_domain: the students of random_init, scored on
the texts of the other corpora, which their teacher knows and they have not seen.

On an accelerator: ten times the size in tokens and parameters, a search over learning rates alone, one seed, neither
ablations nor equal time.

The teacher was trained on all corpora. It and finished rows lie in the temporary folder's quality/ (QUALITY_CACHE): an
interrupted run goes on, if the source is the same.
"""

import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np
import quality_train as train
from evidence import DEVICE, QUICK, write
from quality_train import SEARCHED, SETTINGS, Trial
from scipy.stats import t as student_t

from featkd import environment, spec
from featkd.measure.statistics import interval as bootstrap

SMALLER = QUICK or DEVICE == "cuda"  # a smaller search, and fewer seeds
SEARCH_SEEDS = [0] if SMALLER else [0, 4]
CORPORA = ["wikitext2", "tinystories", "gsm8k"]
SEEDS = [1] if SMALLER else [1, 2, 3]
ARMS = ("sft", "logit-kd", "feature-kd")
RATES = [2e-3, 4e-3] if QUICK else [2e-3, 4e-3, 8e-3]
PENALTIES = [0.0, 0.03] if QUICK else [0.0, 0.03, 0.3]
COPIED_RATES = [1e-3, 3e-3] if QUICK else [1e-3, 3e-3, 6e-3]
if DEVICE == "cuda":
    RATES, COPIED_RATES, PENALTIES = [1e-3, 2e-3, 4e-3], [5e-4, 1e-3, 2e-3], [0.1]
OWN: dict[str, list[dict[str, Any]]] = {  # the same number for each
    "sft": [
        {"weight_decay": 0.01},
        {"weight_decay": 0.3},
        {"grad_clip": 0.5},
        {"warmup": 0.15},
        {"activation_penalty": 1.0},
        {"activation_penalty": 0.1},
    ],
    "logit-kd": [
        {"ce_weight": 0.0},
        {"ce_weight": 0.3},
        {"temperature": 2.0},
        {"warmup": 0.15},
        {"objective": "skew-kl", "mix": 0.1},
        {"activation_penalty": 0.1},
    ],
    "feature-kd": [
        {"direction_weight": 2.0},
        {"direction_weight": 0.5},
        {"norm_weight": 0.3},
        {"warmup": 0.15},
        {"decay": 0.5},
        {"activation_penalty": 0.1},
    ],
}
if DEVICE == "cuda":
    OWN = {arm: [] for arm in ARMS}
ABLATIONS = {
    "no-direction": {"direction_weight": 0.0},
    "no-norm": {"norm_weight": 0.0},
    "l2-only": {"direction_weight": 0.0, "norm_weight": 0.0, "l2_weight": 1.0},
}
BESIDE = 9 if DEVICE == "cpu" else 3  # students beside one teacher pass
LEAD = (
    "Students of one teacher on real text. `ratio`: the perplexity of `arm` over that of `against` on the same "
    "held-out text, below 1 is better; low to high: 95 %, paired over held-out blocks. `accuracy`: the difference in "
    "the share of true continuations found among four. Rows with a `loss` are the search, on another corpus and other "
    "seeds than all else, means over its seeds. (time): trained longer, until it has cost as much processor time as "
    "feature-kd. In the summary ratios are geometric means over corpora and seeds with their 95 % interval, and "
    "medians, since single runs at high learning rates go wrong, of any arm. Copied layers were confirmed twice on "
    "these corpora and seeds: a first search had left them the penalty and warm-up of random weights."
)


class Rows:
    """Finished students, in memory and on disk."""

    def __init__(self) -> None:
        train.CACHE.mkdir(parents=True, exist_ok=True)
        self.file, self.settings = train.CACHE / "rows.jsonl", train.made_by(SETTINGS)
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.rows = [row for row in map(json.loads, lines) if row["settings"] == self.settings]

    def get(self, pool: ProcessPoolExecutor, wanted: list[tuple[str, str, int, Trial]]) -> list[dict[str, Any]]:
        """A row per (setting, corpus, seed, trial), in this order; what is missing is trained."""
        groups: dict[tuple, list[Trial]] = {}
        for setting, corpus, seed, trial in wanted:
            if self.find(setting, corpus, seed, trial) is None:
                groups.setdefault((setting, corpus, seed, trial.longer), []).append(trial)
        waiting = []
        for (setting, corpus, seed, _), trials in groups.items():
            parts = math.ceil(len(trials) / BESIDE)
            waiting += [pool.submit(train.job, setting, corpus, seed, trials[part::parts]) for part in range(parts)]
        for number, finished in enumerate(as_completed(waiting), 1):
            with self.file.open("a") as file:
                for row in finished.result():
                    row["settings"] = self.settings
                    file.write(json.dumps(row) + "\n")
                    self.rows.append(row)
            train.told(f"{number} of {len(waiting)} jobs of this stage done")
        return [self.find(*one) for one in wanted]

    def find(self, setting: str, corpus: str, seed: int, trial: Trial) -> dict[str, Any] | None:
        wanted = (setting, corpus, seed, trial.key())
        return next((r for r in self.rows if (r["setting"], r["corpus"], r["seed"], r["trial"]) == wanted), None)


def loss(row: dict[str, Any], corpus: str) -> float:
    """Nats per token of held-out text."""
    nats, tokens = np.array(row["losses"][corpus]).sum(0)
    return float(nats / tokens) if math.isfinite(nats) else math.inf


def changed(trial: Trial, options: dict[str, Any]) -> Trial:
    """The trial with other options, of distillation or training."""
    training = {name: value for name, value in options.items() if name in spec.Optimisation.model_fields}
    distillation = {name: value for name, value in options.items() if name not in training}
    return trial._replace(distillation={**trial.distillation, **distillation}, training={**trial.training, **training})


def search(
    done: Rows, pool: ProcessPoolExecutor, settings: list[str]
) -> tuple[dict[str, dict[str, Trial]], list[dict[str, Any]]]:
    """{setting: {arm: its best trial}} and what was tried."""
    shown: list[dict[str, Any]] = []

    def best(setting: str, trials: dict[str, list[Trial]]) -> dict[str, Trial]:
        tried = [trial for arm in ARMS for trial in trials[arm]]
        rows = done.get(pool, [(setting, SEARCHED, seed, trial) for seed in SEARCH_SEEDS for trial in tried])
        losses: dict[str, list[float]] = {}
        for row in rows:
            losses.setdefault(row["trial"], []).append(loss(row, SEARCHED))
        found = {key: statistics.mean(values) for key, values in losses.items()}
        shown.extend(
            {"setting": setting, "arm": trial.arm, "tried": told(trial), "loss": found[trial.key()]} for trial in tried
        )
        return {arm: min(trials[arm], key=lambda trial: found[trial.key()]) for arm in ARMS}

    def told(trial: Trial) -> str:
        return ", ".join(f"{name} {value}" for name, value in {**trial.training, **trial.distillation}.items())

    def grid(rates: list[float]) -> dict[str, list[Trial]]:
        options = [{"learning_rate": rate, "activation_penalty": penalty} for rate in rates for penalty in PENALTIES]
        return {arm: [Trial(arm, {}, one) for one in options] for arm in ARMS}

    chosen = {}
    if {"random_init", "little_data"} & set(settings):
        first = best("random_init", grid(RATES))
        own = {arm: [first[arm], *(changed(first[arm], options) for options in OWN[arm])] for arm in ARMS}
        chosen["random_init"] = chosen["little_data"] = best("random_init", own)
    if "copied_init" in settings:
        chosen["copied_init"] = best("copied_init", grid(COPIED_RATES))
        chosen["copied_init"]["feature-kd"] = changed(chosen["copied_init"]["feature-kd"], {"guard": True})
    return {setting: chosen[setting] for setting in settings}, shown


def longer(trials: dict[str, Trial], pool: ProcessPoolExecutor) -> dict[str, float]:
    """By what factor sft and logit-kd may train longer to cost what feature-kd costs; medians of three, in turns."""
    file = train.CACHE / f"longer-{train.made_by(SETTINGS)}.json"
    if not file.is_file():
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(3):
            for arm in ARMS:
                seconds[arm].append(pool.submit(train.alone_s, trials[arm]).result())
        cost = {arm: statistics.median(values) for arm, values in seconds.items()}
        factors = {arm: round(cost["feature-kd"] / cost[arm], 2) for arm in ("sft", "logit-kd")}
        file.write_text(json.dumps(factors))
    return json.loads(file.read_text())


def versus(a: dict[str, Any], b: dict[str, Any], corpus: str) -> dict[str, Any]:
    """Perplexity of a over that of b on a corpus, and the difference of their accuracy on their own."""
    columns = [*np.array(a["losses"][corpus]).T, *np.array(b["losses"][corpus]).T]
    ratio = bootstrap(
        lambda x, m, y, n, axis: np.exp(x.sum(axis) / m.sum(axis) - y.sum(axis) / n.sum(axis)), tuple(columns)
    )
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "accuracy": float(np.mean(a["right"]) - np.mean(b["right"])) if corpus == a["corpus"] else "",
    }


def perplexities(done: Rows, named: dict[str, dict[str, Trial]], cells: list[tuple[str, int]]) -> dict[str, float]:
    """Of every arm on its own corpus, the geometric mean over the cells."""
    return {
        f"{setting} {arm}": math.exp(statistics.mean(loss(done.find(setting, *cell, trial), cell[0]) for cell in cells))
        for setting, arms in named.items()
        for arm, trial in arms.items()
    }


def over_cells(values: list[float]) -> list[float]:
    """Mean and its 95 % interval by Student's t. Seeds of one corpus are not independent: it is rather narrow."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return [mean]
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean, mean - half, mean + half]


def main() -> None:
    only = os.environ.get("ONLY", "")
    settings = [only] if only else list(train.SIZES)
    done = Rows()
    cells = [(corpus, seed) for seed in SEEDS for corpus in CORPORA]
    summary: dict[str, Any] = {
        "searched_on": f"{SEARCHED}, seeds {', '.join(map(str, SEARCH_SEEDS))}",
        "confirmed_on": f"{', '.join(CORPORA)}; seeds {', '.join(map(str, SEEDS))}",
    }
    processes = environment.usable_cores() if DEVICE == "cpu" else 4
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        summary["teacher_perplexity"] = pool.submit(train.of_teacher).result()
        chosen, rows = search(done, pool, settings)
        named = {setting: dict(arms) for setting, arms in chosen.items()}
        if "random_init" in named and DEVICE == "cpu":
            best, factors = chosen["random_init"], longer(chosen["random_init"], pool)
            named["random_init"] |= {f"{arm} (time)": best[arm]._replace(longer=factors[arm]) for arm in factors}
            named["random_init"] |= {
                f"feature-kd-{name}": changed(best["feature-kd"], options) for name, options in ABLATIONS.items()
            }
            summary["longer"] = factors
        done.get(
            pool, [(setting, *cell, trial) for cell in cells for setting in named for trial in named[setting].values()]
        )

    summary["perplexity"] = perplexities(done, named, cells)
    summary["chosen"] = {
        f"{setting} {arm}": {**trial.training, **trial.distillation}
        for setting, arms in chosen.items()
        for arm, trial in arms.items()
    }
    pairs = [("feature-kd", "logit-kd"), ("logit-kd", "sft")]
    for setting, arms in named.items():
        others = [("feature-kd", name) for name in arms if name not in ARMS]
        rows += compared(done, summary, setting, setting, arms, pairs + others, cells)
    if "random_init" in named:
        arms = named["random_init"]
        timed = [("feature-kd", name) for name in arms if name.endswith("(time)")]
        rows += compared(done, summary, "other_domain", "random_init", arms, pairs + timed, cells)
    write(f"quality.{only}" if only else "quality", rows, summary, LEAD, only)


def compared(
    done: Rows,
    summary: dict[str, Any],
    name: str,
    setting: str,
    arms: dict[str, Trial],
    pairs: list[tuple[str, str]],
    cells: list[tuple[str, int]],
) -> list[dict[str, Any]]:
    """A row per pair of arms and cell; means over the cells go into the summary. Of ratios the geometric mean."""
    shown, short = [], {"feature-kd": "feature", "logit-kd": "logit"}
    summary[name] = {}
    for arm, against in pairs:
        found = []
        for corpus, seed in cells:
            a, b = (done.find(setting, corpus, seed, arms[one]) for one in (arm, against))
            scored = [other for other in a["losses"] if other != corpus] if name == "other_domain" else [corpus]
            found += [
                {"setting": name, "corpus": corpus, "seed": seed, "scored_on": other, "arm": arm, "against": against}
                | versus(a, b, other)
                for other in scored
            ]
        shown += found
        key = f"{short.get(arm, arm)}_vs_{short.get(against, against)}"
        logs = [statistics.mean(math.log(row["ratio"]) for row in found if (row["corpus"], row["seed"]) == cell)
                for cell in cells]  # fmt: skip
        summary[name][f"perplexity_{key}"] = [math.exp(value) for value in over_cells(logs)]
        summary[name][f"median_perplexity_{key}"] = math.exp(statistics.median(logs))
        if name != "other_domain":
            summary[name][f"accuracy_{key}"] = over_cells([row["accuracy"] for row in found])
    return shown


if __name__ == "__main__":
    main()
