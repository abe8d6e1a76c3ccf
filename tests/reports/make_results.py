"""Realistic result documents: a full run, and every way a run can come out thin."""

from make_candidates import ACCURACY, VERDICTS, around, candidate, digest, empty, paired, share
from make_decisions import CROSSINGS, NEXT, ROLLOUT, RULES

from featkd import spec
from featkd.decide import gates, sizes, verdict
from featkd.result import (
    Adequacy,
    AdequacyCheck,
    AssumptionRow,
    Candidate,
    Champion,
    Comparison,
    DataSummary,
    Energy,
    Interval,
    Latency,
    Memory,
    Override,
    Parity,
    Part,
    Recommendation,
    Result,
    Roi,
    Stage,
    Times,
)


def full() -> Result:
    """Three students, one size, everything measured; feature-kd is a go."""
    return document({arm: candidate(arm) for arm in ("teacher", "sft", "logit-kd", "feature-kd")})


def single_student() -> Result:
    found = document({arm: candidate(arm) for arm in ("teacher", "sft")})
    return found.model_copy(update={"recommendation": Recommendation(code="keep-teacher"), "comparisons": []})


def without_latency() -> Result:
    kinds = {"latency": Latency, "memory": Memory, "energy": Energy, "roi": Roi}
    off = {section: kind(why="latency-off") for section, kind in kinds.items()}
    base = full()
    found = {name: c.model_copy(update=off) for name, c in base.candidates.items()}
    advice = Recommendation(code="undecided", next=NEXT)
    return base.model_copy(update={"candidates": found, "recommendation": advice})


def all_failed() -> Result:
    """Every export failed its parity check: nothing was measured but the teacher."""
    base = full()
    found = {"teacher": base.candidates["teacher"]}
    for name in ("sft", "logit-kd", "feature-kd"):
        trained = base.candidates[name]
        broken = Parity(passed=False, max_abs_difference=0.31, tolerance=1e-4, argmax_agreement=0.62, tokens=512)
        found[name] = empty(trained, "parity-failed").model_copy(update={"parity": broken})
    return base.model_copy(
        update={"candidates": found, "comparisons": [], "recommendation": Recommendation(code="keep-teacher")}
    )


def inadequate() -> Result:
    """The teacher is no better than chance: stopped before distillation."""
    base = full()
    found = {"teacher": base.candidates["teacher"]}
    found |= {name: empty(base.candidates[name], "teacher-inadequate", training=False) for name in list(VERDICTS)}
    checks = [
        AdequacyCheck(
            task="heldout_routing",
            against="chance",
            teacher=share(0.118, 400),
            other=Interval(value=0.1, low=0.1, high=0.1),
            passed=False,
        ),
        AdequacyCheck(
            task="heldout_continuation",
            against="sft",
            control="sft-s",
            teacher=share(0.31, 400),
            other=share(0.33, 400),
            passed=False,
        ),
        AdequacyCheck(
            task="heldout_continuation",
            against="chance",
            teacher=share(0.31, 400),
            other=Interval(value=0.25),
            passed=True,
        ),
    ]
    return base.model_copy(
        update={
            "candidates": found,
            "comparisons": [],
            "adequacy": Adequacy(adequate=False, action="stopped", checks=checks),
            "recommendation": Recommendation(code="teacher-inadequate"),
        }
    )


def several_seeds() -> Result:
    """Three trainings per student."""
    base = full()
    found = {}
    for name, trained in base.candidates.items():
        values = {task: score.estimate.value for task, score in trained.quality.tasks.items()}
        shifts = {"0": 1.0, "1": 0.97, "2": 1.04} if trained.arm != "teacher" else {}
        replicates = {seed: {task: value * by for task, value in values.items()} for seed, by in shifts.items()}
        recipe = trained.quality.tasks if shifts else {}
        quality = trained.quality.model_copy(update={"replicates": replicates, "recipe": recipe})
        found[name] = trained.model_copy(update={"quality": quality})
    overridden = Override(
        run_id="20261120-080000-abcdef", candidate="sft", gates_said="no-go", verdict="go", reason="社内試験のため",
        decided_by="ada", time="2026-11-20T09:30:00+00:00",
    )  # fmt: skip
    update = {"candidates": found, "spec": base.spec | {"seeds": [0, 1, 2]}, "overrides": [overridden]}
    return base.model_copy(update=update)


def without_intervals() -> Result:
    """One round of timing: speed, memory and money have no intervals."""
    base = full()
    sections = ("latency", "memory", "energy", "roi")
    found = {}
    for name, timed in base.candidates.items():
        bare = {section: _bare(getattr(timed, section)) for section in sections}
        found[name] = timed.model_copy(update=bare)
    return base.model_copy(update={"candidates": found, "recommendation": Recommendation(code="undecided")})


def with_champion() -> Result:
    """A student of an earlier run serves, and gates are against it."""
    base = full()
    comparisons = [paired(task, name, "champion", seed=seed) for seed, name in enumerate(VERDICTS) for task in ACCURACY]
    serving = Champion(
        version="3", run_id="20261101-080000-abcdef", candidate="logit-kd", artefact=digest("champion"),
        comparisons=comparisons,
    )  # fmt: skip
    rules = [{"metric": f"quality.{task}.retained", "at_least": 0.98} for task in ACCURACY]
    rules += [{"metric": metric, "at_least": 1} for metric in ("latency.decode_speedup", "roi.monthly_saving")]
    judged = [spec.Gate(**rule, against="champion") for rule in rules]
    found = {
        name: made.model_copy(update={"verdict": gates.decide([*RULES, *judged], made)}) if name in VERDICTS else made
        for name, made in base.candidates.items()
    }
    return base.model_copy(update={"candidates": found, "champion": serving})


def _bare(part: Part) -> Part:
    figures = {field: getattr(part, field) for field in type(part).model_fields}
    bare = {field: Interval(value=value.value) for field, value in figures.items() if isinstance(value, Interval)}
    bare |= {field: _bare(value) for field, value in figures.items() if isinstance(value, Times)}
    if isinstance(part, Latency):
        bare["points"] = [_bare(point) for point in part.points]
    if isinstance(part, Roi):
        bare |= {"payback_months_low": None, "payback_months_high": None}
    return part.model_copy(update=bare)


def many(count: int = 5) -> Result:
    """A sweep of two precisions: with five sizes 30 students and the teacher."""
    found = {"teacher": candidate("teacher")}
    for index in range(count):
        for arm in VERDICTS:
            for precision in ("fp32", "int8"):
                size = f"{2.0 / 2**index:g}b"
                found[f"{arm}-{size}-{precision}"] = candidate(arm, size, precision, shrink=0.9**index)
    pairs = [
        paired(task, f"{arm}-{2.0 / 2**i:g}b-fp32", f"sft-{2.0 / 2**i:g}b-fp32", seed=i)
        for i in range(count)
        for arm in ("logit-kd", "feature-kd")
        for task in ACCURACY
    ]
    base = document(found)
    chosen = Recommendation(rollout=ROLLOUT, candidate="feature-kd-1b-fp32", code="replace")
    return base.model_copy(update={"recommendation": chosen, "comparisons": pairs})


def sweep(count: int, rules: list[spec.Gate] = RULES) -> Result:
    """So many sizes by three arms; verdicts and frontier are those of the rules."""
    found = {"teacher": candidate("teacher")}
    for index in range(count):
        size = ["xxl", "xl", "l", "m", "s", "xs", "xxs", "nano"][index]
        for arm in VERDICTS:
            made = candidate(arm, size, shrink=0.88**index)
            found[f"{arm}-{size}-fp32"] = made.model_copy(update={"verdict": gates.decide(rules, made)})
    advice = verdict.recommend(found, adequate=True)
    measured = sizes.sizes(found, rules, lambda *names: beside(found, *names))
    measured = measured and measured.model_copy(update={"crossings": CROSSINGS})
    return document(found).model_copy(update={"recommendation": advice, "sizes": measured, "comparisons": []})


def beside(candidates: dict[str, Candidate], task: str, a: str, b: str) -> Comparison:
    """What pairing would tell, more or less."""
    mine, theirs = (candidates[name].quality.tasks[task].estimate.value for name in (a, b))
    if task == "heldout_perplexity":
        return Comparison(task=task, a=a, b=b, kind="ratio", estimate=around(mine / theirs, 0.02))
    return Comparison(task=task, a=a, b=b, kind="difference", estimate=around(mine - theirs, 0.03))


def document(candidates: dict[str, Candidate]) -> Result:
    tree = {
        "name": "documentation-assistant",
        "title": "Documentation assistant",
        "data": {"builtin": "docstrings", "packages": ["stdlib", "numpy", "torch"]},
        "teacher": {"train": {"tokens": 12_000_000, "shape": {"hidden_size": 384, "layers": 8}}},
        "students": [{"name": "s", "layers": 4}],
        "arms": list(VERDICTS),
        "seeds": [0],
        "quality": {"tasks": ["heldout_perplexity", *ACCURACY]},
        "cost": {"currency": "USD", "horizon_months": 36, "spread": 0.25},
    }
    tasks = list(ACCURACY)
    compared = [
        Comparison(task="heldout_perplexity", a="logit-kd", b="sft", kind="ratio", estimate=around(0.9126, 0.011)),
        Comparison(
            task="heldout_perplexity", a="feature-kd", b="logit-kd", kind="ratio", estimate=around(0.982, 0.024)
        ),
        Comparison(task=tasks[0], a="logit-kd", b="sft", kind="difference", estimate=around(0.0375, 0.031)),
        Comparison(task=tasks[0], a="feature-kd", b="logit-kd", kind="difference", estimate=around(0.0075, 0.024)),
        Comparison(task=tasks[1], a="logit-kd", b="sft", kind="difference", estimate=around(0.0825, 0.033)),
        Comparison(task=tasks[1], a="feature-kd", b="logit-kd", kind="difference", estimate=around(-0.0175, 0.029)),
    ]
    return Result(
        run_id="20261123-214500-4f2a9c",
        name="documentation-assistant",
        title="Documentation assistant",
        created="2026-11-23T21:45:07+00:00",
        spec=tree,
        spec_digest=digest("spec"),
        environment={
            "hardware": {"cpu": "AMD EPYC 9B14", "cores": 2, "memory_bytes": 16_777_216_000, "accelerator": None},
            "threads": 2,
            "precision": "bf16",
            "versions": {"torch": "2.13.0", "transformers": "5.23.1", "onnxruntime": "1.31.0", "lm-eval": "0.4.13"},
            "git_commit": "f3c254f",
        },
        data=DataSummary(
            source="builtin: docstrings",
            digest=digest("data"),
            documents=48_212,
            training_documents=45_630,
            held_out_documents=2_411,
            near_duplicates_removed=171,
            characters=26_480_113,
            training_tokens=7_214_080,
            labels=["numpy", "pandas", "scipy", "torch"],
        ),
        adequacy=Adequacy(adequate=True, action="none", checks=[]),
        recommendation=Recommendation(candidate="feature-kd", code="replace", rollout=ROLLOUT),
        candidates=candidates,
        comparisons=compared,
        assumptions=[
            AssumptionRow(name="price_per_hour", value=1.2, unit="currency/hour", source="price list, 2026-10"),
            AssumptionRow(name="requests_per_month", value=1_000_000, unit="1/month"),
            AssumptionRow(name="output_tokens_per_request", value=200, unit="tokens"),
            AssumptionRow(name="utilisation", value=0.4, unit="share"),
            AssumptionRow(name="engineering_cost", value=10_000, unit="currency"),
        ],
        stages=[
            Stage(name=name, state=state, seconds=seconds, digest=digest(name))
            for name, state, seconds in [
                ("data", "reused", 0.4),
                ("tokenizer", "reused", 0.1),
                ("teacher", "reused", 0.2),
                ("distil", "made", 171.3),
                ("export teacher", "made", 21.7),
                ("accuracy feature-kd seed 0", "made", 96.4),
                ("latency", "made", 44.9),
                ("roi", "made", 0.1),
                ("gates", "made", 0.0),
                ("report", "made", 1.9),
                ("mlflow", "skipped", 0.0),
            ]
        ],
        evidence={"accuracy": digest("accuracy-evidence"), "latency": digest("latency-evidence")},
    )


ALL = {
    "full": full,
    "single": single_student,
    "no-latency": without_latency,
    "failed": all_failed,
    "inadequate": inadequate,
    "seeds": several_seeds,
    "champion": with_champion,
    "no-intervals": without_intervals,
    "many": many,
    "sweep": lambda: sweep(5),
}
