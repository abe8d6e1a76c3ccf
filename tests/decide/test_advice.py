"""What to try next is named from what was measured."""

import pytest
from make_candidates import candidate

from featkd.decide.advice import advice
from featkd.result import Comparison, Decision, GateOutcome, Interval

QUALITY, SPEED = "quality.heldout_continuation.retained", "latency.decode_speedup"
FLAT = [{"tokens": n, "validation_loss": 3.0} for n in range(8)]


def gate(metric, outcome, needed=None, severity="block"):
    return GateOutcome(metric=metric, at_least=0.9, severity=severity, outcome=outcome, examples_needed=needed,
                       observed=Interval(value=0.8, low=0.7, high=0.95))  # fmt: skip


def judged(name, verdict, *gates, curve=FLAT, parameters=400_000):
    found = candidate(name)
    training = found.training.model_copy(update={"curve": curve, "parameters": parameters})
    decision = Decision(verdict=verdict, why="gates", gates=list(gates))
    return found.model_copy(update={"training": training, "verdict": decision})


def told(students, comparisons=(), epochs=1.0):
    teacher = candidate("teacher")
    teacher = teacher.model_copy(update={"training": teacher.training.model_copy(update={"parameters": 1_000_000})})
    return [(one.code, one.candidate, one.value) for one in
            advice({"teacher": teacher, **students}, list(comparisons), epochs)]  # fmt: skip


def test_nothing_where_there_is_a_go():
    assert told({"sft": judged("sft", "go", gate(QUALITY, "pass")), "logit-kd": judged("logit-kd", "no-go")}) == []


def test_more_examples_for_the_student_that_needs_fewest():
    students = {
        "sft": judged("sft", "no-go", gate(QUALITY, "fail")),
        "logit-kd": judged("logit-kd", "inconclusive", gate(QUALITY, "inconclusive", 9000)),
        "feature-kd": judged("feature-kd", "inconclusive", gate(QUALITY, "inconclusive", 4000),
                             gate(SPEED, "pass"), gate(QUALITY, "inconclusive", 70, severity="warn")),
    }  # fmt: skip
    assert told(students) == [("more-examples", "feature-kd", 4000)]


@pytest.mark.parametrize(
    ("losses", "epochs", "step"),
    [([4.0, 3.8, 3.6, 3.4, 3.2, 3.1, 3.05, 3.0], 1.0, "train-longer"), ([3.0] * 8, 6.0, "more-data"),
     ([3.0] * 8, 1.0, None)],
)  # fmt: skip
def test_training(losses, epochs, step):
    curve = [{"tokens": n, "validation_loss": loss} for n, loss in enumerate(losses)]
    found = told({"sft": judged("sft", "no-go", gate(QUALITY, "fail"), curve=curve)}, epochs=epochs)
    assert found[0][0] == (step or "larger-student")


def test_a_larger_one_where_all_fail_on_quality_a_cheaper_one_where_one_fails_on_cost():
    small = judged("sft", "no-go", gate(QUALITY, "fail"))
    assert told({"sft": small}) == [("larger-student", "sft", 0.4)]
    assert told({"sft": judged("sft", "no-go", gate(QUALITY, "fail"), parameters=900_000)}) == []
    dear = judged("logit-kd", "no-go", gate(QUALITY, "pass"), gate(SPEED, "fail"))
    assert told({"sft": small, "logit-kd": dear}) == [("cheaper-student", "logit-kd", None)]


def test_a_candidate_that_failed_or_leans_tells_nothing_of_size():
    broken = candidate("sft").model_copy(update={"verdict": Decision(verdict="no-go", why="parity-failed")})
    small = judged("logit-kd", "no-go", gate(QUALITY, "fail"))
    assert told({"sft": broken, "logit-kd": small}) == [("larger-student", "logit-kd", 0.4)]
    assert told({"sft": judged("sft", "no-go", gate("guardrails.own.stereotype.worse", "fail"))}) == []


def test_other_layers_where_features_do_harm():
    worse = Comparison(task="t", a="feature-kd", b="logit-kd", kind="difference",
                       estimate=Interval(value=-0.1, low=-0.2, high=-0.01))  # fmt: skip
    open_ = worse.model_copy(update={"estimate": Interval(value=-0.1, low=-0.2, high=0.01)})
    students = {"feature-kd": judged("feature-kd", "no-go", gate(QUALITY, "pass"), gate(SPEED, "fail"))}
    assert ("other-layers", "feature-kd", None) in told(students, [worse])
    assert ("other-layers", "feature-kd", None) not in told(students, [open_])
