import contextlib
import json
import math

import numpy as np
import pandas
import pytest
import tiny_models

from featkd.data import answers
from featkd.errors import InputError
from featkd.measure import accuracy, examples
from featkd.measure.statistics import score

NAMES = ["tiny_choices", "tiny_labels", "tiny_rolling"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def measured(exported, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("accuracy")
    summary = accuracy.evaluate(exported("llama").onnx, NAMES, [folder], None, 8, 2, "cpu", out)
    return summary, pandas.read_parquet(out / "samples.parquet"), out


@pytest.fixture(scope="module")
def by_hflm(exported, folder):
    """The same tasks through lm-eval's own Hugging Face class."""
    with accuracy._quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with contextlib.redirect_stdout(None):
            model = HFLM(pretrained=str(exported("llama").hf), device="cpu", dtype="float32", batch_size=8)
            return simple_evaluate(model=model, tasks=list(NAMES), bootstrap_iters=0,
                                   task_manager=accuracy._manager(NAMES, [folder]))  # fmt: skip


def test_agrees_with_hflm(measured, by_hflm):
    summary, rows, _ = measured
    for task in NAMES:
        mine = rows[rows.task == task].sort_values("doc_id")
        theirs = sorted(by_hflm["samples"][task], key=lambda sample: sample["doc_id"])
        for (_, row), sample in zip(mine.iterrows(), theirs, strict=True):
            if task == "tiny_rolling":
                nats, words = sample["word_perplexity"]
                assert (row.score, row.weight) == (pytest.approx(nats, abs=1e-3), words)
                assert row.bytes == sample["byte_perplexity"][1]
            else:
                assert row.choice_logprobs == pytest.approx([ll for ll, _ in sample["filtered_resps"]], abs=1e-3)
                assert row.score == sample["acc"] and row.score == (row.choice == row.gold)
    values = by_hflm["results"]
    assert summary["tiny_choices"]["value"] == pytest.approx(values["tiny_choices"]["acc,none"], abs=1e-9)
    assert summary["tiny_rolling"]["value"] == pytest.approx(values["tiny_rolling"]["word_perplexity,none"], rel=1e-4)


def test_the_summary_can_be_recomputed_from_the_evidence(measured):
    summary, rows, out = measured
    assert json.loads((out / "accuracy.json").read_text()) == summary
    rolling = rows[rows.task == "tiny_rolling"]
    assert summary["tiny_rolling"]["value"] == math.exp(-rolling.score.sum() / rolling.weight.sum())
    assert summary["tiny_rolling"] | {"value": 0} == {
        "metric": "word_perplexity", "higher_is_better": False, "value": 0, "examples": 24, "n_choices": 0}  # fmt: skip
    assert summary["tiny_labels"]["n_choices"] == 4 and summary["tiny_labels"]["metric"] == "acc"
    assert list(rows.columns) == ["task", "doc_id", "metric", "higher_is_better", "weight", "bytes", "choice", "gold",
                                  "n_choices", "choice_logprobs", "score", "group", "class", "text"]  # fmt: skip
    assert rows.groupby("task").higher_is_better.unique().map(list).to_dict() == {
        "tiny_choices": [True], "tiny_labels": [True], "tiny_rolling": [False]}  # fmt: skip


def test_the_text_of_an_example_is_what_is_asked_and_its_right_answer(measured, folder):
    _, rows, _ = measured
    for task in NAMES:
        examples = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]
        for example, found in zip(examples, rows[rows.task == task].sort_values("doc_id").text, strict=True):
            answer = example["choices"][example["gold"]].strip() if "choices" in example else ""
            assert found.split() == f"{example['text']} {answer}".split() or task == "tiny_choices"
            assert found.strip().startswith(example["text"]) and found.endswith(answer)


def test_one_filter_counts_and_a_metric_may_be_better_lower(exported, tmp_path):
    (tmp_path / "read.jsonl").write_text("\n".join(json.dumps({"q": tiny_models.text(n, 5)}) for n in range(6)))
    (tmp_path / "read.yaml").write_text(json.dumps({
        "task": "read", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "read.jsonl")}},
        "doc_to_text": "q", "doc_to_target": "q", "num_fewshot": 2,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}],
        "filter_list": [{"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "lenient")],
    }))  # fmt: skip
    summary = accuracy.evaluate(exported("llama").onnx, ["read"], [tmp_path], None, 8, 2, "cpu", tmp_path / "out")
    rows = pandas.read_parquet(tmp_path / "out" / "samples.parquet")
    assert summary["read"]["examples"] == len(rows) == rows.doc_id.nunique() == 6
    assert summary["read"]["filter"] == "strict" and not summary["read"]["higher_is_better"]
    assert not score(rows, rows, None).higher_is_better
    assert rows.text.tolist() == [
        " ".join(2 * [tiny_models.text(n, 5)]) for n in range(6)
    ]  # none of the two shown before it


def test_perplexity_of_responses_given_their_prompts_is_per_token(exported, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = exported("llama")
    tokenizer = AutoTokenizer.from_pretrained(done.hf)
    model = AutoModelForCausalLM.from_pretrained(done.hf, dtype=torch.float64)
    documents, nats, count = [], 0.0, 0
    for n in range(10):
        context, text = tiny_models.text(n, 6), "\n" + tiny_models.text(100 + n, 5 + n)
        before, after = (tokenizer.encode(part, add_special_tokens=False) for part in (context, text))
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        nats += sum(float(logits[len(before) + k - 1, token]) for k, token in enumerate(after))
        count += len(after)
        documents.append({"context": context, "text": text, "tokens": len(after)})
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "answers.yaml").write_text(json.dumps({
        "task": "answers", "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "answers.jsonl")}},
        "doc_to_text": "context", "doc_to_target": "text", "metric_list": [{"metric": "perplexity"}]}))  # fmt: skip
    summary = accuracy.evaluate(done.onnx, ["answers"], [tmp_path], None, 8, 2, "cpu", tmp_path / "out")["answers"]
    assert summary["value"] == pytest.approx(math.exp(-nats / count), rel=1e-5)
    assert (summary["metric"], summary["higher_is_better"], summary["examples"]) == ("token_perplexity", False, 10)


def test_generated_answers_are_held_against_the_true_ones(exported, tmp_path):
    from transformers import AutoTokenizer

    from featkd.deploy.generate import Generator

    done = exported("llama")
    tokenizer, generator = AutoTokenizer.from_pretrained(done.onnx), Generator(done.onnx, 2)
    contexts = [tiny_models.text(n, 6) for n in range(12)]
    said = [tokenizer.decode(generator.generate(tokenizer.encode(one), 6), skip_special_tokens=True).strip()
            for one in contexts]  # fmt: skip
    true = [f"{one.upper()}。!" if n % 3 else f"{one} and more words" for n, one in enumerate(said)]
    pandas.DataFrame({"context": contexts, "answer": true}).to_parquet(tmp_path / "mine.parquet")
    for metric, options in {"exact_match": answers.EXACT, "token_f1": {}}.items():
        (tmp_path / f"{metric}.yaml").write_text(json.dumps({
            "task": metric, "dataset_path": "parquet", "test_split": "test", "output_type": "generate_until",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "mine.parquet")}},
            "doc_to_text": "context", "doc_to_target": "answer",
            "generation_kwargs": {"until": [], "max_gen_toks": 6, "do_sample": False},
            "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"},
                                                        {"function": "take_first"}]}],
            "metric_list": [{"metric": metric, **options}]}))  # fmt: skip
    summary = accuracy.evaluate(done.onnx, ["exact_match", "token_f1"], [tmp_path], None, 8, 2, "cpu", tmp_path / "out")
    rows = pandas.read_parquet(tmp_path / "out" / "samples.parquet")
    found = {task: of.sort_values("doc_id").score.tolist() for task, of in rows.groupby("task")}
    assert found["exact_match"] == [answers.exact(*pair) for pair in zip(said, true, strict=True)]
    assert found["token_f1"] == [answers.f1(*pair) for pair in zip(said, true, strict=True)]
    assert summary["exact_match"]["value"] == pytest.approx(2 / 3) and summary["token_f1"]["value"] > 2 / 3


@pytest.mark.parametrize(
    ("metric", "told"), [("byte_perplexity", "byte_perplexity"), ("bits_per_byte", "byte_perplexity")]
)
def test_a_rolling_task_may_ask_for_bytes(metric, told):
    row = examples.row("t", metric, True, {}, {"doc_id": 3, "doc": {}, metric: (-12.0, 6)})
    assert (row["metric"], row["score"], row["weight"], row["bytes"]) == (told, -12.0, 6.0, 6)


def test_unknown_and_offline_tasks_are_one_line(folder, exported, tmp_path):
    accuracy.check_tasks(NAMES, [folder])
    with pytest.raises(InputError, match=r"unknown task tiny_choice;.*tiny_choices") as caught:
        accuracy.check_tasks(["tiny_choice", "tiny_labels"], [folder])
    assert "\n" not in str(caught.value)
    (folder / "gone.yaml").write_text("task: gone\ndataset_path: nobody/has-this\ntest_split: test\n"
                                      "output_type: multiple_choice\ndoc_to_text: a\ndoc_to_choice: [a, b]\n"
                                      "doc_to_target: 0\nmetric_list: [{metric: acc}]\n")  # fmt: skip
    with pytest.raises(InputError, match="not on this machine"):
        accuracy.evaluate(exported("llama").onnx, ["gone"], [folder], None, 8, 2, "cpu", tmp_path)


def test_the_first_metric_stands_for_a_task_with_mutual_information():
    config = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc_mutual_info"}, {"metric": "acc"}]}
    sample = {"doc_id": 0, "metrics": ["acc", "acc_mutual_info"], "acc": 0.0, "acc_mutual_info": 1.0, "target": 1,
              "filtered_resps": [(-1.0, 0), (-2.0, 0), (-1.0, 0), (-5.0, 0)],
              "arguments": [("q", " a"), ("q", " b"), ("", " a"), ("", " b")]}  # fmt: skip
    metric = examples.primary(config, [sample])
    row = examples.row("t", metric, True, config, sample)
    assert (metric, row["choice"], row["n_choices"], row["score"]) == ("acc_mutual_info", 1, 2, 1.0)
    assert np.allclose(row["choice_logprobs"], [0.0, 3.0])


@pytest.mark.parametrize(
    ("docs", "alike"),
    [
        ([{"passage": "p", "q": "a"}, {"passage": "p", "q": "b"}, {"passage": "r", "q": "c"}], [0, 0, 1]),
        ([{"group": "g", "passage": "p"}, {"group": "h", "passage": "p"}, {"group": "g", "passage": "r"}], [0, 1, 0]),
        ([{"context": "the same for all"}] * 3, [0, 1, 2]),  # an instruction, not what the examples are about
        ([{"context": "a"}, {"context": "b"}, {}], [0, 1, 2]),
    ],
)
def test_examples_about_one_text_are_one_document(docs, alike):
    found = examples.groups(docs)
    assert [found.index(group) for group in found] == [alike.index(number) for number in alike]
