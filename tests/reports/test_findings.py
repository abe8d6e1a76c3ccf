"""What a page says of a result: the sentence, the gates, the seeds, the limits; in both languages."""

import make_results
import pytest
from lxml import html

from featkd.align.projectors import KINDS
from featkd.result import Decision, GateOutcome, Guardrails, Interval, Quality, Recommendation, Signal
from reports import alignment, behaviour, findings, limits, signal, text, view
from reports.page import render, summary_markdown

EN, JA = text.load("en"), text.load("ja")


def with_student(result, name, **update):
    changed = result.candidates[name].model_copy(update=update)
    return result.model_copy(update={"candidates": result.candidates | {name: changed}})


def without_lead(difference):
    """The teacher does not beat chance on one of three tasks, so there is no retained."""
    base = make_results.full()
    tasks = dict(base.candidates["feature-kd"].quality.tasks)
    tasks["heldout_routing"] = tasks["heldout_routing"].model_copy(update={"retained": None, "difference": difference})
    return with_student(base, "feature-kd", quality=Quality(tasks=tasks))


def test_quality_kept_is_said_of_as_many_tasks_as_it_is_known_for():
    result = without_lead(Interval(value=-0.01, low=-0.03, high=0.01))
    said = findings.verdict_sentence(result, EN)
    assert "keeps 85% or more of the teacher's quality on 2 of 3 tasks" in said
    assert "weakest task" not in said and "worse" not in said
    assert "全 3 タスクのうち 2 タスクで教師モデルの品質の 85% 以上を維持" in findings.verdict_sentence(result, JA)
    assert findings.key_figures(result, EN)[0][0].startswith("Quality kept on 2 of 3 tasks, weakest: Choosing")


def test_a_loss_on_a_task_without_retained_quality_is_named():
    result = without_lead(Interval(value=-0.1, low=-0.2, high=-0.05))
    assert "tasks, is worse than the teacher on “Routing to the right topic”, gen" in findings.verdict_sentence(
        result, EN
    )
    assert "「適切な分類先への振り分け」では教師モデルを下回る" in findings.verdict_sentence(result, JA)


def all_students(why, outcome="pass"):
    gate = GateOutcome(metric="latency.decode_speedup", at_least=1, severity="warn", outcome=outcome)
    result = make_results.full()
    for name in view.students(result):
        result = with_student(result, name, verdict=Decision(verdict="inconclusive", why=why, gates=[gate]))
    return result.model_copy(update={"recommendation": Recommendation(code="undecided")})


@pytest.mark.parametrize(
    ("why", "en", "ja"),
    [
        ("no-blocking-gates", "the gates of the specification only warn", "注意喚起のみに使われる"),
        ("no-control", "the control, was not measured", "対照となる通常のファインチューニング"),
    ],
)
def test_why_nothing_is_settled_is_said_in_the_sentence_and_beside_the_gates(no_charts, why, en, ja):
    result = all_students(why)
    assert en in findings.verdict_sentence(result, EN)
    assert ja in findings.verdict_sentence(result, JA)
    for t in (EN, JA):
        assert t("gate_section.besides", reason=t.code("why", why)) in render(result, t.language)


def test_a_gate_on_a_group_names_the_tasks_that_were_measured():
    base = make_results.full()
    gate = GateOutcome(metric="quality.mmlu.retained", at_least=0.9, severity="block", outcome="missing")
    verdict = Decision(verdict="inconclusive", why="gates", gates=[gate])
    (row,) = findings.gate_rows(base.candidates["sft"].model_copy(update={"verdict": verdict}), EN)
    assert row.note.startswith("not among the tasks measured: Perplexity on held-out text, Choosing")
    measured = [row.note for row in findings.gate_rows(base.candidates["sft"], EN)]
    assert measured == [None] * 5


def test_the_mean_over_seeds_stands_in_the_table_and_not_in_the_summary():
    result = make_results.several_seeds()
    rows = [row for row in view.comparison(result, EN).rows if row.label == "Mean over 3 trainings (seeds)"]
    assert len(rows) == 3
    cell = rows[1].cells["sft"]
    assert cell.kind == "finding" and cell.range
    assert rows[1].cells["teacher"].kind == "missing"
    assert "trainings" not in summary_markdown(result, "en")
    assert not any("Mean over" in row.label for row in view.comparison(make_results.full(), EN).rows)


@pytest.mark.parametrize("t", [EN, JA])
def test_a_gate_that_is_open_tells_how_many_examples_would_settle_it(t):
    observed = Interval(value=0.6, low=0.55, high=0.65)
    gate = GateOutcome(
        metric="quality.heldout_continuation.retained", at_least=0.6, severity="block", outcome="inconclusive",
        observed=observed, examples_needed=23_432,
    )  # fmt: skip
    verdict = Decision(verdict="inconclusive", why="gates", gates=[gate])
    (row,) = findings.gate_rows(make_results.full().candidates["sft"].model_copy(update={"verdict": verdict}), t)
    assert row.note == t("gate_section.needed", count="23,000")


def test_what_examples_share_is_told():
    base = make_results.full()
    assert not any("documents;" in line for line in limits.stated(base, EN))
    score = base.candidates["sft"].quality.tasks["heldout_continuation"]
    tasks = {"heldout_continuation": score.model_copy(update={"documents": 37})}
    quality = base.candidates["sft"].quality.model_copy(update={"tasks": tasks})
    found = base.model_copy(
        update={"candidates": {"sft": base.candidates["sft"].model_copy(update={"quality": quality})}}
    )
    assert any("are from 37 documents;" in line for line in limits.stated(found, EN))


def test_intervals_do_not_speak_for_other_seeds():
    assert EN("limits.one_seed") in limits.stated(make_results.full(), EN)
    several = limits.stated(make_results.several_seeds(), EN)
    assert EN("limits.one_seed") not in several
    assert EN("limits.several_seeds", trainings=3) in several
    assert JA("limits.several_seeds", trainings=3) in limits.stated(make_results.several_seeds(), JA)


def test_a_task_that_the_training_text_holds_in_part_is_a_limit_and_a_row_only_where_it_is_gated():
    result = make_results.full()
    for t in (EN, JA):
        share = dict(view.overlaps(result, t))[t.task("heldout_routing")]
        assert t("limits.overlap", task=t.task("heldout_routing"), share=share) in limits.stated(result, t)
        assert not any(t.task("heldout_perplexity") in line for line in limits.stated(result, t))
    assert ("Routing to the right topic", ("2.2%", "0.8–3.7%")) in view.overlaps(result, EN)
    gated = GateOutcome(metric="quality.heldout_routing.overlap", at_most=0.05, severity="warn", outcome="pass")
    verdict = result.candidates["sft"].verdict.model_copy(update={"gates": [gated]})
    found = {"sft": result.candidates["sft"].model_copy(update={"verdict": verdict})}
    with_gate = result.model_copy(update={"candidates": result.candidates | found})
    labels = [
        [row.label for row in view.comparison(one, EN).rows].count(EN("rows.overlap")) for one in (result, with_gate)
    ]
    assert labels == [0, 1]


def test_rates_priced_at_other_lengths_are_a_limit():
    base = make_results.full()
    cost = {
        "input_tokens_per_request": {"value": 500.0, "source": None},
        "output_tokens_per_request": {"value": 64.0, "source": None},
    }
    spec = base.spec | {"latency": {"prompt_tokens": 64, "new_tokens": 64}, "cost": cost}
    for t in (EN, JA):
        said = t("limits.lengths", prompt=64, new=64, input=500, output=64)
        assert said in limits.stated(base.model_copy(update={"spec": spec}), t)
        assert said not in limits.stated(base, t)
    same = spec | {"latency": {"prompt_tokens": 500, "new_tokens": 64}}
    assert not any("priced at" in line for line in limits.stated(base.model_copy(update={"spec": same}), EN))


def test_a_stage_of_a_candidate_is_translated_up_to_the_name(no_charts):
    cells = html.fromstring(render(make_results.full(), "ja")).xpath("//td[1]/text()")
    assert "ONNX 変換 teacher" in cells and "精度の測定 feature-kd seed 0" in cells


def test_figures_without_intervals_are_bare():
    rows = {row.label: row.cells["sft"] for row in view.comparison(make_results.without_intervals(), EN).rows}
    for key in ("ttft_ms", "decode_speedup", "peak_rss", "monthly_saving", "payback"):
        cell = rows[EN(f"rows.{key}")]
        assert (cell.kind, cell.range) == ("bare", None)


def test_a_no_names_the_student_that_comes_closest_and_what_it_fails():
    def gate(task, outcome, severity="block"):
        return GateOutcome(
            metric=f"quality.{task}.retained", at_least=0.7, severity=severity, outcome=outcome,
            observed=Interval(value=0.5, low=0.4, high=0.6),
        )  # fmt: skip

    routing, perplexity = gate("heldout_routing", "fail"), gate("heldout_perplexity", "fail")
    told = gate("heldout_continuation", "fail", "warn")
    result = make_results.full().model_copy(update={"recommendation": Recommendation(code="keep-teacher")})
    for name, gates in [("sft", [routing, perplexity]), ("logit-kd", [routing, told]), ("feature-kd", [routing, told])]:
        result = with_student(result, name, verdict=Decision(verdict="no-go", why="gates", gates=gates))
    assert findings.verdict_sentence(result, EN) == (
        "Keep the teacher: no student passes every gate. feature-kd comes closest; it fails "
        "“Quality retained: Routing to the right topic”."
    )
    assert "最も近いのは feature-kd で、満たさない基準は「" in findings.verdict_sentence(result, JA)


def aligned(**update):
    training = make_results.full().candidates["feature-kd"].training
    changed = training.model_copy(update={"alignment": training.alignment.model_copy(update=update)})
    return with_student(make_results.full(), "feature-kd", training=changed)


def test_a_page_tells_how_states_were_aligned_and_what_the_guard_did():
    (said,) = alignment.stated(aligned(), EN)
    assert said.startswith(
        "feature-kd: Inner states were aligned between student layer 0 and teacher layer 0 and student"
    )
    assert "learned linear projection" in said and "was kept to its planned end" in said
    (dropped,) = alignment.stated(aligned(dropped_at=0.417), EN)
    assert "After 42% of the training the same student without this alignment did better" in dropped
    (auto,) = alignment.stated(aligned(layer_map="auto", similarity=[0.913, 0.5], guarded=False), EN)
    assert "(similarity 0.91)" in auto and "by similarity" in auto and "was not watched" in auto
    assert "学習の 42% の時点で" in alignment.stated(aligned(dropped_at=0.417), JA)[0]
    page = html.fromstring(render(aligned(), "en"))
    assert page.xpath("//section[@id='glossary']") and page.xpath("//a[@href='#glossary']")


def test_a_page_tells_what_was_kept_of_the_teacher():
    of_outputs, of_all = signal.stated(make_results.full(), EN)
    assert of_outputs.startswith("logit-kd: It learned from what one pass of the teacher left on the disk")
    assert "384 bytes per token" in of_outputs and "64 likeliest next tokens, which hold 96.1%" in of_outputs
    assert "inner states" not in of_outputs
    assert "64 directions were kept" in of_all and "cosine to the true ones is 0.988" in of_all
    assert "64 方向を各 8 ビット" in signal.stated(make_results.full(), JA)[1]
    exact = Signal(outputs="last-hidden", features=None, bytes_per_token=256, bytes=1_000, kl=1.234e-5)
    training = make_results.full().candidates["sft"].training.model_copy(update={"signal": exact})
    (said, *_) = signal.stated(with_student(make_results.full(), "sft", training=training), EN)
    assert "rounded to 16 bits: 0.000012 nats per token away" in said


def test_every_code_of_an_alignment_has_words():
    for t in (EN, JA):
        for kind in KINDS[1:]:
            assert t.known("projector", kind), kind
        for layer_map in ("uniform", "last", "auto", "given"):
            assert t.known("layer_map", layer_map), layer_map


@pytest.mark.parametrize(("language", "told"), [("en", "decided otherwise"), ("ja", "合格基準と異なる判断")])
def test_an_override_stands_in_red_above_all_else(language, told):
    page = render(make_results.several_seeds(), language)
    assert told in page and "社内試験のため" in page and page.index(told) < page.index("<header>")
    assert told not in render(make_results.full(), language)


@pytest.mark.parametrize("t", [EN, JA])
def test_guardrails_that_no_gate_is_on_are_told(t):
    base = make_results.full()
    assert t("limits.ungated") in limits.stated(base, t)
    gate = {"metric": "guardrails.crows_pairs.stereotype.worse", "at_most": 0.05}
    gated = base.model_copy(update={"spec": base.spec | {"gates": [gate]}})
    assert t("limits.ungated") not in limits.stated(gated, t)
    none = {"guardrails": Guardrails(why="guardrails-off")}
    bare = {name: candidate.model_copy(update=none) for name, candidate in base.candidates.items()}
    assert t("limits.guardrails") in limits.stated(base.model_copy(update={"candidates": bare}), t)


def test_only_a_whole_interval_calls_a_student_worse_than_its_teacher():
    rows = {row.name: row for row in behaviour.guardrails(make_results.full(), EN).rows}
    readings = {name: {reading for _, _, reading in row.students} for name, row in rows.items()}
    assert readings["CrowS-Pairs: stereotype preferred"] == {"open"}
    assert readings["BBQ: bias where the text does not tell"] == {"more"}
    assert readings["Generated text: repeats itself"] == {"worse"}
    assert rows["CrowS-Pairs: stereotype preferred"].ideal == "best: 50%"
