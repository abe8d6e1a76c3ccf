"""At which size a line through the students crosses a gate: found on planted lines, covered as often as promised."""

import numpy as np
import pandas
import pytest

from featkd import specfile
from featkd.decide.evidence import Evidence
from featkd.decide.frontier import crossings
from featkd.result import Training

SIZES = (1000, 4000, 16_000, 64_000)


def poc(metric="quality.t.retained", **bound):
    return specfile.validate(
        {"name": "x", "data": {"files": ["x"]}, "teacher": {"model": "x"}, "training": {"tokens": 1},
         "students": [{"name": "s", "layers": 1}], "quality": {"tasks": ["t"]},
         "gates": [{"metric": metric, **(bound or {"at_least": 0.7})}]}
    )  # fmt: skip


def evidence(teacher, students, metric="acc", weight=1.0, group=None):
    """students: by number of parameters, their scores [examples]."""

    def table(scores):
        return pandas.DataFrame(
            {"task": "t", "doc_id": range(len(scores)), "metric": metric, "score": np.asarray(scores, float),
             "weight": weight, "n_choices": 4, "group": range(len(scores)) if group is None else group}
        )  # fmt: skip

    made = [
        Evidence(f"sft-{size}", "sft", str(size), training=Training(parameters=size), samples=table(scores))
        for size, scores in students.items()
    ]
    return [Evidence("teacher", "teacher", samples=table(teacher)), *made]


def planted(rng, n=400):
    """Accuracies so that what is retained is 0.4, 0.55, 0.7 and 0.85: the crossing is at the third size."""
    latent = rng.random(n)
    shares = (0.4, 0.55, 0.7, 0.85)
    mixed = [np.where(rng.random(n) < 0.5, latent, rng.random(n)) < 0.25 + 0.5 * share for share in shares]
    return evidence(latent < 0.75, dict(zip(SIZES, mixed, strict=True)))


def test_the_crossing_is_found_and_its_interval_holds_it_as_often_as_promised():
    rng, held, values = np.random.default_rng(0), 0, []
    for _ in range(120):
        (found,) = crossings(poc(), planted(rng), {}) or [None]
        if found is None:  # by chance the line leaves the sizes that were tried
            continue
        low, high = found.parameters.low, found.parameters.high
        held += (low is None or low <= 16_000) and (high is None or 16_000 <= high)
        values.append(found.parameters.value)
    assert len(values) > 112 and 0.91 <= held / len(values) <= 0.99
    assert np.median(values) == pytest.approx(16_000, rel=0.1)


def test_an_exact_line_of_perplexities():
    """log ratio = 0.8 - 0.1 log2(size / 1000): 0.5 at three doublings."""
    words = 20.0
    teacher = -words * np.linspace(2, 3, 50)
    noise = np.random.default_rng(0).normal(0, 0.01, (len(SIZES), 50))
    losses = zip(SIZES, noise - noise.mean(1, keepdims=True), strict=True)
    students = {size: teacher - words * (0.8 - 0.1 * np.log2(size / 1000) + off) for size, off in losses}
    rows = evidence(teacher, students, "token_perplexity", words)
    (found,) = crossings(poc("quality.t.ratio", at_most=float(np.exp(0.5))), rows, {})
    assert found.parameters.value == pytest.approx(8000, rel=0.01) and found.arm == "sft"
    assert found.parameters.low == pytest.approx(8000, rel=0.05) == found.parameters.high


def test_what_has_no_figure_has_no_crossing():
    rng = np.random.default_rng(2)
    generated = planted(rng)
    for one in generated:
        one.samples["metric"], one.samples["n_choices"] = "exact_match", 0
    assert crossings(poc(), generated, {}) == []  # nothing is known of guessing
    assert len(crossings(poc(), generated, {"t": 0.25})) == 1
    group = specfile.validate(poc().model_dump() | {"quality": {"tasks": ["mmlu"]},
                              "gates": [{"metric": "quality.mmlu.retained", "at_least": 0.7}]})  # fmt: skip
    assert crossings(group, planted(rng), {}) == []
    at_chance = planted(rng)
    at_chance[0].samples["score"] = 0.0
    assert crossings(poc(), at_chance, {}) == []


def test_nothing_is_told_beyond_the_sizes_tried_or_of_two_sizes():
    rng = np.random.default_rng(1)
    rows = planted(rng, 4000)
    assert crossings(poc(at_least=0.95), rows, {}) == []
    assert crossings(poc(), rows[:3], {}) == []
    (open_,) = crossings(poc(), planted(rng, 60), {})
    assert open_.parameters.low is None or open_.parameters.high is None
