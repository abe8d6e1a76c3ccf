"""From candidates to one recommendation, and whether the teacher was worth learning from at all."""

from featkd.result import Adequacy, AdequacyCheck, Candidate, Interval, Recommendation, Score


def adequacy(teacher: dict[str, Score], control: dict[str, Score] | None, if_inadequate: str) -> Adequacy:
    """Is the teacher better than chance and, once it is known, than the plain fine-tuned student, on every task?

    Better: its whole interval lies on the better side of the other's. `teacher` and `control`: task to score.
    """
    checks = []
    for task, score in teacher.items():
        if score.chance is not None:
            checks.append(
                _check(task, "chance", score, Interval(value=score.chance, low=score.chance, high=score.chance))
            )
        if control and task in control:
            checks.append(_check(task, "sft", score, control[task].estimate))
    adequate = all(check.passed for check in checks)
    action = "none" if adequate else {"stop": "stopped", "warn": "warned"}[if_inadequate]
    return Adequacy(adequate=adequate, action=action, checks=checks)


def recommend(candidates: dict[str, Candidate], adequate: bool) -> Recommendation:
    """The go with the largest monthly saving; else keep the teacher, or undecided while one is inconclusive."""
    if not adequate:
        return Recommendation(code="teacher-inadequate")
    students = {name: found for name, found in candidates.items() if found.arm != "teacher"}
    going = [name for name, found in students.items() if found.verdict.verdict == "go"]
    if going:
        return Recommendation(candidate=max(going, key=lambda name: _saving(students[name])), code="replace")
    undecided = any(found.verdict.verdict == "inconclusive" for found in students.values())
    return Recommendation(code="undecided" if undecided else "keep-teacher")


def _saving(candidate: Candidate) -> float:
    saving = candidate.roi.monthly_saving_usd
    return saving.value if saving else float("-inf")


def _check(task: str, against: str, teacher: Score, other: Interval) -> AdequacyCheck:
    estimate = teacher.estimate
    low, high = _or_value(estimate.low, estimate), _or_value(estimate.high, estimate)
    if teacher.higher_is_better:
        passed = low > _or_value(other.high, other)
    else:
        passed = high < _or_value(other.low, other)
    return AdequacyCheck(task=task, against=against, teacher=estimate, other=other, passed=passed)


def _or_value(bound: float | None, interval: Interval) -> float:
    return interval.value if bound is None else bound
