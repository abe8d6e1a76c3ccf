"""How a go is put into service: how many requests reveal that it is worse than the gate allows.

    margin   = what the gate lets go of the teacher's lead over chance, in accuracy
    expected = what the student was found to lose; less than the margin, for it is a go
    shadow   = (var(difference) + margin - expected) (z / (margin - expected))^2     both answer each request: paired
    canary   = (p (1 - p) + q (1 - q)) (z / (margin - expected))^2                   each answers its own: for each

with z = z_0.95 + z_0.8, p the accuracy of a student that loses the margin, q the teacher's. It is taken back when it
loses more than expected, at 5 % on one side: one that loses the margin is then found in four of five cases (Chow, Shao
& Wang 2008, section 4.2), one that is as it was measured is taken back in one of twenty looks. The variance today is
that of a student that loses no more than expected; what it loses more adds as many examples that differ.
"""

import math

from scipy.special import ndtri

from featkd import spec
from featkd.measure.statistics import LEVEL, is_accuracy
from featkd.result import Candidate, Rollout, Score

ALPHA, POWER = 0.05, 0.8
Z = float(ndtri(1 - ALPHA)) + float(ndtri(POWER))


def rollout(candidate: Candidate, teacher: Candidate, rules: list[spec.Gate]) -> Rollout | None:
    """Of the blocking gate on an accuracy that takes most requests; None where there is none."""
    plans = []
    for rule in rules:
        section, *task, name = rule.metric.split(".")
        key = ".".join(task)
        if rule.severity != "block" or (section, name) != ("quality", "retained") or rule.at_least is None:
            continue
        mine, theirs = candidate.quality.tasks.get(key), teacher.quality.tasks.get(key)
        if mine and theirs and is_accuracy(mine.metric) and theirs.chance is not None and rule.at_least < 1:
            plans.append(_plan(key, mine, theirs, rule.at_least))
    return max((plan for plan in plans if plan), key=lambda plan: plan.shadow_requests, default=None)


def _plan(task: str, mine: Score, theirs: Score, at_least: float) -> Rollout | None:
    margin = (1 - at_least) * (theirs.estimate.value - theirs.chance)
    apart = mine.difference
    if apart is None or apart.low is None or apart.high is None:
        return None
    expected = max(0.0, -apart.value)
    if margin <= expected:
        return None
    error = (apart.high - apart.low) / 2 / float(ndtri((1 + LEVEL) / 2))
    times = (Z / (margin - expected)) ** 2
    q = theirs.estimate.value
    p = q - margin
    return Rollout(
        task=task,
        margin=margin,
        expected=expected,
        shadow_requests=math.ceil((error**2 * mine.examples + margin - expected) * times),
        canary_requests=math.ceil((p * (1 - p) + q * (1 - q)) * times),
    )
