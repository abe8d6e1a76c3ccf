"""What realistic results decide and advise."""

from featkd import spec
from featkd.result import Crossing, Interval, Layers, NextStep, Rollout, Transfer

ROLLOUT = Rollout(task="heldout_continuation", margin=0.112, expected=0.041, shadow_requests=412, canary_requests=1187)
NEXT = [
    NextStep(code="more-examples", candidate="feature-kd", value=3912),
    NextStep(code="train-longer", candidate="feature-kd", value=0.0312),
    NextStep(code="more-data", candidate="logit-kd", value=6.2),
    NextStep(code="larger-student", candidate="sft", value=0.41),
    NextStep(code="cheaper-student", candidate="sft"),
    NextStep(code="other-layers", candidate="feature-kd", task="heldout_continuation"),
]
CROSSINGS = [
    Crossing(
        metric="quality.heldout_continuation.retained",
        arm=arm,
        precision="fp32",
        parameters=Interval(value=3.1e6, low=low, high=high),
    )
    for arm, low, high in (("sft", None, None), ("logit-kd", 2.4e6, 3.9e6), ("feature-kd", None, 3.9e6))
]

RULES = [
    spec.Gate(metric="quality.heldout_continuation.retained", at_least=0.6),
    spec.Gate(metric="quality.heldout_perplexity.retained", at_least=0.8),
]


def transfer(arm: str) -> Transfer:
    """A student of 4 blocks beside a teacher of 8."""
    if arm == "teacher":
        return Transfer(why="baseline")
    learned = {"sft": 0.5, "logit-kd": 0.6, "feature-kd": 0.93}[arm]
    before, after = (
        Layers(
            cka=[[max(0.02, most - 0.13 * abs(2 * mine - its)) for its in range(9)] for mine in range(5)],
            cosine=[most - 0.05 * layer for layer in range(5)],
            norm_ratio=[most - 0.04 * layer for layer in range(5)],
        )
        for most in (0.4, learned)
    )
    return Transfer(tokens=16_288, before=before, after=after)
