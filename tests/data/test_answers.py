"""Tasks of the user's own prompts and responses."""

import json

import numpy as np
import pandas
import pytest
import yaml
from test_data import data, write

from featkd import spec
from featkd.data import answers, corpus, tasks, tokens
from featkd.errors import InputError

CITIES = ["Kyoto", "Oslo", "Lima"]


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("the big blue house", "a blue house", 4 / 5),  # articles do not count: 2 shared of 3 and 2
        ("Blue, blue house!", "blue", 2 / 4),
        ("red", "blue", 0.0),
        ("1.5", "15", 0.0),
        ("C++", "C", 0.0),
        ("दिन", "दान", 0.0),  # vowel signs
        ("", "", 1.0),
        ("", "blue", 0.0),
        ("京都市です。", "「京都」", 2 * 2 / 7),  # a character is a word
    ],
)
def test_f1_by_hand(answer, truth, value):
    assert answers.f1(answer, truth) == answers.f1(truth, answer) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [("\n Kyoto. ", "kyoto", True), ("「京都」。", "京都", True), ("1.5", "15", False),
     ("-5", "5", False), ("+", "-", False), ("C++", "C", False), ("Kyoto, Oslo", "Kyoto Oslo", False)],
)  # fmt: skip
def test_exact_is_what_lm_eval_computes_with_these_options(answer, truth, same):
    from lm_eval.api.metrics import exact_match_hf_evaluate

    assert answers.exact(answer, truth) == same
    assert exact_match_hf_evaluate(predictions=[answer], references=[truth], **answers.EXACT)["exact_match"] == same


def test_rows_without_a_prompt_are_not_asked(tmp_path):
    rows = [{"q": f"Where is {n}?" if n % 3 else None, "a": CITIES[n % 3], "n": n} for n in range(300)]
    source = data(write(tmp_path, "a.jsonl", rows), prompt_field="q", response_field="a", group_field="n")
    corpus.build(source, tmp_path)
    tokens.train_tokenizer(tmp_path, 300, "", 64, tmp_path / "tok")
    tokenizer = tokens.load_tokenizer(tmp_path / "tok")
    names = ["heldout_exact_match", "heldout_choice"]
    tasks.build(tmp_path, tokenizer, np.zeros(300), source, spec.Quality(tasks=names), 64, tmp_path)
    for name in names:
        assert pandas.read_parquet(tmp_path / f"{name}.parquet").context.str.startswith("Where").all()


def built(folder, names, quality=None, window=64, **fields):
    """Tasks of 300 questions about where something is."""
    rows = [
        {"q": f"Where is building {n} of {n % 7} towers? Ask {n * 37 % 101}.", "a": CITIES[n // 2 % 3],
         "c": [f"{n} towers", CITIES[n // 2 % 3], *["Paris"][: n % 2]], "when": f"2026-01-{n % 28 + 1:02}"}
        for n in range(300)
    ]  # fmt: skip
    source = data(write(folder, "a.jsonl", rows), prompt_field="q", **{"response_field": "a", **fields})
    corpus.build(source, folder)
    tokens.train_tokenizer(folder, 300, "", window, folder / "tok")
    tokenizer = tokens.load_tokenizer(folder / "tok")
    settings = spec.Quality(tasks=names, **(quality or {}))
    meta = tasks.build(folder, tokenizer, np.zeros(len(tokenizer)), source, settings, window, folder)
    return meta, [pandas.read_parquet(folder / f"{name}.parquet") for name in names], tokenizer


def test_answers_to_generate(tmp_path):
    names = ["heldout_exact_match", "heldout_f1"]
    meta, (exact, shared), tokenizer = built(tmp_path, names, {"answer_tokens": 12})
    held_out = corpus.documents(tmp_path, "test")
    assert len(exact) == len(shared) == meta["examples"]["heldout_f1"] == len(held_out)
    assert set(zip(exact.context, exact.answer, strict=True)) == {(row["prompt"], row["text"]) for row in held_out}
    commonest = exact.answer.value_counts(normalize=True).iloc[0]
    assert meta["chance"] == {name: pytest.approx(commonest) for name in names}  # one word each: F1 is the same
    config = yaml.safe_load((tmp_path / "heldout_exact_match.yaml").read_text())
    assert config["generation_kwargs"] == {"until": [], "max_gen_toks": 13, "do_sample": False}


def test_responses_that_are_too_long_are_not_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"heldout_f1 has 0 examples.*raise quality.answer_tokens"):
        built(tmp_path, ["heldout_f1"], {"answer_tokens": 1})


def test_a_long_prompt_keeps_its_end_and_leaves_room_for_the_answer(tmp_path):
    _, (exact,), tokenizer = built(tmp_path, ["heldout_exact_match"], {"answer_tokens": 12}, window=32)
    lengths = [len(ids) for ids in tokens.encode(tokenizer, list(exact.context))]
    assert max(lengths) + 12 + 2 <= 32
    prompts = [row["prompt"] for row in corpus.documents(tmp_path, "test")]
    assert all(any(prompt.endswith(context) for prompt in prompts) for context in exact.context)


def test_dates_stay_text(tmp_path):
    _, (exact,), _ = built(tmp_path, ["heldout_exact_match"], response_field="when")
    assert exact.answer.str.fullmatch(r"2026-01-\d\d").all()


def test_all_responses_are_choices_where_none_are_given(tmp_path):
    meta, (choice,), _ = built(tmp_path, ["heldout_choice"])
    assert {tuple(row) for row in choice.choices} == {tuple("\n" + city for city in sorted(CITIES))}
    held_out = {row["prompt"]: row["text"] for row in corpus.documents(tmp_path, "test")}
    assert all(held_out[row.context] == row.choices[row.gold].strip() for row in choice.itertuples())
    assert meta["chance"]["heldout_choice"] == choice.gold.value_counts(normalize=True).iloc[0]


def test_given_choices(tmp_path):
    meta, (choice,), _ = built(tmp_path, ["heldout_choice"], choices_field="c")
    counts = choice.choices.map(len)
    assert set(counts) == {2, 3} and meta["chance"]["heldout_choice"] == pytest.approx((1 / counts).mean())
    held_out = {row["prompt"]: row for row in corpus.documents(tmp_path, "test")}
    for row in choice.itertuples():
        assert [text.strip() for text in row.choices] == json.loads(held_out[row.context]["choices"])
        assert row.choices[row.gold] == "\n" + held_out[row.context]["text"]


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        (["heldout_choice"], {"response_field": "q"}, "heldout_choice has .* different responses.*data.choices_field"),
        (["heldout_choice"], {"choices_field": "a"}, "data.choices_field: a: .* is no list; write e.g."),
        (["heldout_choice"], {"choices_field": "nothing"}, "data: no field 'nothing'"),
    ],
)
def test_bad_input(tmp_path, names, fields, message):
    with pytest.raises(InputError, match=message):
        built(tmp_path, names, **fields)


def test_plain_text_has_no_answers(tmp_path):
    source = data(write(tmp_path, "a.jsonl", [{"text": f"{n} is the number of the text {n * 7}"} for n in range(200)]))
    corpus.build(source, tmp_path)
    tokens.train_tokenizer(tmp_path, 300, "", 64, tmp_path / "tok")
    tokenizer = tokens.load_tokenizer(tmp_path / "tok")
    with pytest.raises(InputError, match=r"answers need prompts: set data\.prompt_field"):
        tasks.build(tmp_path, tokenizer, np.zeros(300), source, spec.Quality(tasks=["heldout_f1"]), 64, tmp_path)


def test_responses_to_one_prompt_and_rows_of_one_group_are_on_one_side(tmp_path):
    rows = [{"q": f"Question {n // 4}?", "a": f"answer {n}", "page": f"page {n // 40}"} for n in range(2000)]
    for fields, name in (({}, "q"), ({"group_field": "page"}, "page")):
        source = data(write(tmp_path, "a.jsonl", rows), prompt_field="q", response_field="a", **fields)
        corpus.build(source, tmp_path)
        where = {row["a"]: row[name] for row in rows}
        sides = [
            {where[row["text"]] for row in corpus.documents(tmp_path, part)} for part in ("train", "valid", "test")
        ]
        assert all(sides) and sum(map(len, sides)) == len(set.union(*sides))
