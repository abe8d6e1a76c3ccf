"""From candidates to one recommendation, and whether the teacher was worth learning from at all."""

import math

from featkd.result import Adequacy, AdequacyCheck, Candidate, Interval, Recommendation, Score


def adequacy(
    teacher: dict[str, Score],
    controls: dict[str, dict[str, Score]],
    if_inadequate: str,
    most_perplexity: float | None = None,
) -> Adequacy:
    """Is the teacher better than chance and than every plain fine-tuned student that was measured, on every task?

    Better: its whole interval lies on the better side of the other's. `teacher`: task to score. `controls`: name of
    each measured sft candidate to its scores; empty before there are students. Students without any control are
    not a matter of the teacher's: assemble.candidates caps their verdicts. most_perplexity: what it may have at most,
    per token of held-out text.
    """
    checks = []
    for task, score in teacher.items():
        if score.chance is not None:
            checks.append(
                _check(task, "chance", score, Interval(value=score.chance, low=score.chance, high=score.chance))
            )
        checks += [
            _check(task, "sft", score, control[task].estimate, name)
            for name, control in controls.items()
            if task in control
        ]
        if most_perplexity is not None and score.metric == "token_perplexity":
            bound = Interval(value=most_perplexity, low=most_perplexity, high=most_perplexity)
            checks.append(_check(task, "reference", score, bound))
    adequate = all(check.passed for check in checks)
    action = "none" if adequate else {"stop": "stopped", "warn": "warned"}[if_inadequate]
    return Adequacy(adequate=adequate, action=action, checks=checks)


def recommend(candidates: dict[str, Candidate], adequate: bool) -> Recommendation:
    """The best of the goes; else keep the teacher, or undecided while one is inconclusive."""
    if not adequate:
        return Recommendation(code="teacher-inadequate")
    students = {name: found for name, found in candidates.items() if found.arm != "teacher"}
    going = {name: found for name, found in students.items() if found.verdict.verdict == "go"}
    if going:
        return Recommendation(candidate=_best(going), code="replace")
    undecided = any(found.verdict.verdict == "inconclusive" for found in students.values())
    return Recommendation(code="undecided" if undecided else "keep-teacher")


def _best(going: dict[str, Candidate]) -> str:
    """Of those whose saving cannot be told from the largest, the smallest; of one size the one that keeps most quality.

    Arms of one size are the same graph and cost the same: the largest saving alone would be the luckiest timing.
    Quality: what is retained on the weakest task, then the ratio on the worst one; only then the saving.
    """
    largest = max(going.values(), key=_saving).roi.monthly_saving
    alike = [name for name, found in going.items() if _overlap(found.roi.monthly_saving, largest)]
    return max(alike, key=lambda name: (-_size(going[name]), *quality_kept(going[name]), _saving(going[name])))


def _size(candidate: Candidate) -> int:
    return candidate.training.parameters if candidate.training else 0


def _saving(candidate: Candidate) -> float:
    saving = candidate.roi.monthly_saving
    return saving.value if saving else -math.inf


def _overlap(saving: Interval | None, largest: Interval | None) -> bool:
    """Of two savings the second is the larger. Without an interval nothing tells them apart."""
    if saving is None or largest is None:
        return saving is largest
    return saving.high is None or largest.low is None or saving.high >= largest.low


def quality_kept(candidate: Candidate) -> tuple[float, float]:
    """To compare two by, the larger the better: what the weakest task retains, then the worst ratio, negated."""
    scores = candidate.quality.tasks.values()
    retained = [score.retained.value for score in scores if score.retained]
    ratios = [score.ratio.value for score in scores if score.ratio]
    return min(retained, default=-math.inf), -max(ratios, default=math.inf)


def _check(task: str, against: str, teacher: Score, other: Interval, control: str | None = None) -> AdequacyCheck:
    estimate = teacher.estimate
    low, high = _or_value(estimate.low, estimate), _or_value(estimate.high, estimate)
    if teacher.higher_is_better:
        passed = low > _or_value(other.high, other)
    else:
        passed = high < _or_value(other.low, other)
    return AdequacyCheck(task=task, against=against, control=control, teacher=estimate, other=other, passed=passed)


def _or_value(bound: float | None, interval: Interval) -> float:
    return interval.value if bound is None else bound
