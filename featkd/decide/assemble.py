"""From what was measured to the candidates of the result: scores, fidelity, price and verdict of each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from featkd import result, spec
from featkd.decide import gates, sequence
from featkd.decide.evidence import Evidence, Measured, measured, of_task
from featkd.measure import statistics

Judge = Callable[..., result.Decision]
SIDE_BY_SIDE = (("logit-kd", "sft"), ("feature-kd", "sft"), ("feature-kd", "logit-kd"))


def candidates(
    poc: spec.Spec,
    evidence: list[Evidence],
    chance: dict[str, float],
    adequacy: result.Adequacy,
    overlap: Any = None,
    champion: Evidence | None = None,
) -> dict[str, result.Candidate]:
    """All candidates, the teacher first. `evidence[0]` is the teacher's. `overlap`: a row per example with its `task`
    and whether the training text holds it, `seen`. champion: a student that serves, if gates are against it.

    When the teacher was inadequate and the run ended there, no student is judged. When the run went on, or when no
    plain fine-tuned student was measured, the gates are applied but no student is a go.
    """
    for found in evidence:
        if adequacy.action == "stopped" and found.why == "not-run":
            found.why = "teacher-inadequate"
    seen = {}
    if overlap is not None:
        seen = _seen(overlap, evidence[0].samples)
    sections = {found.name: measured(poc, found, evidence[0], chance, seen) for found in evidence}
    judged = _judge(poc, evidence, sections, chance, champion and _itself(champion, evidence))
    decisions = _decisions(evidence, sections, judged, adequacy, bool(poc.cost.error_cost.value))
    return {found.name: _candidate(found, sections[found.name], decisions[found.name]) for found in evidence}


def _seen(overlap: Any, samples: Any) -> dict[str, result.Interval]:
    """Task to the share of its examples that the training text holds; `samples`: of any model, for their documents."""
    if "group" in samples and "doc_id" in overlap:
        overlap = overlap.merge(samples[["task", "doc_id", "group"]], on=["task", "doc_id"])
    else:
        overlap = overlap.assign(group=range(len(overlap)))
    return {
        task: statistics.mean(rows["seen"].to_numpy(float), rows["group"].to_numpy())
        for task, rows in overlap.groupby("task")
    }


def _itself(champion: Evidence, evidence: list[Evidence]) -> Evidence:
    """With the very rows of the student that it is, if it is one of these: a model beside itself is exact."""
    same = [found.samples for found in evidence if found.artefact == champion.artefact and found.samples is not None]
    return replace(champion, samples=same[0]) if same else champion


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


def beside_champion(evidence: list[Evidence], champion: Evidence) -> list[result.Comparison]:
    """Each student, the seed that ships, with the student that serves, paired by example."""
    other = _itself(champion, evidence)
    students = [found for found in evidence if found.arm in spec.ARMS and found.samples is not None]
    return [row for found in students for row in _compare(found, other)]


def paired(evidence: list[Evidence]) -> Callable[[str, str, str], result.Comparison]:
    """For decide.sizes: `(task, a, b)` compares two measured candidates, by their names."""
    by_name = {found.name: found for found in evidence}
    return lambda task, a, b: _paired(task, by_name[a], by_name[b])


def _compare(a: Evidence, b: Evidence) -> list[result.Comparison]:
    return [_paired(task, a, b) for task in a.samples["task"].unique()]


def _paired(task: str, a: Evidence, b: Evidence) -> result.Comparison:
    """Over all seeds that both were measured with, seed by seed."""
    seeds = [seed for seed in a.replicates if seed in b.replicates]
    pairs = [(a.replicates[seed], b.replicates[seed]) for seed in seeds] or [(a.samples, b.samples)]
    rows = [(mine := of_task(one, task), mine if other is one else of_task(other, task)) for one, other in pairs]
    kind, estimate = statistics.compare(*map(list, zip(*rows, strict=True)))
    return result.Comparison(task=task, a=a.name, b=b.name, kind=kind, estimate=estimate)


def _candidate(found: Evidence, sections: Measured, decision: result.Decision) -> result.Candidate:
    return result.Candidate(
        arm=found.arm,
        size=found.size,
        seed=found.seed,
        precision=found.precision,
        artefact=found.artefact,
        training=found.training,
        parity=found.parity,
        failure=found.failure,
        transfer=result.Transfer(why="baseline") if found.arm == "teacher" else found.transfer,
        **sections.sections(),
        verdict=decision,
    )


def _judge(
    poc: spec.Spec,
    evidence: list[Evidence],
    sections: dict[str, Measured],
    chance: dict[str, float],
    champion: Evidence | None,
) -> Judge:
    """What the gates say of a student that was evaluated, by intervals of what level."""
    students = {found.name: found for found in evidence[1:] if found.samples is not None}
    beside = {name: measured(poc, found, champion, chance, {}) for name, found in students.items()} if champion else {}

    def judge(name: str, level: float = statistics.LEVEL) -> result.Decision:
        own = sections[name].at(level, students[name], evidence[0], chance)
        other = beside[name].at(level, students[name], champion, chance) if champion else None
        return gates.decide(poc.gates, own, level, other)

    return judge


def _decisions(
    evidence: list[Evidence],
    sections: dict[str, Measured],
    judge: Judge,
    adequacy: result.Adequacy,
    errors_cost: bool,
) -> dict[str, result.Decision]:
    """The verdict on each. Students whose costs pass are tested in sequence, at the levels that decide.sequence gives;
    that choice is made from timings, and these know nothing of the examples."""
    decisions: dict[str, result.Decision] = {}
    lines: dict[tuple[str, str], list[Evidence]] = {}
    for found in evidence:
        decision = _beforehand(found, sections[found.name], judge, adequacy, errors_cost)
        if decision is None:
            lines.setdefault((found.arm, found.precision), []).append(found)
        else:
            decisions[found.name] = decision

    ordered = [[found.name for found in sorted(line, key=_parameters, reverse=True)] for line in lines.values()]
    tested = sequence.levels(ordered, lambda name, level: judge(name, level).verdict == "go")
    for name in (name for line in ordered for name in line):
        if name in tested:
            decisions[name] = judge(name, tested[name]).model_copy(update={"level": tested[name]})
        else:
            decisions[name] = _capped(judge(name), "not-reached")
    doubt = _doubt(evidence, adequacy)
    return {name: _capped(one, doubt) if doubt else one for name, one in decisions.items()}


def _beforehand(
    found: Evidence, sections: Measured, judge: Judge, adequacy: result.Adequacy, errors_cost: bool
) -> result.Decision | None:
    """The decision on what is not to be tested by its examples: None for all else."""
    if found.arm == "teacher":
        return result.Decision(why="baseline")
    if adequacy.action == "stopped":
        return result.Decision(verdict="inconclusive", why="teacher-inadequate")
    if found.samples is None:
        verdict = "no-go" if found.why in ("parity-failed", "export-failed") else "inconclusive"
        return result.Decision(verdict=verdict, why=found.why)
    decision = judge(found.name)
    if found.arm not in spec.ARMS:
        return decision.model_copy(update={"verdict": None, "why": "ablation"})
    if sections.roi.meets_target is False and decision.verdict != "no-go":
        return decision.model_copy(update={"verdict": "no-go", "why": "target-missed"})
    tested = decision.why == "gates" and gates.costs_pass(decision, errors_cost)
    return None if tested else decision


def _capped(decision: result.Decision, why: str) -> result.Decision:
    """No go, for this reason."""
    if decision.verdict != "go":
        return decision
    return decision.model_copy(update={"verdict": "inconclusive", "why": why})


def _parameters(found: Evidence) -> int:
    return found.training.parameters if found.training else 0


def _doubt(evidence: list[Evidence], adequacy: result.Adequacy) -> str | None:
    """The code of what forbids every go, whatever the gates say."""
    if not adequacy.adequate:
        return "teacher-inadequate"
    controlled = any(found.arm == "sft" and found.samples is not None for found in evidence)
    return None if controlled else "no-control"
