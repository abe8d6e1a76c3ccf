"""How a go is put into service: how many requests reveal that it is worse than the gate allows.

    margin  = what the gate lets go of the teacher's lead over chance, in accuracy
    shadow  = (var(difference) + margin (1 - margin)) ((z_0.95 + z_0.8) / margin)^2      both answer each: paired
    canary  = (p (1 - p) + q (1 - q)) ((z_0.95 + z_0.8) / margin)^2      each answers its own: for each of the two

The variance today is that of a student that loses nothing more: a loss of the margin adds so many examples that differ.
A loss of that size is then seen, at 5 % on one side, in four of five cases (Chow, Shao & Wang 2008, section 4.2).
"""

import math

from scipy.special import ndtri

from featkd import spec
from featkd.measure.statistics import LEVEL, is_accuracy
from featkd.result import Candidate, Rollout, Score

ALPHA, POWER = 0.05, 0.8


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
    if apart is None or apart.low is None or apart.high is None or margin <= 0:
        return None
    error = (apart.high - apart.low) / 2 / float(ndtri((1 + LEVEL) / 2))
    times = ((float(ndtri(1 - ALPHA)) + float(ndtri(POWER))) / margin) ** 2
    p, q = mine.estimate.value, theirs.estimate.value
    return Rollout(
        task=task,
        margin=margin,
        shadow_requests=math.ceil((error**2 * mine.examples + margin * (1 - margin)) * times),
        canary_requests=math.ceil((p * (1 - p) + q * (1 - q)) * times),
    )
