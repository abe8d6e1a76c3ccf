"""From files to documents."""

import json

import numpy as np
import pandas
import pytest
import tiny_models

from featkd import spec
from featkd.data import corpus, docstrings, load
from featkd.errors import InputError

TEXTS = [tiny_models.text(seed, 60) for seed in range(200)]


def japanese(seed, length=90):
    rng = np.random.default_rng(seed)
    return "".join(
        "日本語文章東京大学生活水火木金土山川田中人口目手足力男女子犬"[n] for n in rng.integers(0, 30, length)
    )


def data(*files, **changes):
    return spec.Data(files=[str(file) for file in files], held_out=0.3, **changes)


def write(folder, name, rows):
    path = folder / name
    if name.endswith(".txt"):
        path.write_text("\n\n".join(row["text"] for row in rows))
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".parquet"):
        pandas.DataFrame(rows).to_parquet(path)
    else:
        pandas.DataFrame(rows).to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    return path


@pytest.mark.parametrize("ending", ["txt", "jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_documents(tmp_path, ending):
    path = write(tmp_path, f"a.{ending}", [{"text": text} for text in TEXTS[:5]])
    assert [row["text"] for row in load.read(data(path))] == TEXTS[:5]


def test_prompt_and_response_may_be_nested(tmp_path):
    path = write(tmp_path, "a.jsonl", [{"instruction": "Why?", "instances": [{"output": "Because."}]}])
    (row,) = load.read(data(path, prompt_field="instruction", response_field="instances.0.output"))
    assert (row["prompt"], row["text"]) == ("Why?", "Because.")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json"])
def test_text_is_read_as_it_stands(tmp_path, ending):
    texts = ["None", "NA", "01234", "1.10", "true", "2024-05-01T10:00:00", ""]
    texts += ['"quoted'] if ending != "csv" else ['say "hi"', "a, b"]
    if ending == "tsv":
        path = tmp_path / "a.tsv"
        path.write_text("text\tn\n" + "".join(f"{text}\t1\n" for text in texts))
    else:
        path = write(tmp_path, f"a.{ending}", [{"text": text, "n": 1} for text in texts])
    assert [row["text"] for row in load.read(data(path))] == texts


def test_rows_may_differ_in_their_fields_and_have_gaps(tmp_path):
    rows = [{"q": {"t": ["a"]}, "r": "x", "k": 1}, {"q": None, "r": "y"}, {"q": {"t": []}, "r": None}, {"r": "z"}]
    path = write(tmp_path, "a[1].jsonl", rows)
    found = list(load.read(data(path, prompt_field="q.t.0", response_field="r")))
    assert [(row["prompt"], row["text"]) for row in found] == [("a", "x"), ("", "y"), ("", ""), ("", "z")]
    with pytest.raises(InputError, match=r"no field 'q.u'; the rows have q, r, k"):
        list(load.read(data(path, text_field="q.u")))


def test_files_whose_names_hold_wildcards(tmp_path):
    assert [row["text"] for row in load.read(data(write(tmp_path, "b[1].txt", [{"text": "x"}])))] == ["x"]


def test_half_a_character_is_dropped(tmp_path):
    texts = [f"{text} \ud83d" for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus.build(data(tmp_path / "a.jsonl"), tmp_path)
    assert {row["text"] for row in corpus.documents(tmp_path, "train")} <= set(TEXTS)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_another_encoding_is_one_line_with_the_remedy(tmp_path, name):
    row = {"a.jsonl": '{"text": "日本語"}\n'}.get(name, "text\n日本語\n")
    (tmp_path / name).write_bytes(row.encode("shift_jis"))
    with pytest.raises(InputError, match="save it as UTF-8") as raised:
        list(load.read(data(tmp_path / name)))
    assert "\n" not in str(raised.value)


def test_wrong_sources_name_the_field_and_the_remedy(tmp_path):
    good = write(tmp_path, "a.jsonl", [{"text": "x"}])
    (tmp_path / "b.doc").write_text("x")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    for source, expected in [
        (data(tmp_path / "no.txt"), "data.files: no file"),
        (data(tmp_path / "b.doc"), "unknown ending; use one of .txt"),
        (data(tmp_path / "empty.txt"), "is empty"),
        (data(good, tmp_path / "broken.jsonl"), r"broken.jsonl, line 1 is not JSON.*one object per line"),
        (data(good, text_field="body"), "no field 'body'; the rows have text"),
        (spec.Data(builtin="docstrings", packages=["no_such_package"]), "no installed package 'no_such_package'"),
    ]:
        with pytest.raises(InputError, match=expected) as raised:
            load.source_identity(source)
            list(load.read(source))
        assert "\n" not in str(raised.value)


def test_the_corpus_is_deduplicated_and_split_by_content(tmp_path):
    rows = [{"text": text} for text in TEXTS]
    folders = []
    for name, order in [("one", rows + rows[:7]), ("two", rows[::-1])]:
        folder = tmp_path / name
        folder.mkdir()
        meta = corpus.build(data(write(folder, "a.jsonl", order)), folder)
        folders.append((folder, meta))
    (one, meta), (two, same) = folders
    assert meta["digest"] == same["digest"]
    assert meta["documents"] == 200
    parts = {part: {row["id"] for row in corpus.documents(one, part)} for part in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 200
    assert corpus.documents(one, "test") == corpus.documents(two, "test")


def test_long_documents_are_split_into_passages_that_stay_on_one_side(tmp_path):
    paragraphs = [TEXTS[n : n + 6] for n in range(0, 180, 6)]
    rows = [{"text": "\n\n".join(group)} for group in paragraphs]
    corpus.build(data(write(tmp_path, "a.jsonl", rows), max_chars=700), tmp_path)
    sides = {part: {row["text"] for row in corpus.documents(tmp_path, part)} for part in ("train", "valid", "test")}
    assert sum(map(len, sides.values())) > len(rows)
    assert max(len(text) for side in sides.values() for text in side) <= 700
    for group in paragraphs:
        text = "\n\n".join(group)
        assert sum(any(passage in text for passage in side) for side in sides.values()) == 1


def test_a_cap_on_the_documents_leaves_the_split_as_it_is(tmp_path):
    rows = [{"text": f"{n} {TEXTS[n % 200]} {n}"} for n in range(2000)]
    meta = corpus.build(data(write(tmp_path, "a.jsonl", rows), max_documents=400), tmp_path)
    held_out = meta["valid_documents"] + meta["test_documents"] + meta["near_duplicates_removed"]
    assert 0.2 < held_out / (meta["documents"] + meta["near_duplicates_removed"]) < 0.4


def test_documents_without_a_class_have_none(tmp_path):
    rows = [{"text": text, "k": "red" if n % 2 else ""} for n, text in enumerate(TEXTS)]
    corpus.build(data(write(tmp_path, "a.jsonl", rows), label_field="k"), tmp_path)
    assert {row["label"] for row in corpus.documents(tmp_path, "train")} == {"red", None}


def test_near_duplicates_of_training_text_are_not_held_out(tmp_path):
    rows = [{"text": text} for text in TEXTS]
    rows += [{"text": text + " indeed"} for text in TEXTS]
    meta = corpus.build(data(write(tmp_path, "a.jsonl", rows)), tmp_path)
    assert meta["near_duplicates_removed"] > 0
    training = {row["text"].removesuffix(" indeed") for row in corpus.documents(tmp_path, "train")}
    held_out = [row["text"].removesuffix(" indeed") for row in corpus.documents(tmp_path, "test")]
    assert not training & set(held_out)


def test_an_instruction_before_every_question_makes_no_duplicates(tmp_path):
    instruction = "Below is a question of a customer of our shop. Answer it in one short and friendly sentence. "
    rows = [{"q": f"{instruction}What is {TEXTS[n][:25]} {n}?", "a": f"It is {n}."} for n in range(200)]
    source = data(write(tmp_path, "a.jsonl", rows), prompt_field="q", response_field="a")
    assert corpus.build(source, tmp_path)["near_duplicates_removed"] == 0


def test_a_response_stays_whole(tmp_path):
    rows = [{"q": f"Why {n}?", "a": f"{n} {text}"} for n, text in enumerate(TEXTS)]
    source = data(write(tmp_path, "a.jsonl", rows), prompt_field="q", response_field="a", max_chars=50)
    assert corpus.build(source, tmp_path)["documents"] == 200


def test_near_duplicates_are_found_where_words_are_not_parted(tmp_path):
    rows = [{"text": japanese(n)} for n in range(200)]
    rows += [{"text": row["text"] + "です"} for row in rows]
    meta = corpus.build(data(write(tmp_path, "a.jsonl", rows)), tmp_path)
    training = {row["text"].removesuffix("です") for row in corpus.documents(tmp_path, "train")}
    held_out = [row["text"].removesuffix("です") for row in corpus.documents(tmp_path, "test")]
    assert meta["near_duplicates_removed"] > 20 and not training & set(held_out)


@pytest.mark.parametrize(
    ("rows", "expected"), [([{"text": ""}] * 9, "no document"), ([{"text": "a b"}, {"text": "c"}], "for the tasks")]
)
def test_too_little_data_is_said(tmp_path, rows, expected):
    with pytest.raises(InputError, match=expected):
        corpus.build(data(write(tmp_path, "a.jsonl", rows)), tmp_path)


def test_docstrings_are_read_without_importing(tmp_path, monkeypatch):
    package = tmp_path / "planted"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""The planted package\'s docstring."""\nraise SystemExit("imported")\n')
    (package / "tests" / "__init__.py").write_text('"""Tests are not documentation."""')
    (package / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(docstrings.read(["planted"], 10)) == [{"text": "The planted package's docstring.", "label": "planted"}]
