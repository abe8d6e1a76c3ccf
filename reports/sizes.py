"""How small a student may be, in words."""

from featkd.result import Candidate, Result
from reports import numbers, view
from reports.text import Text


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


def _name(candidate: Candidate, result: Result, t: Text) -> str:
    precisions = {other.precision for other in view.students(result).values()}
    arm = f"{candidate.arm} {candidate.precision}" if len(precisions) > 1 else candidate.arm
    return t("sizes.name", size=candidate.size, arm=arm)
