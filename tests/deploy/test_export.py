import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import torch

from featkd.deploy import export as export_module
from featkd.deploy import parity, template
from featkd.deploy.export import export
from featkd.deploy.generate import Generator
from featkd.deploy.session import OnnxModel
from featkd.errors import InputError, RunError


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2"])
def test_true_export_passes_every_check(exported, kind):
    done = exported(kind)
    assert done.parity.passed and done.parity.max_abs_difference < 1e-5
    assert done.parity.argmax_agreement == 1.0
    assert done.parity.tokens == sum(map(len, done.probe))
    assert set(done.parity.checks) == {"unpadded", "left_padded", "stepwise", "prefill", "batched", "generation"}


def test_the_folder_opens_with_plain_onnxruntime(exported):
    import onnxruntime

    folder = exported("llama").onnx
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    assert names[:4] == ["input_ids", "attention_mask", "position_ids", "input.past_key_values.layers.0.keys"]
    assert {file.name for file in folder.iterdir()} >= {"config.json", "tokenizer.json", "model.onnx.data"}


def test_a_known_shape_is_filled_not_traced(exported, tmp_path, monkeypatch):
    done = exported("llama")
    other = tiny_models.save("llama", tmp_path / "hf", seed=7)

    def no_trace(model):
        raise AssertionError("traced again")

    monkeypatch.setattr(export_module, "_trace", no_trace)
    found = export(other, tmp_path / "onnx", done.probe, 1e-4, 2, graphs=done.graphs)
    assert found.passed


def test_packed_parameters_are_recognised():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(4, 8)), rng.normal(size=(2, 8))
    known = {template._edge(array.T, 0): [(array.T, (name, True))] for name, array in (("q", q), ("k", k))}
    assert template._parts(np.concatenate([q.T, k.T], axis=1), known) == [("q", True), ("k", True)]
    assert template._parts(np.concatenate([q.T, 2 * k.T], axis=1), known) == []


def test_a_graph_with_its_own_weights_is_the_same(exported, tmp_path):
    done = exported("gpt2")
    assert export(done.hf, tmp_path / "onnx", done.probe, 1e-4, 2).passed
    ids = np.array([done.probe[0]])
    a, b = (OnnxModel(folder, 2).logits(ids, np.ones_like(ids)) for folder in (done.onnx, tmp_path / "onnx"))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_tampered_weights_fail(exported, tmp_path):
    done = exported("llama")
    model = export_module._load(done.hf)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] += 0.05
    found = parity.check(model, done.onnx, done.probe, 1e-4, 2)
    assert not found.passed and found.max_abs_difference > 1e-3


def test_a_figure_that_is_not_a_number_fails_in_any_text(exported, monkeypatch):
    done, logits = exported("llama"), OnnxModel.logits

    def broken(self, *args, **kwargs):
        found = logits(self, *args, **kwargs)
        found[1:2] = np.nan  # the second text of the padded batch
        return found

    monkeypatch.setattr(OnnxModel, "logits", broken)
    found = parity.check(export_module._load(done.hf), done.onnx, done.probe, 1e-4, 2)
    assert not found.passed and found.checks["unpadded"] < 1e-4 < found.checks["left_padded"]


def test_kept_logits_are_the_last_ones(exported):
    model = OnnxModel(exported("llama").onnx, 2)
    ids = np.array([exported("llama").probe[0]])
    mask = np.ones_like(ids)
    np.testing.assert_allclose(model.logits(ids, mask, keep=3), model.logits(ids, mask)[:, -3:], atol=1e-5)


def test_right_padding_and_a_past_change_nothing(exported):
    model, ids = OnnxModel(exported("gpt2").onnx, 2), np.array([exported("gpt2").probe[0][:20]])
    mask = np.ones_like(ids)
    whole = model.logits(ids, mask)
    padded = model.logits(np.pad(ids, ((0, 0), (0, 5))), np.pad(mask, ((0, 0), (0, 5))))
    np.testing.assert_allclose(padded[:, :20], whole, atol=1e-5)
    _, past = model.extend(ids[:, :12], mask[:, :12])
    np.testing.assert_allclose(model.extend(ids[:, 12:], mask, past=past)[0], whole[:, 12:], atol=1e-5)


def test_generation_is_pytorchs(exported):
    from transformers import AutoModelForCausalLM

    done = exported("llama")
    tokens, ttft_s, decode_s = Generator(done.onnx, 2).generate(done.probe[0][:10], 20)
    model = AutoModelForCausalLM.from_pretrained(done.hf)
    expected = model.generate(torch.tensor([done.probe[0][:10]]), max_new_tokens=20, min_new_tokens=20, do_sample=False,
                              eos_token_id=-1)  # fmt: skip
    assert tokens == expected[0, 10:].tolist()
    assert ttft_s > 0 and decode_s > 0


def test_clear_errors(exported, tmp_path):
    done = exported("llama")
    with pytest.raises(InputError, match="96 positions"):
        Generator(done.onnx, 1).generate(done.probe[0], 96)
    with pytest.raises(InputError, match=r"model\.onnx"):
        OnnxModel(tmp_path, 1)
    with pytest.raises(InputError, match=r"config\.json"):
        export(tmp_path, tmp_path / "out", done.probe, 1e-4, 1)
    (tmp_path / "config.json").write_text((done.hf / "config.json").read_text())
    with pytest.raises(RunError, match="does not load: OSError") as caught:
        export(tmp_path, tmp_path / "out", done.probe, 1e-4, 1)
    assert "\n" not in str(caught.value)
    shutil.copytree(done.onnx, tmp_path / "broken")
    (tmp_path / "broken" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(RunError, match="does not load") as caught:
        OnnxModel(tmp_path / "broken", 1)
    assert "\n" not in str(caught.value)


def test_the_session_needs_neither_torch_nor_pydantic():
    heavy = ("torch", "pydantic", "transformers", "pandas")
    code = f"import sys, featkd.deploy.session, featkd.measure.latency; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
