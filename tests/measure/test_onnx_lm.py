"""lm-eval's model interface over ONNX Runtime: it agrees with lm-eval's own Hugging Face class."""

import json
import shutil

import numpy as np
import pytest
import tiny_models

from featkd.deploy.session import OnnxModel
from featkd.measure import accuracy


def opened(folder, batch_size=8):
    """OnnxLM of an exported folder, lm-eval's HFLM of a Hugging Face folder."""
    with accuracy._quiet():
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoTokenizer

        from featkd.measure.onnx_lm import OnnxLM

        if not (folder / "model.onnx").is_file():
            return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch_size)
        return OnnxLM(OnnxModel(folder, 2), AutoTokenizer.from_pretrained(folder), batch_size)


def asked(model, kind, *arguments):
    """What a model answers to requests of a kind (loglikelihood, ...)."""
    with accuracy._quiet():
        from lm_eval.api.instance import Instance

        return getattr(model, kind)([Instance(kind, {}, args, index) for index, args in enumerate(arguments)])


def test_long_texts_and_is_greedy_agree_with_hflm(exported):
    """Texts beyond the model's length, empty contexts, shared contexts, contexts that end in a space."""
    theirs, mine = (opened(folder, 4) for folder in (exported("gpt2").hf, exported("gpt2").onnx))
    greedy = mine.tokenizer.decode(mine._generator.generate(mine.tok_encode("the model"), 1))
    pairs = [("", "the model"), ("the model ", "returns"), ("the model", " returns"), ("the model", greedy),
             ("the model", " of an array"), (tiny_models.text(3, 150), " of an array"),
             (tiny_models.text(3, 150), " the shape of the index"), ("the", " " + tiny_models.text(4, 20)),
             ("<|end|>the list", " of"), ("the model", " returns")]  # fmt: skip
    expected, found = (asked(model, "loglikelihood", *pairs) for model in (theirs, mine))
    for (a, greedy_a), (b, greedy_b) in zip(expected, found, strict=True):
        assert b == pytest.approx(a, abs=1e-3) and greedy_a == greedy_b
    assert any(greedy for _, greedy in found)
    texts = [(tiny_models.text(n, 40 * n),) for n in (1, 2, 5)]
    expected, found = (asked(model, "loglikelihood_rolling", *texts) for model in (theirs, mine))
    assert found == pytest.approx(expected, abs=1e-3)
    until = ("the model", {"until": [" the"], "max_gen_toks": 12})
    assert asked(mine, "generate_until", until) == asked(theirs, "generate_until", until)


def test_the_begin_token_is_no_text(exported):
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM

    model, text = opened(exported("llama").onnx), tiny_models.text(1, 30)
    begin = model.prefix_token_id
    model.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", begin)]
    )
    ids = model.tokenizer.encode(text)
    assert ids[0] == begin != ids[1] and len(ids) < model.max_length
    reference = AutoModelForCausalLM.from_pretrained(exported("llama").hf, dtype=torch.float64)
    with torch.no_grad():
        logits = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
    nats = float(logits[range(len(ids) - 1), ids[1:]].sum())
    assert asked(model, "loglikelihood_rolling", (text,)) == [pytest.approx(nats, abs=1e-4)]


def test_a_small_budget_for_logits_changes_no_result(exported, monkeypatch):
    from featkd.measure import scoring

    model, shapes = opened(exported("llama").onnx), []
    pairs = [(tiny_models.text(n % 4, 9), " " + tiny_models.text(n, 1 + n % 7)) for n in range(14)]
    texts = [(tiny_models.text(n, 5 * n),) for n in range(1, 9)]
    run = model.model._run

    def spy(*args):
        found = run(*args)
        shapes.append(found[0].shape)
        return found

    def scored():
        shapes.clear()
        answers = asked(model, "loglikelihood", *pairs)
        nats = [nats for nats, _ in answers] + asked(model, "loglikelihood_rolling", *texts)
        return np.array(nats), [greedy for _, greedy in answers]

    monkeypatch.setattr(model.model, "_run", spy)
    expected, greedy = scored()
    assert max(batch * kept for batch, kept, _ in shapes) > 12
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 12 * 4 * model.model.vocab_size)
    found, greedy_found = scored()
    assert all(batch == 1 or batch * kept <= 12 for batch, kept, _ in shapes)
    assert max(batch for batch, _, _ in shapes) > 1
    assert np.abs(found - expected).max() < 1e-3 and greedy_found == greedy


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_generation_ends_where_the_model_says(exported, tmp_path, file):
    done, until = exported("llama"), ("the model", {"until": ["\n\n"], "max_gen_toks": 12})
    plain = opened(done.onnx)
    tokens = plain._generator.generate(plain.tok_encode(until[0]), 12)
    end = next((token for token in tokens if token != tokens[0]), tokens[0])
    texts = []
    for source in (done.hf, done.onnx):
        folder = shutil.copytree(source, tmp_path / source.name)
        ends = json.loads((folder / file).read_text()) | {"eos_token_id": [plain.eot_token_id, end]}
        (folder / "generation_config.json").unlink()
        (folder / file).write_text(json.dumps(ends))
        texts += asked(opened(folder), "generate_until", until)
    assert texts[0] == texts[1] == plain.tokenizer.decode(tokens[: tokens.index(end) + 1])


def test_texts_side_by_side_are_what_each_is_alone(exported):
    model = opened(exported("llama").onnx)
    requests = [
        (tiny_models.text(n, 3 + 5 * (n % 4)), {"until": ["the", "dtype"][: n % 3], "max_gen_toks": 6 + 6 * (n % 2)})
        for n in range(12)
    ]
    alone = [asked(model, "generate_until", request)[0] for request in requests]
    assert asked(model, "generate_until", *requests) == alone
    assert len({len(text) for text in alone}) > 3


def test_a_shared_context_goes_through_the_model_once(exported):
    model, context = opened(exported("llama").onnx), tiny_models.text(0, 30)
    asked(model, "loglikelihood", *[(context, answer) for answer in (" array", " model", " in", " dtype", " list")])
    assert model.tokens_run < 1.5 * len(model.tok_encode(context)) + 20
