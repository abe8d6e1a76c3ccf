"""The page holds in both languages for full and thin results, and says nothing the result does not."""

import bisect
import functools
import math
import re
from html.parser import HTMLParser

import make_results
import pytest
import yaml
from lxml import html

from featkd.errors import InputError
from featkd.result import Decision, GateOutcome, Interval, Quality, Result
from reports import findings, text, view
from reports.page import render, summary_markdown

LANGUAGES = ("en", "ja")


def keys(tree: dict, prefix: str = "") -> set[str]:
    return {
        key
        for name, value in tree.items()
        for key in (keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"})
    }


def sentences(tree: dict) -> list[str]:
    return [
        s for v in tree.values() for s in (sentences(v) if isinstance(v, dict) else [v] if isinstance(v, str) else v)
    ]


def load(language: str) -> dict:
    return yaml.safe_load((text.FOLDER / f"{language}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _drawn_once():
    full_page("en")  # before any test that leaves the charts out


@functools.cache
def full_page(language: str) -> str:
    return render(make_results.full(), language)


def visible(page: str) -> str:
    """What a reader sees, without identifiers set as code."""
    tree = html.fromstring(page)
    for node in tree.xpath("//style | //pre | //code"):
        node.drop_tree()
    return tree.xpath("//body")[0].text_content()


def test_both_languages_have_the_same_keys_and_placeholders():
    en, ja = load("en"), load("ja")
    assert keys(en) == keys(ja)
    for one, other in zip(sentences(en), sentences(ja), strict=True):
        assert set(re.findall(r"{\w+}", one)) == set(re.findall(r"{\w+}", other)), one


def test_every_value_is_text():
    for language in LANGUAGES:
        assert all(isinstance(sentence, str) for sentence in sentences(load(language)))


def test_every_result_renders_and_asks_nothing_of_the_network(any_page, language):
    page = any_page
    tree = html.fromstring(page)
    assert tree.get("lang") == language
    assert not tree.xpath("//script | //link | //img | //iframe | //object | //embed | //base | //form")
    for attribute in tree.xpath("//@href | //@src | //@srcset | //@data | //@action"):
        assert attribute.startswith("#"), attribute
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert len(page.encode()) < 6e6
    assert "None" not in visible(page) and "nan" not in visible(page).split()


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open_tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def test_ids_are_unique_and_tags_are_balanced(any_page):
    ids = html.fromstring(any_page).xpath("//@id")
    assert len(ids) == len(set(ids))
    checker = Balance()
    checker.feed(any_page)
    assert checker.open_tags == []


def test_no_english_is_left_on_the_japanese_page(any_page, language):
    if language != "ja":
        return
    seen = visible(any_page)
    assert not re.findall(r"[A-Za-z]{2,}(?:[ ,]+[A-Za-z]{2,}){2,}", seen)
    english = {s for s in sentences(load("en")) if re.search(r"[a-z]{3,} [a-z]{2,}", s) and "{" not in s}
    assert [s for s in english if s in seen] == []


def test_markup_in_the_document_stays_text():
    nasty = "<script>alert(1)</script>{{ 7*7 }} & {x} $a_b$"
    base = make_results.full()
    renamed = {name if name == "teacher" else nasty + name: c for name, c in base.candidates.items()}
    result = base.model_copy(update={"title": nasty, "name": nasty, "candidates": renamed, "comparisons": []})
    for language in LANGUAGES:
        page = render(result, language)
        assert "<script" not in page and "49" not in html.fromstring(page).xpath("//h1")[0].text
        assert html.fromstring(page).xpath("//h1")[0].text == nasty
        assert "<script" not in summary_markdown(result, language)


def numbers_of(node) -> list[float]:
    if isinstance(node, bool) or node is None:
        return []
    if isinstance(node, int | float):
        return [float(node)]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return [number for child in children for number in numbers_of(child)]


def test_every_number_of_the_comparison_is_in_the_result(any_result):
    plain = {x for x in numbers_of(any_result.model_dump(mode="json")) if math.isfinite(x)}
    known = sorted(x * scale for x in plain for scale in (1, 100, 1e-3, 1e-6))
    seen = 0
    for row in view.comparison(any_result, text.load("en")).rows:
        for cell in row.cells.values():
            for shown in re.findall(r"−?[\d,]+(?:\.\d+)?", f"{cell.text} {cell.range or ''}"):
                plain = shown.replace("−", "-").replace(",", "")
                places = len(plain.partition(".")[2])
                zeros = len(plain) - len(plain.rstrip("0")) if not places else 0
                step = 10.0 ** (zeros - places)
                nearest = known[max(bisect.bisect(known, float(plain)) - 1, 0) :][:2]
                assert any(abs(number - float(plain)) <= step / 2 * 1.001 for number in nearest), (row.label, shown)
                seen += 1
    assert seen > 5


def test_the_banner_comes_before_everything_else(no_charts):
    page = visible(render(make_results.inadequate(), "en")).strip()
    assert page.startswith("The teacher is not adequate. The run stopped here.")
    assert "teacher 31% (26–36%), plain fine-tuned student sft-s 33% (28–38%)" in page
    assert "The teacher is not adequate" not in visible(full_page("en"))


def test_the_verdict_can_be_said_aloud():
    t = text.load("en")
    assert findings.verdict_sentence(make_results.full(), t) == (
        "Replace the teacher with feature-kd: it keeps 85% of the teacher's quality on its weakest task, "
        "generates text 3.06 times as fast and saves about USD 850 a month after upkeep."
    )
    assert findings.verdict_sentence(make_results.all_failed(), t).startswith("Keep the teacher: no student got as far")
    assert findings.verdict_sentence(make_results.single_student(), t).startswith(
        "Keep the teacher: no student passes every gate."
    )


def test_no_gain_is_said_as_plainly_as_a_gain():
    found = findings.distillation(make_results.full(), text.load("en"))
    assert [f.reading for f in found] == ["gain", "no-gain", "gain", "no-gain", "gain", "no-gain"]
    said = findings.distillation_sentences(found, text.load("en"))
    assert said[1].startswith("feature-kd against logit-kd: no gain on “Perplexity")


@pytest.mark.parametrize(
    ("kind", "task", "estimate", "reading"),
    [
        ("ratio", "heldout_perplexity", (0.9, 0.8, 0.99), "gain"),
        ("ratio", "heldout_perplexity", (1.1, 1.01, 1.2), "loss"),
        ("ratio", "heldout_perplexity", (0.9, 0.8, 1.0), "no-gain"),
        ("difference", "heldout_routing", (-0.1, -0.2, -0.01), "loss"),
        ("difference", "heldout_routing", (0.1, 0.0, 0.2), "no-gain"),
        ("difference", "heldout_routing", (0.1, None, None), "unjudged"),
    ],
)
def test_readings(kind, task, estimate, reading):
    value, low, high = estimate
    base = make_results.full()
    pair = base.comparisons[0].model_copy(
        update={"kind": kind, "task": task, "estimate": Interval(value=value, low=low, high=high)}
    )
    found = findings.distillation(base.model_copy(update={"comparisons": [pair]}), text.load("en"))
    assert found[0].reading == reading


def test_unknown_codes_and_tasks_stand_for_themselves(no_charts):
    base = make_results.full()
    odd = base.candidates["sft"].model_copy(
        update={"quality": Quality(why="moon-phase"), "verdict": Decision(why="comet")}
    )
    tasks = dict(base.candidates["feature-kd"].quality.tasks)
    tasks["hellaswag"] = tasks["heldout_routing"].model_copy(update={"metric": "acc_norm,none"})
    known = base.candidates["feature-kd"].model_copy(update={"quality": Quality(tasks=tasks)})
    result = base.model_copy(update={"candidates": base.candidates | {"sft": odd, "feature-kd": known}})
    for language in LANGUAGES:
        page = visible(render(result, language))
        assert all(word in page for word in ("moon-phase", "comet", "hellaswag"))


def test_charts_without_data_say_why():
    page = visible(render(make_results.without_latency(), "en"))
    assert page.count("Not drawn: latency measurement is switched off.") == 6
    assert "Not drawn" not in visible(full_page("en"))


def test_never_is_a_word(no_charts):
    base = make_results.full()
    roi = base.candidates["sft"].roi.model_copy(
        update={"payback_months": "never", "payback_months_low": "never", "payback_months_high": "never"}
    )
    never = base.model_copy(
        update={"candidates": base.candidates | {"sft": base.candidates["sft"].model_copy(update={"roi": roi})}}
    )
    assert "never" in visible(render(never, "en"))
    assert "回収不能" in visible(render(never, "ja"))


def test_assumptions_without_a_source_are_marked():
    cells = html.fromstring(full_page("en")).xpath("//span[@class='tag']")
    assert [cell.text for cell in cells] == ["unsourced"] * 4


def test_a_result_that_went_through_json_gives_the_same_page():
    result = make_results.full()
    again = Result.model_validate_json(result.to_json())
    assert render(again, "en") == full_page("en")


def test_summary_is_short_and_tabular(any_result):
    for language in LANGUAGES:
        lines = [line for line in summary_markdown(any_result, language).splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(any_result.candidates)
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_unknown_language_is_an_input_error():
    with pytest.raises(InputError, match="write one of en, ja"):
        render(make_results.full(), "fr")


@pytest.mark.parametrize(
    ("observed", "outcome", "shown"),
    [
        (None, "missing", ("—", None)),
        (None, "fail", ("never", None)),
        (Interval(value=11.83, low=9.0, high=None), "inconclusive", ("12 months", "9 to never")),
        (Interval(value=11.83, low=11.1, high=12.6), "pass", ("11.8 months", "11.1–12.6")),
    ],
)
def test_a_payback_gate_knows_never(observed, outcome, shown):
    gate = GateOutcome(metric="roi.payback_months", at_most=18, severity="block", observed=observed, outcome=outcome)
    assert view.gate_value(gate, text.load("en"), observed=True) == shown


def test_a_bound_carries_its_unit_inside_the_japanese_words():
    gate = GateOutcome(metric="quality.x.retained", at_least=0.75, severity="block", outcome="missing")
    assert view.gate_value(gate, text.load("ja"), observed=False).value == "75% 以上"


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", ("same tokens", "KL 0.012", "slower graph")), ("ja", ("のトークンが一致", "KL 0.012", "低速なグラフ"))],
)
def test_a_lower_precision_is_told_by_what_it_changes(language, words):
    shown = visible(render(make_results.many(1), language))
    assert all(word in shown for word in words)
