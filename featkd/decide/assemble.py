"""From what was measured to the candidates of the result: scores, fidelity, price and verdict of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from featkd import result, spec
from featkd.decide import gates, roi
from featkd.measure import fidelity, statistics, timings

SIDE_BY_SIDE = (("logit-kd", "sft"), ("feature-kd", "sft"), ("feature-kd", "logit-kd"))


@dataclass
class Evidence:
    """What is known of one candidate. `why` is a code for what is missing: parity-failed, export-failed,
    accuracy-failed, latency-failed, teacher-inadequate; `failure` is what went wrong, in one line.

    samples: per-example scores of the seed that ships (featkd.measure.accuracy); replicates: of every seed.
    latency: raw timings (featkd.measure.latency).
    """

    name: str
    arm: str
    size: str | None = None
    precision: str = "fp32"
    seed: int | None = None
    training: result.Training | None = None
    parity: result.Parity | None = None
    artefact: str | None = None
    samples: Any = None
    replicates: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] | None = None
    why: str = "not-run"
    failure: str | None = None


def scores(samples: Any, teacher: Any, chance: dict[str, float]) -> dict[str, result.Score]:
    """Task to score, in the order of the tasks. `chance`: for the tasks made here; else 1 / choices for accuracies.

    The very same object twice is the teacher beside itself: exact, without an interval.
    """
    found = {}
    for task, rows in samples.groupby("task", sort=False):
        guess = chance.get(task, _chance(rows))
        beside = rows if samples is teacher else teacher[teacher["task"] == task]
        found[task] = statistics.score(rows, beside, guess)
    return found


def candidates(
    poc: spec.Spec,
    evidence: list[Evidence],
    chance: dict[str, float],
    adequacy: result.Adequacy,
    overlap: Any = None,
) -> dict[str, result.Candidate]:
    """All candidates, the teacher first. `evidence[0]` is the teacher's. `overlap`: a row per example with its `task`
    and whether the training text holds it, `seen`.

    When the teacher was inadequate and the run ended there, no student is judged. When the run went on, or when no
    plain fine-tuned student was measured, the gates are applied but no student is a go.
    """
    for found in evidence:
        if adequacy.action == "stopped" and found.why == "not-run":
            found.why = "teacher-inadequate"
    seen = {}
    if overlap is not None:
        seen = {task: statistics.mean(rows["seen"].to_numpy(float)) for task, rows in overlap.groupby("task")}
    return {found.name: _candidate(poc, found, evidence, chance, adequacy, seen) for found in evidence}


def comparisons(evidence: list[Evidence]) -> list[result.Comparison]:
    """What distillation adds: arms of the same size and precision side by side, paired by example; and what each part
    of it adds: feature-kd against its ablations."""
    by_place = {(found.arm, found.size, found.precision): found for found in evidence if found.samples is not None}
    rows = []
    for (arm, size, precision), found in by_place.items():
        ablations = [("feature-kd", other) for other in dict.fromkeys(place[0] for place in by_place)]
        for better, control in [*SIDE_BY_SIDE, *(pair for pair in ablations if pair[1].startswith("feature-kd-"))]:
            other = by_place.get((control, size, precision))
            if arm == better and other is not None:
                rows += _compare(found, other)
    return rows


def paired(evidence: list[Evidence]) -> Callable[[str, str, str], result.Comparison]:
    """For decide.sizes: `(task, a, b)` compares two measured candidates, by their names."""
    by_name = {found.name: found for found in evidence}
    return lambda task, a, b: _paired(task, by_name[a], by_name[b])


def _compare(a: Evidence, b: Evidence) -> list[result.Comparison]:
    return [_paired(task, a, b) for task in a.samples["task"].unique()]


def _paired(task: str, a: Evidence, b: Evidence) -> result.Comparison:
    kind, estimate = statistics.compare(*(found.samples[found.samples["task"] == task] for found in (a, b)))
    return result.Comparison(task=task, a=a.name, b=b.name, kind=kind, estimate=estimate)


def _candidate(
    poc: spec.Spec,
    found: Evidence,
    evidence: list[Evidence],
    chance: dict[str, float],
    adequacy: result.Adequacy,
    overlap: dict[str, result.Interval],
) -> result.Candidate:
    teacher = evidence[0]
    is_teacher = found is teacher
    quality, agreement = _quality(found, teacher, chance, overlap), _fidelity(found, teacher)
    speed, memory, energy = _latency(found, teacher)
    teacher_speed = speed if is_teacher else _latency(teacher, teacher)[0]
    seconds = found.training.seconds if found.training and found.training.seconds else 0.0
    money = roi.price(speed, teacher_speed, poc.cost, seconds, is_teacher)
    if is_teacher:
        decision = result.Decision(why="baseline")
    elif adequacy.action == "stopped":
        decision = result.Decision(verdict="inconclusive", why="teacher-inadequate")
    elif found.samples is None:
        verdict = "no-go" if found.why in ("parity-failed", "export-failed") else "inconclusive"
        decision = result.Decision(verdict=verdict, why=found.why)
    else:
        decision = gates.decide(poc.gates, quality, agreement, speed, memory, money)
        if decision.verdict == "go" and money.meets_target is False:
            decision = decision.model_copy(update={"verdict": "no-go", "why": "target-missed"})
        doubt = _doubt(evidence, adequacy)
        if doubt and decision.verdict == "go":
            decision = decision.model_copy(update={"verdict": "inconclusive", "why": doubt})
    return result.Candidate(
        arm=found.arm,
        size=found.size,
        seed=found.seed,
        precision=found.precision,
        artefact=found.artefact,
        training=found.training,
        parity=found.parity,
        failure=found.failure,
        quality=quality,
        fidelity=agreement,
        guardrails=result.Guardrails(why="guardrails-not-built"),
        latency=speed,
        memory=memory,
        energy=energy,
        roi=money,
        verdict=decision,
    )


def _doubt(evidence: list[Evidence], adequacy: result.Adequacy) -> str | None:
    """The code of what forbids every go, whatever the gates say."""
    if not adequacy.adequate:
        return "teacher-inadequate"
    controlled = any(found.arm == "sft" and found.samples is not None for found in evidence)
    return None if controlled else "no-control"


def _quality(
    found: Evidence, teacher: Evidence, chance: dict[str, float], overlap: dict[str, result.Interval]
) -> result.Quality:
    if found.samples is None:
        return result.Quality(why=found.why)
    values = {
        seed: {task: score.estimate.value for task, score in scores(samples, samples, chance).items()}
        for seed, samples in found.replicates.items()
    }
    tasks = {
        task: score.model_copy(update={"overlap": overlap.get(task)})
        for task, score in scores(found.samples, teacher.samples, chance).items()
    }
    return result.Quality(tasks=tasks, replicates=values)


def _fidelity(found: Evidence, teacher: Evidence) -> result.Fidelity:
    if found is teacher:
        return result.Fidelity(why="baseline")
    if found.samples is None:
        return result.Fidelity(why=found.why)
    tasks = {
        task: fidelity.agreement(rows, teacher.samples[teacher.samples["task"] == task])
        for task, rows in found.samples.groupby("task", sort=False)
        if (rows["n_choices"] > 1).all()
    }
    return result.Fidelity(tasks=tasks, why=None if tasks else "no-choice-task")


def _latency(found: Evidence, teacher: Evidence) -> tuple[result.Latency, result.Memory, result.Energy]:
    if found.latency is None:
        return result.Latency(why=found.why), result.Memory(why=found.why), result.Energy(why=found.why)
    return timings.summarise(found.latency, teacher.latency)


def _chance(rows: Any) -> float | None:
    """Guessing among the choices; None for what is not an accuracy (f1, mcc, ...) or has no choices."""
    choices = rows["n_choices"]
    guessable = statistics.is_accuracy(str(rows["metric"].iloc[0])) and (choices > 1).all()
    return float((1 / choices).mean()) if guessable else None
