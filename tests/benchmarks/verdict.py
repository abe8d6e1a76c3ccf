"""Is the verdict worth a bet? Thousands of synthetic PoCs with a planted truth, through the code that judges real ones.

`make bench-verdict`, some 20 minutes on 2 cores; CPU only. A student answers an example right if a latent normal is
below the quantile of its true accuracy; latents are shared in part by teacher and students, by seeds of one recipe and
by examples of one document, which keeps every true accuracy exact.

coverage   share of 95 % intervals that hold the truth, per figure; one without bounds does. Beside it what is often
           done: the same without documents; of one seed for the recipe; a normal interval, unpaired.
false go   PoCs whose students all keep a hair less than the margin and of which one is recommended. Beside it:
           every student by its own gate; the estimate alone.
no-go      students as good as the teacher that are told no-go.
power      PoCs with as many examples as a first, undecided one asked for: are they decided, and rightly?
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas
from evidence import QUICK, write
from scipy.stats import norm

from featkd import result, specfile
from featkd.decide import assemble, verdict
from featkd.decide.evidence import Evidence
from featkd.measure.statistics import CELLS, Sample

DRAWS, POCS = (200, 40) if QUICK else (3000, 800)
CHANCE, MARGIN, TASK = 0.25, 0.9, "heldout_continuation"
SHARED, WITHIN, OF_RECIPE = 0.8, 0.3, 0.5  # correlations: of student and teacher, in a document, of seeds
ARMS = ("sft", "logit-kd", "feature-kd")
ADEQUATE = result.Adequacy(adequate=True, action="none", checks=[])
SPEC = specfile.validate(
    {"name": "x", "data": {"files": ["x"]}, "teacher": {"model": "x"}, "training": {"tokens": 1},
     "students": [{"name": "s", "layers": 1}], "quality": {"tasks": [TASK]},
     "gates": [{"metric": f"quality.{TASK}.retained", "at_least": MARGIN}]}
)  # fmt: skip


class Examples(NamedTuple):
    documents: int
    each: int

    @property
    def count(self) -> int:
        return self.documents * self.each


ALONE, CLUSTERED = Examples(400, 1), Examples(60, 8)
TEACHERS = {"near chance": 0.4, "middle": 0.7, "near 1": 0.97}


def normal(rng: np.random.Generator, examples: Examples) -> np.ndarray:
    """[examples], standard normal, alike within a document."""
    document = np.repeat(rng.standard_normal(examples.documents), examples.each)
    own = rng.standard_normal(examples.count)
    return own if examples.each == 1 else math.sqrt(WITHIN) * document + math.sqrt(1 - WITHIN) * own


def answers(
    rng: np.random.Generator, examples: Examples, teacher: float, students: list[list[float]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Right or wrong: the teacher's [examples], each student's [seeds, examples]. students: true accuracy per seed."""
    hardness = SHARED * normal(rng, examples)
    rest = math.sqrt(1 - SHARED**2)
    found = []
    for seeds in students:
        recipe = math.sqrt(OF_RECIPE) * rng.standard_normal(examples.count)
        own = math.sqrt(1 - OF_RECIPE) * rng.standard_normal((len(seeds), examples.count))
        found.append(hardness + rest * (recipe + own) < norm.ppf(seeds)[:, None])
    return hardness + rest * rng.standard_normal(examples.count) < norm.ppf(teacher), found


def keeping(share: float, teacher: float) -> float:
    """The accuracy of a student that keeps this share of the teacher's lead."""
    return CHANCE + share * (teacher - CHANCE)


def coverage(case: dict[str, Any]) -> dict[str, Any]:
    rng, examples = np.random.default_rng(case["number"]), case["examples"]
    teacher, share, seeds, spread = case["teacher"], case["share"], case["seeds"], case["spread"]
    groups = np.repeat(np.arange(examples.documents), examples.each)
    sample, naive = Sample(groups), Sample(np.arange(examples.count))
    counts: dict[str, list[bool]] = {}
    for _ in range(DRAWS):
        recipe, other = keeping(share, teacher), keeping(share - 0.05, teacher)
        lucky = np.clip([recipe, other] + spread * rng.standard_normal((seeds, 2)), 0.001, 0.999).T
        theirs, (mine, others) = answers(rng, examples, teacher, lucky.tolist())
        theirs, mine, others = theirs * 1.0, mine * 1.0, others * 1.0
        ships, truth = mine[:1], lucky[0, 0]
        figures = {
            "estimate": (sample.mean(ships), truth),
            "difference": (beside(sample, ships, theirs), truth - teacher),
            "retained": (retained(sample, ships, theirs), (truth - CHANCE) / (teacher - CHANCE)),
            "without documents": (beside(naive, ships, theirs), truth - teacher),
        }
        low, high = unpaired(ships[0], theirs)
        figures["unpaired"] = (result.Interval(value=0, low=low, high=high), truth - teacher)
        if seeds > 1:
            figures |= {
                "recipe's difference": (beside(sample, mine, theirs), recipe - teacher),
                "recipe's retained": (retained(sample, mine, theirs), share),
                "between recipes": (beside(sample, mine, others), recipe - other),
                "recipe, one seed": (beside(sample, ships, theirs), recipe - teacher),
            }
        for name, (interval, true) in figures.items():
            counts.setdefault(name, []).append(interval.low is None or interval.low <= true <= interval.high)
    return {name: float(np.mean(held)) for name, held in counts.items()}


def beside(sample: Sample, mine: np.ndarray, theirs: np.ndarray) -> result.Interval:
    return sample.ratio(mine - theirs, np.ones(mine.shape[1]), CELLS @ [1, -1], np.ones(len(CELLS)))


def retained(sample: Sample, mine: np.ndarray, theirs: np.ndarray) -> result.Interval:
    return sample.ratio(mine - CHANCE, theirs - CHANCE, *(CELLS.T - CHANCE))


def unpaired(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    half = 1.96 * math.sqrt(mine.var() / len(mine) + theirs.var() / len(theirs))
    return mine.mean() - theirs.mean() - half, mine.mean() - theirs.mean() + half


def poc(
    rng: np.random.Generator, examples: Examples, teacher: float, shares: list[float], spread: float = 0.0
) -> tuple[dict[str, result.Candidate], list[float]]:
    """Judged as a real one is: sizes x arms, the largest first. shares: of the lead, that each keeps; with a spread
    each is trained with three seeds, and the one that ships keeps so much. Also the estimates of what each keeps."""
    truths = [[keeping(share, teacher)] for share in shares]
    if spread:
        truths = [[*ships, *(ships + spread * rng.standard_normal(2))] for ships in truths]
    theirs, found = answers(rng, examples, teacher, truths)
    evidence = [Evidence("teacher", "teacher", samples=table(theirs, examples))]
    for place, seeds in enumerate(found):
        size, arm = divmod(place, min(len(ARMS), len(shares)))
        tables = [table(seed, examples) for seed in seeds]
        training = result.Training(parameters=1000 - size)
        evidence.append(
            Evidence(
                f"{arm}-{size}", ARMS[arm], str(size), training=training, samples=tables[0],
                replicates={str(seed): one for seed, one in enumerate(tables)} if spread else {},
            )
        )  # fmt: skip
    judged = assemble.candidates(SPEC, evidence, {TASK: CHANCE}, ADEQUATE)
    kept = [(seeds[0].mean() - CHANCE) / (theirs.mean() - CHANCE) for seeds in found]
    return judged, kept


def table(right: np.ndarray, examples: Examples) -> pandas.DataFrame:
    return pandas.DataFrame(
        {"task": TASK, "doc_id": np.arange(examples.count), "metric": "acc", "n_choices": 1,
         "score": right.astype(float), "weight": 1.0,
         "group": np.repeat(np.arange(examples.documents), examples.each)}
    )  # fmt: skip


def false_go(case: dict[str, Any]) -> dict[str, Any]:
    rng, told = np.random.default_rng(case["number"]), {"ours": 0, "each by its own gate": 0, "by the estimate": 0}
    shares = [MARGIN - 1e-6] * case["students"]
    for _ in range(case["pocs"]):
        candidates, kept = poc(rng, case["examples"], case["teacher"], shares, case["spread"])
        students = [found for name, found in candidates.items() if name != "teacher"]
        own = [found.quality.tasks[TASK].retained for found in students]
        told["ours"] += verdict.recommend(candidates, adequate=True).code == "replace"
        told["each by its own gate"] += any(one and one.low is not None and one.low >= MARGIN for one in own)
        told["by the estimate"] += max(kept) >= MARGIN
    return {name: count / case["pocs"] for name, count in told.items()}


def false_no_go(case: dict[str, Any]) -> dict[str, Any]:
    rng, told = np.random.default_rng(case["number"]), []
    for _ in range(case["pocs"]):
        candidates, _ = poc(rng, case["examples"], case["teacher"], [1.0] * case["students"], case["spread"])
        told += [found.verdict.verdict for name, found in candidates.items() if name != "teacher"]
    return {verdict: told.count(verdict) / len(told) for verdict in ("go", "inconclusive", "no-go")}


def decided(case: dict[str, Any]) -> dict[str, Any]:
    """A first PoC; where it is undecided, a second one with as many examples as its gate asks for."""
    rng, told, asked, unknown = np.random.default_rng(case["number"]), [], [], 0
    right = "go" if case["share"] > MARGIN else "no-go"
    for _ in range(case["pocs"]):
        found = poc(rng, case["examples"], case["teacher"], [case["share"]])[0]["0-0"].verdict
        if found.verdict != "inconclusive":
            continue
        needed = found.gates[0].examples_needed
        if needed is None:  # the teacher's lead itself is not certain: no number is told
            unknown += 1
            continue
        asked.append(needed)
        more = Examples(math.ceil(needed / case["examples"].each), case["examples"].each)
        told.append(poc(rng, more, case["teacher"], [case["share"]])[0]["0-0"].verdict.verdict)
    return {
        "undecided": len(told) / case["pocs"],
        "undecided without a number": unknown / case["pocs"],
        "examples_needed_median": statistics.median(asked) if asked else None,
        "decided rightly": told.count(right) / len(told) if told else None,
        "decided wrongly": sum(one not in (right, "inconclusive") for one in told) / len(told) if told else None,
    }


def cases() -> Iterator[dict[str, Any]]:
    number = 0
    for teacher in TEACHERS:
        for examples in (ALONE, CLUSTERED):
            for share in (1.0, MARGIN):
                for seeds, spread in ((1, 0.0), (3, 0.0), (3, 0.02), (5, 0.005)):
                    number += 1
                    spread = spread if TEACHERS[teacher] < 0.9 else spread / 4
                    yield {"part": "coverage", "seeds": seeds, "spread": spread, "share": share,
                           "teacher": TEACHERS[teacher], "examples": examples, "number": number}  # fmt: skip
            for students in (1, 3, 30):
                number += 1
                common = {"students": students, "spread": 0.01 if students == 3 else 0.0, "pocs": POCS,
                          "teacher": TEACHERS[teacher], "examples": examples, "number": number}  # fmt: skip
                yield {"part": "false go", **common}
                yield {"part": "no-go", **common, "pocs": POCS // students + 1}
            for share in (1.0, 0.75):
                number += 1
                yield {"part": "power", "share": share, "pocs": POCS // 4, "teacher": TEACHERS[teacher],
                       "examples": Examples(examples.documents // 2, examples.each), "number": number}  # fmt: skip


RUN = {"coverage": coverage, "false go": false_go, "no-go": false_no_go, "power": decided}


def run(case: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    found = RUN[case["part"]](case)
    print(f"{case['part']} {case['number']}: {time.perf_counter() - start:.0f} s {found}", file=sys.stderr, flush=True)
    examples = case.pop("examples")
    return {**case, "documents": examples.documents, "examples": examples.count, **found}


OURS = ("estimate", "difference", "retained", "recipe's difference", "recipe's retained", "between recipes")
NAIVE = ("without documents", "unpaired", "recipe, one seed")


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def of(part: str, *names: str) -> list[float]:
        return [row[name] for row in rows if row["part"] == part for name in names if row.get(name) is not None]

    naive = {name: [min(of("coverage", name)), max(of("coverage", name))] for name in NAIVE}
    return {
        "coverage_worst": min(of("coverage", *OURS)),
        "coverage_mean": statistics.mean(of("coverage", *OURS)),
        "false_go": max(of("false go", "ours")),
        "false_no_go": max(of("no-go", "no-go")),
        "decided_at_power": min(of("power", "decided rightly")),
        "decided_wrongly_at_power": max(of("power", "decided wrongly")),
        "coverage_of_naive_methods": naive,
        "false_go_each_by_its_own_gate": max(of("false go", "each by its own gate")),
        "false_go_by_the_estimate": max(of("false go", "by the estimate")),
    }


def main() -> None:
    with ProcessPoolExecutor(int(os.environ.get("WORKERS", os.cpu_count() or 1))) as pool:
        rows = list(pool.map(run, cases()))
    lead = (
        "Synthetic PoCs with a planted truth, judged by the code that judges real ones. coverage: share of 95 % "
        f"intervals that hold the truth, of {DRAWS} per row (standard error {math.sqrt(0.05 * 0.95 / DRAWS):.4f}). "
        "false go: share of PoCs that recommend one of students that all keep a hair less than the margin. no-go: "
        "verdicts on students as good as the teacher. power: of PoCs that were undecided, what became of a second one "
        "with as many examples as the first asked for."
    )
    write("verdict", rows, summarise(rows), lead)


if __name__ == "__main__":
    main()
