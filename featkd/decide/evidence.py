"""What is known of each candidate, and the sections that its gates look at, at any level of confidence."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from featkd import result, spec
from featkd.decide import roi
from featkd.measure import fidelity, guardrails, statistics, timings


@dataclass
class Evidence:
    """What is known of one candidate. `why` is a code for what is missing: parity-failed, export-failed,
    accuracy-failed, latency-failed, teacher-inadequate; `failure` is what went wrong, in one line.

    samples: per-example scores of the seed that ships (featkd.measure.accuracy); replicates: of every seed.
    latency: raw timings (featkd.measure.latency). guards: samples and generations of the guardrail stage. tokens: rows
    of featkd.measure.transfer.tokens; transfer: of its layers.
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
    tokens: Any = None
    transfer: result.Transfer = result.Transfer(why="not-run")
    guards: tuple[Any, Any] | None = None
    guards_why: str = "guardrails-off"
    why: str = "not-run"
    failure: str | None = None


@dataclass
class Measured:
    """The sections of a candidate that gates look at, and what runs beside them."""

    quality: result.Quality
    fidelity: result.Fidelity
    guardrails: result.Guardrails
    latency: result.Latency
    memory: result.Memory
    energy: result.Energy
    price: Callable[[result.Quality], result.Roi]

    @cached_property
    def roi(self) -> result.Roi:
        """Where errors cost, at the level of `quality`."""
        return self.price(self.quality)

    def sections(self) -> dict[str, Any]:
        names = ("quality", "fidelity", "guardrails", "latency", "memory", "energy", "roi")
        return {name: getattr(self, name) for name in names}

    def at(self, level: float, found: Evidence, teacher: Evidence, chance: dict[str, float]) -> "Measured":
        """The same with the intervals of what examples tell at another level."""
        if level == statistics.LEVEL:
            return self
        overlap = {task: score.overlap for task, score in self.quality.tasks.items()}
        tasks = _tasks(found, teacher, chance, overlap, level)
        return replace(
            self,
            quality=self.quality.model_copy(update={"tasks": tasks}),
            fidelity=_fidelity(found, teacher, level),
            guardrails=_guardrails(found, teacher, level),
        )


def scores(
    samples: Any, teacher: Any, chance: dict[str, float], level: float = statistics.LEVEL
) -> dict[str, result.Score]:
    """Task to score, in the order of the tasks. `chance`: for the tasks made here; else 1 / choices for accuracies.

    samples: of one seed, or a list of those of each seed, for the figures of the recipe. The very same object twice is
    the teacher beside itself: exact.
    """
    seeds = samples if isinstance(samples, list) else [samples]
    found = {}
    for task, rows in seeds[0].groupby("task", sort=False):
        guess = chance.get(task, guessing(rows))
        beside = rows if seeds[0] is teacher else of_task(teacher, task)
        mine = [of_task(one, task) for one in seeds] if isinstance(samples, list) else rows
        found[task] = statistics.score(mine, beside, guess, level)
    return found


def measured(
    poc: spec.Spec, found: Evidence, teacher: Evidence, chance: dict[str, float], overlap: dict[str, result.Interval]
) -> Measured:
    is_teacher = found is teacher
    speed, memory, energy = _latency(found, teacher)
    teacher_speed = speed if is_teacher else _latency(teacher, teacher)[0]
    seconds = found.training.seconds if found.training and found.training.seconds else 0.0
    quality = _quality(found, teacher, chance, overlap)

    def price(quality: result.Quality) -> result.Roi:
        beside_student = teacher.arm != "teacher"
        serving = None if beside_student else poc.teacher.serving
        lost = _lost(quality, poc.cost)
        return roi.price(speed, teacher_speed, poc.cost, seconds, is_teacher, serving, lost, beside_student)

    return Measured(
        quality=quality,
        fidelity=_fidelity(found, teacher),
        guardrails=_guardrails(found, teacher),
        latency=speed,
        memory=memory,
        energy=energy,
        price=price,
    )


def _tasks(
    found: Evidence,
    teacher: Evidence,
    chance: dict[str, float],
    overlap: dict[str, result.Interval],
    level: float = statistics.LEVEL,
) -> dict[str, result.Score]:
    return {
        task: score.model_copy(update={"overlap": overlap.get(task)})
        for task, score in scores(found.samples, teacher.samples, chance, level).items()
    }


def _quality(
    found: Evidence, teacher: Evidence, chance: dict[str, float], overlap: dict[str, result.Interval]
) -> result.Quality:
    if found.samples is None:
        return result.Quality(why=found.why)
    values = {
        seed: {task: score.estimate.value for task, score in scores(samples, samples, chance).items()}
        for seed, samples in found.replicates.items()
    }
    seeds = list(found.replicates.values())
    recipe = scores(seeds, teacher.samples, chance) if len(seeds) > 1 else {}
    tasks = _tasks(found, teacher, chance, overlap)
    return result.Quality(tasks=tasks, replicates=values, recipe=recipe)


def _lost(quality: result.Quality, cost: spec.Cost) -> result.Interval | None:
    """What it is behind on the task whose errors cost; None where that counts no right answers, or was not measured."""
    score = quality.tasks.get(cost.error_task or "")
    if score is None or score.difference is None or not statistics.counts_right(score.metric):
        return None
    low, high = score.difference.low, score.difference.high
    return result.Interval(
        value=-score.difference.value, low=None if high is None else -high, high=None if low is None else -low
    )


def _fidelity(found: Evidence, teacher: Evidence, level: float = statistics.LEVEL) -> result.Fidelity:
    if found is teacher:
        return result.Fidelity(why="baseline")
    if found.samples is None:
        return result.Fidelity(why=found.why)
    tasks = {
        task: fidelity.agreement(rows, of_task(teacher.samples, task), level)
        for task, rows in found.samples.groupby("task", sort=False)
        if (rows["n_choices"] > 1).all()
    }
    held_out = None if found.tokens is None else fidelity.tokens(found.tokens, level)
    return result.Fidelity(tasks=tasks, held_out=held_out, why=None if tasks or held_out else "no-choice-task")


def _guardrails(found: Evidence, teacher: Evidence, level: float = statistics.LEVEL) -> result.Guardrails:
    if found.samples is None:
        return result.Guardrails(why=found.why)
    for of in (found, teacher):
        if of.guards is None:
            return result.Guardrails(why=of.guards_why)
    checks = guardrails.checks(*found.guards, teacher.guards, level)
    return result.Guardrails(checks=checks, why=None if checks else "guardrails-off")


def _latency(found: Evidence, teacher: Evidence) -> tuple[result.Latency, result.Memory, result.Energy]:
    if found.latency is None:
        return result.Latency(why=found.why), result.Memory(why=found.why), result.Energy(why=found.why)
    return timings.summarise(found.latency, teacher.latency)


def guessing(rows: Any) -> float | None:
    """Guessing among the choices; None for what is not an accuracy (f1, mcc, ...) or has no choices."""
    choices = rows["n_choices"]
    guessable = statistics.is_accuracy(str(rows["metric"].iloc[0])) and (choices > 1).all()
    return float((1 / choices).mean()) if guessable else None


def of_task(samples: Any, task: str) -> Any:
    return samples[samples["task"] == task]
