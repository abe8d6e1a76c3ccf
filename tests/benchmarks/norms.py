"""In which form does matching the norms of hidden states help a small student, if in any?

`make bench-norms`. The search (stage 1: every form, one corpus, one seed) and its confirmation (stage 2: the best few
and the controls, on corpora and seeds that the search did not see) are apart. All students of a corpus and seed start
from the same weights and see the same batches and the same teacher, so that their held-out losses are compared in
pairs. One thread per process, one process per core: the same figures on any number of cores.

Corpora: docstrings, and the files under NORMS_DATA (default ../shared/data) that are there. Teachers and finished
rows lie in the temporary folder's norms/: an interrupted run goes on where it stopped. Whoever changes a formula
gives it a new name, or removes norms/rows.jsonl.
"""

import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import norms_forms as forms
import norms_train as train
from evidence import QUICK, write
from scipy.stats import t as student_t

from featkd import environment, spec

SELECTION = ("docstrings", 0)
CONFIRMATIONS = 2 if QUICK else 6  # corpora x seeds
FINALISTS = 2 if QUICK else 3
BESIDE = 9  # students beside one teacher pass
LEAD = (
    "Students distilled with KL (and 0.1 cross-entropy) and different feature losses. Gains are in held-out loss, nats "
    "per token, against the student of the same corpus and seed: positive is better. Stage 1 chose the forms, stage 2 "
    "confirms them on other corpora and seeds. 'shuffled': the teacher's norms in another order over the tokens; "
    "'size_penalty': the mean square of the student's states, without any teacher."
)


class Rows:
    """Finished students, in memory and on disk."""

    def __init__(self) -> None:
        train.CACHE.mkdir(parents=True, exist_ok=True)
        self.file, digest = train.CACHE / "rows.jsonl", spec.digest(train.SETTINGS)[:8]
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.rows = [row for row in map(json.loads, lines) if row["settings"] == digest]

    def get(self, pool: ProcessPoolExecutor, wanted: list[tuple[str, int]], names: list[str]) -> list[dict[str, Any]]:
        """The rows of these forms on each of the wanted corpora and seeds; missing ones are trained."""
        waiting = []
        for corpus, seed in wanted:
            done = {row["form"] for row in self.rows if (row["corpus"], row["seed"]) == (corpus, seed)}
            missing = [name for name in names if name not in done]
            parts = math.ceil(len(missing) / BESIDE)
            waiting += [pool.submit(train.job, corpus, seed, missing[part::parts]) for part in range(parts)]
        for number, finished in enumerate(as_completed(waiting), 1):
            with self.file.open("a") as file:
                for row in finished.result():
                    file.write(json.dumps(row) + "\n")
                    self.rows.append(row)
            train.told(f"{number} of {len(waiting)} jobs of this stage done")
        return [r for r in self.rows if (r["corpus"], r["seed"]) in wanted and r["form"] in names]


def gains(rows: list[dict[str, Any]], name: str, base: str) -> list[float]:
    """By how much the form's held-out loss is lower than the base's: nats per token, one per corpus and seed."""
    loss = {(row["form"], row["corpus"], row["seed"]): row["loss"] for row in rows}
    return [loss[base, corpus, seed] - loss[name, corpus, seed] for form, corpus, seed in loss if form == name]


def interval(values: list[float], level: float = 0.95) -> list[float] | None:
    """Of the mean, by Student's t. Seeds of one corpus are not independent: with few corpora it is rather narrow."""
    if len(values) < 2:
        return None
    half = float(student_t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def summarised(rows: list[dict[str, Any]], finalists: list[str], shuffled: str) -> dict[str, Any]:
    """Of stage 2. `best` is chosen among the finalists on these very rows: its interval is Bonferroni's."""
    best = max(finalists, key=lambda name: statistics.mean(gains(rows, name, "direction")))
    level = 1 - 0.05 / len(finalists)
    summary: dict[str, Any] = {"finalists": ", ".join(finalists), "best": best}
    summary["confirmations"] = len(gains(rows, best, "direction"))
    compared = [
        ("best_vs_direction", best, "direction", level),
        ("best_vs_kl_only", best, "kl-only", level),
        ("direction_vs_kl_only", "direction", "kl-only", 0.95),
        ("direction_1.1_vs_direction", "direction-1.1", "direction", 0.95),
        ("size_penalty_vs_direction", "direction-size_penalty-3", "direction", 0.95),
        ("size_penalty_alone_vs_kl_only", "size_penalty-0.03", "kl-only", 0.95),
        ("shuffled_vs_direction", shuffled, "direction", 0.95),
        ("real_vs_shuffled", shuffled.removeprefix("shuffled "), shuffled, 0.95),
        *((f"{name}_vs_direction", name, "direction", 0.95) for name in finalists),
    ]
    for key, name, base, confidence in compared:
        values = gains(rows, name, base)
        summary[f"gain_{key}"] = statistics.mean(values)
        summary[f"gain_{key}_interval"] = interval(values, confidence)
    lower = [(summary[f"gain_{key}_interval"] or [-math.inf])[0] for key in ("best_vs_direction", "real_vs_shuffled")]
    summary["holds"] = lower[0] > 0
    summary["pattern_matters"] = lower[1] > 0
    return summary


def shown(stage: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    base = {(r["form"], r["corpus"], r["seed"]): r["loss"] for r in rows}
    return [
        {
            "stage": stage,
            "corpus": row["corpus"],
            "seed": row["seed"],
            "form": row["form"],
            "vs_kl_only": base["kl-only", row["corpus"], row["seed"]] - row["loss"],
            "vs_direction": base["direction", row["corpus"], row["seed"]] - row["loss"],
            **{key: value for key, value in row.items() if key != "settings"},
        }
        for row in sorted(rows, key=lambda row: (row["corpus"], row["seed"], row["loss"]))
    ]


def main() -> None:
    corpora = ["docstrings"]
    for corpus, files in train.FILES.items():
        there = all((train.DATA / corpus / file).is_file() for file in files)
        corpora += [corpus] if there and not (QUICK and corpus == "wikitext2") else []
        if not there:
            train.told(f"{corpus}: not under {train.DATA}, left out; NORMS_DATA names another folder")
    seeds = range(1, 1 + math.ceil(CONFIRMATIONS / len(corpora)))
    confirmation = [(corpus, seed) for seed in seeds for corpus in corpora]
    done = Rows()
    with ProcessPoolExecutor(environment.usable_cores(), get_context("spawn")) as pool:
        folders = {corpus: pool.submit(train.prepare, corpus) for corpus in corpora}
        folders[SELECTION[0]].result()
        first = done.get(
            pool, [SELECTION], [*forms.CONTROLS, *forms.CANDIDATES, *forms.OTHERS, f"shuffled {forms.DEFAULT}"]
        )
        ranked = sorted(
            (row for row in first if row["form"] in forms.CANDIDATES),
            key=lambda row: (math.isnan(row["loss"]), row["loss"]),
        )
        finalists = [row["form"] for row in ranked[:FINALISTS]]
        train.told(f"finalists: {', '.join(finalists)}")
        finalists += [] if forms.DEFAULT in finalists else [forms.DEFAULT]
        shuffled = f"shuffled {finalists[0]}"
        teachers = {
            corpus: json.loads((folder.result() / "teacher.json").read_text()) for corpus, folder in folders.items()
        }
        second = done.get(pool, confirmation, [*forms.CONTROLS, *finalists, shuffled])
    summary = {"corpora": ", ".join(corpora), "selection": f"{SELECTION[0]}, seed {SELECTION[1]}"}
    summary |= summarised(second, finalists, shuffled)
    for corpus, row in teachers.items():
        summary |= {f"{key}_{corpus}": value for key, value in row.items()}
    write("norms", [*shown(1, first), *shown(2, second)], summary, LEAD)


if __name__ == "__main__":
    main()
