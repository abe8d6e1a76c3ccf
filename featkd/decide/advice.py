"""What to try next where no student is a go: named from what was measured, the most telling first.

more-examples    the gates of a student are open: so many examples per task would settle them
train-longer     the loss of the student that keeps most still fell in the last quarter of its training, by this share
more-data        it has read its text so often, and learns no more from it (arXiv 2305.16264: four times are as new)
larger-student   gates on quality fail, and the largest student is this share of the teacher
cheaper-student  gates on quality pass, those on speed, memory or money do not
other-layers     what is aligned does harm: feature-kd is behind logit-kd on this task, its whole interval
"""

from collections.abc import Iterator

from featkd.decide.gates import ABOUT_TASKS
from featkd.decide.verdict import quality_kept
from featkd.result import Candidate, Comparison, GateOutcome, NextStep

FALLING = 0.01  # of the loss, in the last quarter
EPOCHS = 4.0
ON_QUALITY = ("quality", "fidelity")
NEARLY = 0.8  # of the teacher's size: a larger student is no student


def advice(candidates: dict[str, Candidate], comparisons: list[Comparison], epochs: float) -> list[NextStep]:
    """epochs: how often the training text was read."""
    judged = {name: found for name, found in candidates.items() if found.arm != "teacher" and found.verdict.verdict}
    if not judged or any(found.verdict.verdict == "go" for found in judged.values()):
        return []
    best = max(judged, key=lambda name: quality_kept(judged[name]))
    steps = [*_examples(judged), *_training(best, judged[best], epochs), *_size(candidates, judged)]
    return [*steps, *_layers(comparisons)]


def _examples(judged: dict[str, Candidate]) -> Iterator[NextStep]:
    """Of the student whose open gates need the fewest."""
    needed = {}
    for name, found in judged.items():
        if found.verdict.verdict == "inconclusive" and found.verdict.why == "gates":
            open_ = [
                one.examples_needed for one in found.verdict.gates if _stops(one) and one.outcome == "inconclusive"
            ]
            if open_ and all(open_):
                needed[name] = max(open_)
    if needed:
        name = min(needed, key=needed.get)
        yield NextStep(code="more-examples", candidate=name, value=needed[name])


def _training(name: str, best: Candidate, epochs: float) -> Iterator[NextStep]:
    curve = best.training.curve if best.training else []
    if len(curve) < 4:
        return
    before, last = curve[-1 - len(curve) // 4]["validation_loss"], curve[-1]["validation_loss"]
    falling = 1 - last / before
    if falling >= FALLING:
        yield NextStep(code="train-longer", candidate=name, value=falling)
    elif epochs >= EPOCHS:
        yield NextStep(code="more-data", candidate=name, value=epochs)


def _size(candidates: dict[str, Candidate], judged: dict[str, Candidate]) -> Iterator[NextStep]:
    failed = {name: {one.metric.split(".")[0] for one in found.verdict.gates if _stops(one) and one.outcome == "fail"}
              for name, found in judged.items() if found.verdict.gates}  # fmt: skip
    if failed and all(sections & set(ON_QUALITY) for sections in failed.values()):
        teacher = next((found.training for found in candidates.values() if found.arm == "teacher"), None)
        sizes = {name: judged[name].training.parameters for name in failed if judged[name].training}
        if teacher and sizes:
            largest = max(sizes, key=sizes.get)
            if sizes[largest] < NEARLY * teacher.parameters:
                yield NextStep(code="larger-student", candidate=largest, value=sizes[largest] / teacher.parameters)
    for name, sections in failed.items():
        if sections and not sections & set(ABOUT_TASKS):
            yield NextStep(code="cheaper-student", candidate=name)
            return


def _layers(comparisons: list[Comparison]) -> Iterator[NextStep]:
    for one in comparisons:
        if (one.a.split("-")[:2], one.b.split("-")[:2]) == (["feature", "kd"], ["logit", "kd"]):
            low, high = one.estimate.low, one.estimate.high
            worse = (low is not None and low > 1) if one.kind == "ratio" else (high is not None and high < 0)
            if worse and not one.a.startswith("feature-kd-no"):
                yield NextStep(code="other-layers", candidate=one.a, task=one.task)
                return


def _stops(gate: GateOutcome) -> bool:
    return gate.severity == "block"
