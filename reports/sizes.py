"""How small a student may be, in words; and what learning from inner states costs beside learning from outputs."""

from featkd.result import Candidate, Result
from reports import numbers, view
from reports.text import Text

PAIR = ("feature-kd", "logit-kd")


def sentence(result: Result, t: Text) -> str | None:
    """Which size is small enough, as far as the gates settle it; None with a single size."""
    found = result.sizes
    if found is None:
        return None
    if found.why:
        return t("sizes.unjudged", reason=t.code("why", found.why))
    unsettled = ""
    if found.undecided:
        key = f"sizes.{'smaller' if found.smallest else 'open'}_{'one' if len(found.undecided) == 1 else 'several'}"
        first = _name(result.candidates[found.undecided[0]], result, t)
        unsettled = t(key, count=len(found.undecided), candidate=first)
    if found.smallest:
        chosen = result.candidates[found.smallest]
        size = t("sizes.parameters", parameters=numbers.short(chosen.training.parameters))
        teacher = view.teacher_of(result)
        if teacher and teacher.training:
            share = numbers.significant(chosen.training.parameters / teacher.training.parameters, 2)
            size += t("sizes.share", share=share)
        return t("sizes.smallest", candidate=_name(chosen, result, t), size=size) + unsettled
    return unsettled or t("sizes.none", count=found.sizes)


def crossings(result: Result, t: Text) -> list[str]:
    """Where a line through the sizes meets a gate."""
    several = len({found.precision for found in view.students(result).values()}) > 1
    lines = []
    for one in result.sizes.crossings if result.sizes else ():
        bounds = [
            None if bound is None else numbers.short(bound) for bound in (one.parameters.low, one.parameters.high)
        ]
        known = "both" if all(bounds) else "low" if bounds[0] else "high" if bounds[1] else "none"
        size = t(f"sizes.crossing_{known}", value=numbers.short(one.parameters.value), low=bounds[0], high=bounds[1])
        arm = f"{one.arm} {one.precision}" if several else one.arm
        lines.append(t("sizes.crossing", gate=view.gate_name(one.metric, t), arm=arm, size=size))
    return lines


def _name(candidate: Candidate, result: Result, t: Text) -> str:
    precisions = {other.precision for other in view.students(result).values()}
    arm = f"{candidate.arm} {candidate.precision}" if len(precisions) > 1 else candidate.arm
    return t("sizes.name", size=candidate.size, arm=arm)


def feature_cost(result: Result, t: Text) -> str | None:
    """Own seconds and memory of feature-kd over logit-kd's, size by size. Timed once: no interval, so no finding."""
    trained: dict[tuple[str | None, str], Candidate] = {}
    for candidate in view.students(result).values():
        trained.setdefault((candidate.size, candidate.arm), candidate)
    pairs = [[trained.get((size, arm)) for arm in PAIR] for size in dict.fromkeys(size for size, _ in trained)]
    both = [tuple(c.training for c in pair) for pair in pairs if all(c and c.training for c in pair)]
    times = [a / b for a, b in ((own_seconds(x), own_seconds(y)) for x, y in both) if a and b]
    memory = [a.memory_bytes / b.memory_bytes for a, b in both if a.memory_bytes and b.memory_bytes]
    if not times:
        return None
    said = t("cost.features", time=_between(times, t), count=len(times))
    return said + (t("cost.features_memory", memory=_between(memory, t)) if memory else "")


def own_seconds(training: object) -> float | None:
    """Without the share of the teacher's pass."""
    return None if training.seconds is None else training.seconds - (training.teacher_seconds or 0.0)


def _between(ratios: list[float], t: Text) -> str:
    low, high = (numbers.significant(ratio) for ratio in (min(ratios), max(ratios)))
    return low if low == high else numbers.spread(low, high, t)
