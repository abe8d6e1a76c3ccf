"""How small a student may be, and what feature alignment costs: on the page, in the chart, in MLflow's description."""

import re

import make_results
import pytest
from lxml import html

from featkd import spec
from reports import charts_sizes, sizes, text
from reports.page import render, summary_markdown

EN, JA = text.load("en"), text.load("ja")


def charts_of(page):
    return [heading.text for heading in html.fromstring(page).xpath("//div[@class='charts']//h3")]


def test_with_one_size_nothing_is_added(no_charts):
    result = make_results.sweep(1)
    assert result.sizes is None and sizes.sentence(result, EN) is None
    assert "smallest student" not in render(result, "en")


@pytest.mark.parametrize("count", [2, 8])
def test_with_several_sizes_there_is_a_panel_per_task_and_a_line_per_arm(count):
    result = make_results.sweep(count)
    drawn = charts_sizes.sizes(result, EN)
    assert len(drawn.panels) == 3 and len(drawn.table.rows) == 3 * 3 * count
    for _, svg in drawn.panels:
        said = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert {"sft", "logit-kd", "feature-kd", "teacher", "frontier", "parameters"} <= set(said)
        assert {"xxl", "xl"} <= set(said) and ("nano" in said) == (count == 8)
    gated = [svg for _, svg in drawn.panels if ">gate<" in svg]
    assert len(gated) == 2, "the third task has no gate"


def test_the_chart_stands_after_quality_in_both_languages(any_result, any_page, language):
    shown = charts_of(any_page)
    t = text.load(language)
    assert (t("charts.sizes.title") in shown) == (any_result.sizes is not None)
    if any_result.sizes:
        assert shown[:2] == [t("charts.quality.title"), t("charts.sizes.title")]


def test_the_smallest_student_is_named_with_its_size(no_charts):
    result = make_results.sweep(5)
    chosen = result.candidates[result.sizes.smallest]
    parameters = chosen.training.parameters
    share = parameters / result.candidates["teacher"].training.parameters
    assert (chosen.arm, chosen.size, round(parameters / 1e6, 1), round(share, 2)) == ("feature-kd", "xl", 6.8, 0.19)
    said = sizes.sentence(result, EN)
    assert said == (
        "The smallest student that passes every gate is xl (feature-kd): 6.8M parameters, 0.19 of the teacher. "
        "For 5 smaller students it is not settled; the smallest of them is m (logit-kd)."
    )
    assert "xl（feature-kd）です（パラメータ数 6.8M、教師モデルの 0.19 倍）" in sizes.sentence(result, JA)
    assert said in render(result, "en") and said in summary_markdown(result, "en")


def test_that_none_passes_or_is_settled_is_said_plainly(no_charts):
    strict = [spec.Gate(metric="quality.heldout_perplexity.retained", at_least=0.99)]
    none = make_results.sweep(5, strict)
    assert sizes.sentence(none, EN) == "None of the 5 sizes tried passes every gate."
    assert "満たすものはありませんでした" in sizes.sentence(none, JA)
    wide = [spec.Gate(metric="quality.heldout_continuation.retained", at_least=0.9)]
    unsettled = sizes.sentence(make_results.sweep(5, wide), EN)
    assert unsettled.startswith("No student is shown to pass every gate. For ")
    without = sizes.sentence(make_results.sweep(5, []), EN)
    assert without == "Which size is small enough cannot be said: no gates are set."


def test_what_feature_alignment_costs_is_told_as_one_measurement_and_no_finding():
    result = make_results.full()
    said = sizes.feature_cost(result, EN)
    assert "takes 1.06 times as long" in said and "measured once, so this is no finding" in said
    assert "1.03 times the memory" in said
    assert "1.06 倍" in sizes.feature_cost(result, JA) and "結論の根拠にはなりません" in sizes.feature_cost(result, JA)
    assert sizes.feature_cost(make_results.single_student(), EN) is None
    assert sizes.feature_cost(make_results.inadequate(), EN) is None


def test_own_time_and_the_share_of_the_teacher_are_told_apart(no_charts):
    page = html.fromstring(render(make_results.full(), "en"))
    table = page.xpath(f"//h2[.='{EN('cost.title')}']/following-sibling::div//table")[0]
    heads = [cell.text for cell in table.xpath(".//th")]
    rows = {row[0].text: [cell.text_content() for cell in row] for row in table.xpath(".//tbody/tr")}
    assert heads[1:4] == ["Own time", "Share of the teacher's pass", "Training memory, MB"]
    assert rows["feature-kd"][1:4] == ["63.6 s", "18.9 s", "188.0"]
    assert rows["sft"][1:4] == ["57.1 s", "0 s", "182.6"]
    assert rows["teacher"][1:4] == ["231 s", "—", "—"]
    assert len({len(row) for row in rows.values()}) == 1 == len({len(heads), len(rows["sft"])})
