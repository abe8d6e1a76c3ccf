"""What teacher and champion say of logged answers, beside PyTorch in float64."""

import pandas
import pytest
import tiny_models

from featkd import spec
from featkd.data.tokens import Fitted
from featkd.deploy.session import OnnxModel
from featkd.measure.rescore import _log_probabilities, rescore

DATA = spec.Data(files=["x"], prompt_field="prompt", response_field="response", prompt_format="plain")


def rows(*pairs):
    return [
        {"prompt": prompt, "response": response, "time": "t", "feedback": None, "file": "f", "line": number}
        for number, (prompt, response) in enumerate(pairs)
    ]


def reference(folder, prompt, response):
    """(sum of log p, how many tokens are the first choice, tokens) of the response after the prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = tokenizer.encode(prompt, add_special_tokens=False)
    whole = tokenizer.encode(f"{prompt}\n{response}", add_special_tokens=False)
    assert whole[: len(before)] == before
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0, len(before) - 1 : -1].log_softmax(-1)
    said = torch.tensor(whole[len(before) :])
    return float(logits.gather(1, said[:, None]).sum()), int((logits.argmax(-1) == said).sum()), len(said)


def test_figures_of_answers(exported, tmp_path):
    teacher, champion = exported("llama"), exported("gpt2")
    pairs = [(tiny_models.text(n, 5 + n), tiny_models.text(50 + n, 3 * n + 1)) for n in range(5)]
    told = rescore(rows(*pairs), teacher.onnx, champion.onnx, DATA, 2, "cpu", tmp_path)
    table = pandas.read_parquet(tmp_path / "answers.parquet")
    assert told == {"answers": 5, "cut": 0} and "prompt" not in table and "response" not in table
    for found, pair in zip(table.itertuples(), pairs, strict=True):
        theirs, first, n = reference(teacher.hf, *pair)
        mine, _, _ = reference(champion.hf, *pair)
        assert found.tokens == n
        assert found.surprise == pytest.approx(-theirs / n, abs=1e-4)
        assert found.divergence == pytest.approx((mine - theirs) / n, abs=1e-4)
        assert found.disagreement == pytest.approx(1 - first / n)
        assert not (found.empty or found.drift or found.personal_data)


def test_a_model_agrees_with_its_own_first_choices_and_does_not_diverge_from_itself(exported, tmp_path):
    from featkd.deploy.generate import Generator

    folder, prompts = exported("llama").onnx, exported("llama").probe
    texts = [
        Fitted(prompt[:n], Generator(folder, 2).generate(prompt[:n], 6), False)
        for prompt, n in zip(prompts, (5, 9, 7), strict=True)
    ]
    _, first = _log_probabilities(OnnxModel(folder, 2), texts)
    assert first.tolist() == [6, 6, 6]
    rescore(rows(("the model", "returns an array")), folder, folder, DATA, 2, "cpu", tmp_path)
    assert pandas.read_parquet(tmp_path / "answers.parquet")["divergence"].tolist() == [0.0]


def test_long_and_empty_answers_and_flags(exported, tmp_path):
    folder = exported("llama").onnx
    pairs = [
        (tiny_models.text(1, 200), "the list"),  # 96 positions: of the prompt its end
        ("the model", tiny_models.text(2, 200)),  # of the answer its beginning
        ("the model", " \n"),
        ("the model", "the list of the list of the list of the list of the list of the list of"),
        ("the model", "write to jane.doe@company.org"),
        ("the model", "これは日本語です"),
    ]
    told = rescore(rows(*pairs), folder, folder, DATA, 2, "cpu", tmp_path)
    table = pandas.read_parquet(tmp_path / "answers.parquet")
    assert told == {"answers": 6, "cut": 1} and table["tokens"].iloc[1] > 60
    assert table["surprise"].isna().tolist() == [False, False, True, False, False, False]
    flags = {name: table.index[table[name]].tolist() for name in ("repetition", "empty", "personal_data", "drift")}
    assert (
        flags["empty"] == [2] and 3 in flags["repetition"] and flags["personal_data"] == [4] and flags["drift"] == [5]
    )
