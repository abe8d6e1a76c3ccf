"""From evidence to candidates: what is missing says why and is never a go."""

import numpy as np
import pandas
import pytest

from featkd import result, spec, specfile
from featkd.decide import assemble
from featkd.decide import evidence as known
from featkd.decide.evidence import Evidence
from featkd.measure import statistics
from featkd.result import Adequacy

POC = specfile.validate(
    {
        "name": "x",
        "data": {"files": ["a"]},
        "teacher": {"model": "m"},
        "students": [{"name": "s", "layers": 1}],
        "training": {"tokens": 1},
        "quality": {"tasks": ["heldout_continuation"]},
        "gates": [{"metric": "quality.heldout_continuation.retained", "at_least": 0.5}],
    }
)
CHANCE = {"heldout_continuation": 0.25}
ADEQUATE = Adequacy(adequate=True, action="none", checks=[])
WARNED = Adequacy(adequate=False, action="warned", checks=[])
STOPPED = Adequacy(adequate=False, action="stopped", checks=[])


def samples(accuracy, n=400, seed=0):
    right = np.random.default_rng(seed).random(n) < accuracy
    return pandas.DataFrame(
        {
            "task": "heldout_continuation",
            "doc_id": range(n),
            "metric": "acc",
            "score": right.astype(float),
            "weight": 1.0,
            "choice": np.where(right, 0, 1),
            "gold": 0,
            "n_choices": 4,
        }
    )


def evidence(**students):
    return [
        Evidence("teacher", "teacher", samples=samples(0.9)),
        *(Evidence(n, n, "s", **e) for n, e in students.items()),
    ]


@pytest.mark.parametrize("why", ["parity-failed", "export-failed"])
def test_a_candidate_that_cannot_be_shipped_is_a_no_go_that_says_so(why):
    rows = evidence(sft={"samples": samples(0.8)}, **{"logit-kd": {"why": why, "failure": "the reason"}})
    found = assemble.candidates(POC, rows, CHANCE, ADEQUATE)
    failed = found["logit-kd"]
    assert (failed.verdict.verdict, failed.verdict.why, failed.failure) == ("no-go", why, "the reason")
    assert failed.quality.why == failed.latency.why == failed.roi.why == why
    assert found["sft"].verdict.verdict == "go"


def test_after_an_inadequate_teacher_no_student_is_judged():
    rows = evidence(sft={"samples": samples(0.95)}, **{"logit-kd": {}})
    found = assemble.candidates(POC, rows, CHANCE, STOPPED)
    for name in ("sft", "logit-kd"):
        assert (found[name].verdict.verdict, found[name].verdict.why) == ("inconclusive", "teacher-inadequate")


def test_with_an_inadequate_teacher_that_was_only_warned_of_no_go_is_kept():
    rows = evidence(sft={"samples": samples(0.85)}, **{"logit-kd": {"samples": samples(0.3)}})
    found = assemble.candidates(POC, rows, CHANCE, WARNED)
    assert (found["sft"].verdict.verdict, found["sft"].verdict.why) == ("inconclusive", "teacher-inadequate")
    assert [gate.outcome for gate in found["sft"].verdict.gates] == ["pass"]
    assert (found["logit-kd"].verdict.verdict, found["logit-kd"].verdict.why) == ("no-go", "gates")


def test_a_student_that_misses_a_latency_target_is_no_go():
    cost = spec.Cost(max_ttft_ms=5, max_inter_token_ms=50)
    for ttft_ms, verdict in ((1.0, ("go", "gates")), (9.0, ("no-go", "target-missed"))):
        rows = evidence(sft={"samples": samples(0.85), "latency": timed(ttft_ms)})
        rows[0].latency = timed(2.0)
        found = assemble.candidates(POC.model_copy(update={"cost": cost}), rows, CHANCE, ADEQUATE)["sft"]
        assert (found.verdict.verdict, found.verdict.why) == verdict


def timed(ttft_ms, paces=(1.0, 1.01, 1.02)):
    """What featkd.measure.latency tells."""
    rounds = [
        {"batches": {"1": {"ttft_ms": [ttft_ms * pace] * 3, "inter_token_ms": [[pace] * 4] * 3}},
         "peak_rss_bytes": 2.0, "import_rss_bytes": 1.0, "device_bytes": None, "joules": None, "energy_requests": 0}
        for pace in paces
    ]  # fmt: skip
    return {"provider": "x", "prompt_tokens": 8, "new_tokens": 5, "file_bytes": 1, "cache_bytes_per_token": 8,
            "energy": "energy-counter", "rounds": rounds}  # fmt: skip


def test_without_a_measured_control_no_student_is_a_go():
    rows = evidence(sft={"why": "parity-failed"}, **{"logit-kd": {"samples": samples(0.85)}})
    found = assemble.candidates(POC, rows, CHANCE, ADEQUATE)
    assert (found["sft"].verdict.verdict, found["sft"].verdict.why) == ("no-go", "parity-failed")
    assert (found["logit-kd"].verdict.verdict, found["logit-kd"].verdict.why) == ("inconclusive", "no-control")
    assert [gate.outcome for gate in found["logit-kd"].verdict.gates] == ["pass"]


@pytest.mark.parametrize(("metric", "chance"), [("acc", 0.25), ("acc_norm", 0.25), ("mcc", None), ("f1", None)])
def test_guessing_among_the_choices_is_known_for_accuracies_only(metric, chance):
    rows = samples(0.9).assign(task="foreign", metric=metric)
    assert known.scores(rows, rows, CHANCE)["foreign"].chance == chance


def test_the_teacher_beside_itself_is_the_very_same_rows(monkeypatch):
    seen = []
    monkeypatch.setattr(known.statistics, "score", lambda rows, beside, chance, level: seen.append(rows is beside))
    teacher = samples(0.9)
    known.scores(teacher, teacher, CHANCE)
    known.scores(samples(0.9), teacher, CHANCE)
    assert seen == [True, False]


def test_retained_quality_and_agreement_by_hand():
    rows = evidence(sft={"samples": samples(0.6, seed=1)})
    found = assemble.candidates(POC, rows, CHANCE, ADEQUATE)["sft"]
    teacher, student = rows[0].samples, rows[1].samples
    expected = (student.score.mean() - 0.25) / (teacher.score.mean() - 0.25)
    assert found.quality.tasks["heldout_continuation"].retained.value == pytest.approx(expected)
    agreement = found.fidelity.tasks["heldout_continuation"]
    assert agreement.agreement.value == pytest.approx((teacher.choice == student.choice).mean())
    assert agreement.correct_to_wrong.value == pytest.approx(((teacher.score == 1) & (student.score == 0)).mean())


VARIED = (1.0, 1.02, 1.0)
GATED = [{"metric": "quality.heldout_continuation.retained", "at_least": 0.8}]


def sized(name, arm, parameters, accuracy, precision="fp32", **more):
    training = result.Training(parameters=parameters)
    return Evidence(name, arm, name, precision, samples=samples(accuracy, seed=0), training=training, **more)


def judged(*students, gates=GATED):
    rows = [Evidence("teacher", "teacher", samples=samples(0.9)), *students]
    poc = POC.model_copy(update={"gates": [spec.Gate(**gate) for gate in gates]})
    return {name: found.verdict for name, found in assemble.candidates(poc, rows, CHANCE, ADEQUATE).items()}


def test_a_small_student_is_no_go_on_the_luck_of_its_sample_where_a_larger_one_is_not():
    """Students of one way of training are tested from the largest down; each line keeps its own account."""
    found = judged(
        sized("l", "sft", 300, 0.77), sized("m", "sft", 200, 0.9), sized("xl", "sft", 400, 0.9),
        sized("k", "logit-kd", 100, 0.9), sized("k8", "logit-kd", 100, 0.9, "int8"),
    )  # fmt: skip
    assert (found["xl"].verdict, found["l"].verdict) == ("go", "inconclusive")
    assert (found["m"].verdict, found["m"].why) == ("inconclusive", "not-reached")
    assert [found[name].verdict for name in ("k", "k8")] == ["go", "go"]
    assert found["k"].level == pytest.approx(1 - 2 * 0.04 / 3) and found["l"].level == 0.95  # what k and k8 left
    assert found["m"].level is None
    (gate,) = found["l"].gates
    assert gate.outcome == "inconclusive" and gate.examples_needed > 400


def test_a_gate_against_the_champion_holds_students_against_it_on_the_same_examples():
    """The teacher's gate is passed; the champion is better than the teacher, so that one student falls behind it."""
    champion = Evidence("champion", "champion", samples=samples(0.97), artefact="c", latency=timed(1.0))
    sft = {"samples": samples(0.84), "latency": timed(2.0, VARIED)}
    itself = {"samples": samples(0.97), "artefact": "c", "latency": timed(0.5, VARIED)}
    rows = evidence(sft=sft, **{"logit-kd": itself})
    rows[0].latency = timed(4.0)
    own = {"metric": "quality.heldout_continuation.retained", "at_least": 0.9, "against": "champion"}
    speed = {"metric": "latency.ttft_speedup", "at_least": 1.0}
    rules = [spec.Gate(**rule) for rule in (*GATED, own, speed, speed | {"against": "champion"})]
    poc = POC.model_copy(update={"gates": rules})
    found = assemble.candidates(poc, rows, CHANCE, ADEQUATE, champion=champion)

    behind, itself = found["sft"].verdict, found["logit-kd"].verdict
    assert [gate.outcome for gate in behind.gates] == ["pass", "fail", "pass", "fail"]
    expected = statistics.score(rows[1].samples, champion.samples, 0.25, behind.level or 0.95).retained
    assert (behind.verdict, behind.gates[1].observed) == ("no-go", expected)
    assert [one.gates[3].observed.value for one in (behind, itself)] == pytest.approx([0.5, 2.0], rel=0.02)
    assert itself.verdict == "go" and itself.gates[1].observed == result.Interval(value=1.0, low=1.0, high=1.0)
    apart = [one.estimate for one in assemble.beside_champion(rows, champion)]
    assert apart[0].high < 0 and apart[1] == result.Interval(value=0.0, low=0.0, high=0.0)

    alone = assemble.candidates(poc, rows, CHANCE, ADEQUATE)["sft"].verdict
    assert alone.gates[1].observed == alone.gates[0].observed, "the teacher is what serves, while no student does"
    assert {gate.against for gate in alone.gates} == {"teacher"}


def test_where_errors_cost_money_is_judged_by_the_examples_and_at_their_level():
    cost = spec.Cost(error_cost=0.5, error_task="heldout_continuation", engineering_cost=0, requests_per_month=1000)
    money = {"metric": "roi.monthly_saving", "at_least": -1000}
    poc = POC.model_copy(update={"cost": cost, "gates": [spec.Gate(**gate) for gate in (*GATED, money)]})
    rows = evidence(sft={"samples": samples(0.8), "latency": timed(2.0, VARIED)},
                    **{"logit-kd": {"samples": samples(0.9), "latency": timed(2.0, VARIED)}})  # fmt: skip
    rows[0].latency = timed(2.0)
    found = assemble.candidates(poc, rows, CHANCE, ADEQUATE)
    for name, one in found.items():
        if name != "teacher":
            level, score = one.verdict.level, one.quality.tasks["heldout_continuation"]
            lost = statistics.score(rows[1 if name == "sft" else 2].samples, rows[0].samples, 0.25, level).difference
            judged = one.verdict.gates[1].observed
            assert level >= 0.95
            assert one.roi.monthly_saving.value == pytest.approx(500 * score.difference.value)
            assert judged.high - one.roi.monthly_saving.high == pytest.approx(500 * (lost.high - score.difference.high))


def test_beside_the_champion_upkeep_is_none_of_the_student_s():
    cost = spec.Cost(monthly_upkeep=700, redistillations_per_year=12)
    champion = Evidence("champion", "champion", samples=samples(0.9), latency=timed(2.0))
    rows = evidence(sft={"samples": samples(0.9), "latency": timed(2.0, VARIED)})
    rows[0].latency = timed(2.0)
    rules = [{"metric": "roi.monthly_saving", "at_least": -1, "against": who} for who in ("teacher", "champion")]
    poc = POC.model_copy(update={"cost": cost, "gates": [spec.Gate(**rule) for rule in rules]})
    gates = assemble.candidates(poc, rows, CHANCE, ADEQUATE, champion=champion)["sft"].verdict.gates
    assert gates[1].observed.value == 0 and gates[0].observed.value <= -700


def test_one_that_costs_too_much_does_not_stand_in_the_way_of_a_smaller_one():
    speed = {"metric": "latency.decode_speedup", "at_least": 1.5}
    rows = [
        sized("l", "sft", 300, 0.9, latency=timed(2.0, (1.0, 1.02, 1.0))),
        sized("s", "sft", 100, 0.9, latency=timed(2.0, (0.1, 0.11, 0.1))),
    ]
    teacher = Evidence("teacher", "teacher", samples=samples(0.9), latency=timed(2.0))
    poc = POC.model_copy(update={"gates": [spec.Gate(**gate) for gate in (*GATED, speed)]})
    found = assemble.candidates(poc, [teacher, *rows], CHANCE, ADEQUATE)
    assert (found["l"].verdict.verdict, found["s"].verdict.verdict) == ("no-go", "go")
    assert found["l"].verdict.level is None and found["s"].verdict.level == 0.95


def test_an_ablation_explains_and_has_no_verdict():
    ablation = sized("a", "feature-kd-no-norm", 100, 0.9)
    found = judged(sized("s", "sft", 100, 0.9), ablation)
    assert (found["a"].verdict, found["a"].why) == (None, "ablation")
    assert [gate.outcome for gate in found["a"].gates] == ["pass"] and found["s"].level == 0.95


def test_what_another_seed_may_give_stands_beside_the_one_that_ships():
    seeds = {str(seed): samples(accuracy, seed=seed) for seed, accuracy in enumerate((0.9, 0.8, 0.6))}
    student = Evidence("s", "sft", "s", samples=seeds["0"], replicates=seeds)
    found = assemble.candidates(POC, [Evidence("teacher", "teacher", samples=samples(0.9)), student], CHANCE, ADEQUATE)
    quality = found["s"].quality
    ships, recipe = quality.tasks["heldout_continuation"], quality.recipe["heldout_continuation"]
    assert recipe.estimate.value == pytest.approx(np.mean([rows.score.mean() for rows in seeds.values()]))
    assert recipe.retained.high - recipe.retained.low > 3 * (ships.retained.high - ships.retained.low)


def test_what_the_training_text_holds_of_a_task_is_the_same_for_all_and_can_be_gated():
    rows = evidence(sft={"samples": samples(0.9)})
    overlap = pandas.DataFrame({"task": "heldout_continuation", "seen": [True] * 40 + [False] * 360})
    gate = {"metric": "quality.heldout_continuation.overlap", "at_most": 0.05}
    found = assemble.candidates(POC.model_copy(update={"gates": [spec.Gate(**gate)]}), rows, CHANCE, ADEQUATE, overlap)
    for candidate in found.values():
        share = candidate.quality.tasks["heldout_continuation"].overlap
        assert share.low < share.value == 0.1 < share.high
    assert found["sft"].verdict.verdict == "no-go"


def test_arms_of_one_size_are_compared_in_pairs():
    rows = evidence(sft={"samples": samples(0.5, seed=1)}, **{"feature-kd": {"samples": samples(0.7, seed=2)}})
    (pair,) = assemble.comparisons(rows)
    assert (pair.a, pair.b, pair.kind) == ("feature-kd", "sft", "difference")
    assert pair.estimate.value == pytest.approx(rows[2].samples.score.mean() - rows[1].samples.score.mean())
