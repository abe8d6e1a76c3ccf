"""Bias suites: the formats they were published in; wrong files told."""

import json

import pytest

from featkd import spec
from featkd.data import guards
from featkd.errors import InputError


def suite(name, file, **more):
    asked = spec.Guardrails(own=False, **{name: [str(file)]}, **more)
    return guards.suites(asked, [])[f"guard_{name}"]


def test_our_own_words_in_the_language_of_the_data():
    english = guards.suites(spec.Guardrails(), ["Returns an array."])["guard_own"]
    japanese = guards.suites(spec.Guardrails(), ["配列を返します。"])["guard_own"]
    assert len(english) > 50 and len(japanese) > 35
    assert {example["class"] for example in english} == {"gender", "age", "origin", "wealth", "body"}
    nurse = [example["choices"] for example in english if example["group"] == "gender-nurse"]
    assert nurse[0] == [f"The nurse said that {who} would be late today." for who in ("she", "he")]
    assert all(one != other for example in english + japanese for one, other in [example["choices"]])


def test_crows_pairs(tmp_path):
    file = tmp_path / "c.csv"
    head = ",sent_more,sent_less,stereo_antistereo,bias_type"
    file.write_text(f'{head}\n0,"Poor, they are.","Rich, they are.",stereo,age\n')
    (example,) = suite("crows_pairs", file)
    assert example["choices"] == ["Poor, they are.", "Rich, they are."]
    assert (example["gold"], example["class"], example["context"]) == (1, "age", "")


def test_winogender(tmp_path):
    lines = ["sentid\tsentence"]
    for occupation, answer in (("nurse", 0), ("nurse", 1), ("plumber", 0)):
        for gender, word in (("male", "he"), ("female", "she"), ("neutral", "they")):
            lines.append(f'{occupation}.patient.{answer}.{gender}.txt\tThe {occupation} said "{word} is late.')
    file = tmp_path / "all_sentences.tsv"
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match="^guardrails.winogender: occupations-stats.tsv is missing beside"):
        suite("winogender", file)
    (tmp_path / "occupations-stats.tsv").write_text("occupation\tbls_pct_female\nnurse\t90\nplumber\t3\n")
    by_group = {example["group"]: example for example in suite("winogender", file)}
    assert by_group.keys() == {"nurse", "plumber"}
    assert "she" in by_group["nurse"]["choices"][0] and "he is" in by_group["plumber"]["choices"][0]
    assert by_group["plumber"]["class"] == "male"


def test_stereoset(tmp_path):
    def row(context, sentences):
        labels = ("stereotype", "anti-stereotype", "unrelated")
        said = [{"sentence": s, "gold_label": label} for s, label in zip(sentences, labels, strict=True)]
        return {"target": "who", "bias_type": "race", "context": context, "sentences": said}

    file = tmp_path / "dev.json"
    data = {"intrasentence": [row("They are BLANK.", "sau")], "intersentence": [row("They came.", "SAU")]}
    file.write_text(json.dumps({"data": data}))
    within, between = sorted(suite("stereoset", file), key=lambda example: example["context"])
    assert (within["context"], within["choices"]) == ("", ["a", "s", "u"])
    assert (between["context"], between["choices"]) == ("They came.", [" A", " S", " U"])


def bbq(polarity="neg", condition="ambig", stereotyped="old"):
    return {
        "question_index": "1", "question_polarity": polarity, "context_condition": condition, "category": "Age",
        "answer_info": {"ans0": ["grandfather", "old"], "ans1": ["grandson", "nonOld"], "ans2": ["unclear", "unknown"]},
        "additional_metadata": {"stereotyped_groups": [stereotyped]}, "context": "Two came.", "question": "Who?",
        "ans0": "The grandfather", "ans1": "The grandson", "ans2": "Not known", "label": 2,
    }  # fmt: skip


def test_bbq(tmp_path):
    file = tmp_path / "Age.jsonl"
    rows = [bbq(), bbq("nonneg", "disambig"), bbq(stereotyped="others")]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = sorted(suite("bbq", file), key=lambda example: example["stereotype"])
    assert [example["stereotype"] for example in found] == [-1, 0, 1]  # not told, for the bad thing, for its opposite
    assert [example["ambiguous"] for example in found] == [True, True, False]
    assert found[1]["context"] == "Two came.\nWho?\n" and found[1]["unknown"] == 2
    assert {example["group"] for example in found} == {"Age-1"}


def test_at_most_so_many_of_each_class_as_many(tmp_path):
    file = tmp_path / "c.csv"
    rows = [f"{n},a{n},b{n},stereo,{'age' if n < 40 else 'race'}" for n in range(50)]
    file.write_text("\n".join([",sent_more,sent_less,stereo_antistereo,bias_type", *rows]))
    found = suite("crows_pairs", file, max_examples=16)
    assert [example["class"] for example in found].count("race") == 8


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("crows_pairs", b"a,b\n1,2\n", "no field 'sent_more'"),
        ("crows_pairs", b"", "no field 'sent_more'"),
        ("bbq", b"{}", "no field 'answer_info'"),
        ("bbq", b"not json", "is not in the format that bbq was published in"),
        ("stereoset", b"[]", "is not in the format"),
        ("stereoset", b'{"data": {}}', "has no examples"),
        ("bbq", b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(name, content, told, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"guardrails.{name}: .*file.*{told}"):
        suite(name, file)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="guardrails.bbq: no file .*none"):
        suite("bbq", tmp_path / "none*.jsonl")
