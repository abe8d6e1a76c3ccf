"""How small a student may be: the frontier of size against quality, and the smallest student that passes every gate."""

from collections.abc import Callable
from typing import Literal

from featkd import spec
from featkd.decide.verdict import quality_kept
from featkd.result import Candidate, Comparison, Score, SizeCurve, SizePoint, Sizes

Paired = Callable[[str, str, str], Comparison]
MEASURES = ("retained", "ratio")
FORBIDDING = ("teacher-inadequate", "no-control", "no-gates", "no-blocking-gates")  # whatever the gates say


def sizes(candidates: dict[str, Candidate], rules: list[spec.Gate], paired: Paired) -> Sizes | None:
    """None with fewer than two sizes. `paired(task, a, b)` compares two candidates on the same examples.

    A student is on the frontier of a task where it is better than every other of at most its size. By the estimates
    that is Pareto optimality; it is shown, or ruled out, where the interval of the paired difference to the best of
    those others says so. Students without a measured quality are left out, and so are those without a size.
    """
    students = {name: found for name, found in candidates.items() if found.arm != "teacher" and found.training}
    tried = len({found.size for found in students.values()})
    if tried < 2:
        return None
    tasks = dict.fromkeys(task for found in students.values() for task in found.quality.tasks)
    return Sizes(sizes=tried, curves=[_curve(task, students, rules, paired) for task in tasks], **_smallest(students))


def _smallest(students: dict[str, Candidate]) -> dict[str, object]:
    ordered = sorted(students, key=lambda name: students[name].training.parameters)
    going = [name for name in ordered if students[name].verdict.verdict == "go"]
    smallest, limit = None, float("inf")
    if going:
        limit = students[going[0]].training.parameters
        alike = [name for name in going if students[name].training.parameters == limit]
        smallest = max(alike, key=lambda name: quality_kept(students[name]))
    undecided = [
        name
        for name in ordered
        if students[name].verdict.verdict == "inconclusive" and students[name].training.parameters < limit
    ]
    why = next((code for code in FORBIDDING if any(students[name].verdict.why == code for name in undecided)), None)
    return {"smallest": smallest, "undecided": undecided, "why": why}


def _curve(task: str, students: dict[str, Candidate], rules: list[spec.Gate], paired: Paired) -> SizeCurve:
    scores = {name: found.quality.tasks[task] for name, found in students.items() if task in found.quality.tasks}
    gates = {rule.metric: rule for rule in sorted(rules, key=lambda rule: rule.severity == "block")}
    gated = [measure for measure in MEASURES if f"quality.{task}.{measure}" in gates]
    known = [measure for measure in MEASURES if any(getattr(score, measure) for score in scores.values())]
    measure = next((one for one in [*gated, *known] if one in known), "estimate")
    gate = gates.get(f"quality.{task}.{measure}")
    ordered = sorted(scores, key=lambda name: students[name].training.parameters)
    return SizeCurve(
        task=task,
        measure=measure,
        higher_is_better=measure == "retained" or next(iter(scores.values())).higher_is_better,
        at_least=gate and gate.at_least,
        at_most=gate and gate.at_most,
        points=[
            _point(name, task, measure, students, scores, paired)
            for name in ordered
            if getattr(scores[name], measure) is not None
        ],
    )


def _point(
    name: str, task: str, measure: str, students: dict[str, Candidate], scores: dict[str, Score], paired: Paired
) -> SizePoint:
    def rank(other: str) -> tuple[float, int]:
        sign = 1 if scores[other].higher_is_better else -1
        return sign * scores[other].estimate.value, -students[other].training.parameters

    size = students[name].training.parameters
    others = [other for other in scores if other != name and students[other].training.parameters <= size]
    rival = max(others, key=rank, default=None)
    lead = paired(task, name, rival) if rival else None
    return SizePoint(
        candidate=name,
        parameters=size,
        file_bytes=students[name].memory.file_bytes,
        quality=getattr(scores[name], measure),
        optimal=rival is None or rank(name) >= rank(rival),
        lead=lead,
        standing="on" if lead is None else _standing(lead, scores[name].higher_is_better),
    )


def _standing(lead: Comparison, higher_is_better: bool) -> Literal["on", "off", "open"]:
    neutral = 1.0 if lead.kind == "ratio" else 0.0
    low, high = lead.estimate.low, lead.estimate.high
    if low is None or high is None or low <= neutral <= high:
        return "open"
    return "on" if (low > neutral) == higher_is_better else "off"
