import numpy as np
import pytest

from featkd.deploy import quantise as quantise_module
from featkd.deploy.generate import Generator
from featkd.deploy.quantise import quantise
from featkd.deploy.session import OnnxModel
from featkd.errors import RunError


@pytest.fixture(scope="module", params=["fp16", "int8", "int4"])
def quantised(request, exported, tmp_path_factory):
    done, out = exported("llama"), tmp_path_factory.mktemp(request.param)
    return request.param, out, quantise(done.onnx, done.hf, out, request.param, done.probe, 2)


def test_it_is_smaller_and_nearly_the_same(quantised, exported):
    precision, out, parity = quantised
    assert parity.passed and parity.tolerance is None
    assert parity.graph == ("general" if precision == "fp16" else "fused")
    assert 0 < parity.mean_kl < {"fp16": 1e-4, "int8": 0.05, "int4": 0.5}[precision]
    assert parity.argmax_agreement > {"fp16": 0.95, "int8": 0.8, "int4": 0.5}[precision]
    sizes = [(folder / "model.onnx.data").stat().st_size for folder in (out, exported("llama").onnx)]
    assert sizes[0] < {"fp16": 0.55, "int8": 0.45, "int4": 0.5}[precision] * sizes[1]
    assert {file.name for file in out.iterdir()} >= {"config.json", "tokenizer.json"}
    assert (out / "generate.onnx").is_file() == (precision != "fp16")


def test_the_cache_of_fp16_is_half_as_large(exported, tmp_path):
    done = exported("llama")
    quantise(done.onnx, done.hf, tmp_path, "fp16", done.probe, 2)
    half, whole = (Generator(folder, 2, graph="general").cache_bytes_per_token for folder in (tmp_path, done.onnx))
    assert 2 * half == whole


@pytest.mark.parametrize(
    "kind", ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen2", "gemma", "mistral"))]
)
def test_fp16_of_other_families(kind, exported, tmp_path):
    done = exported(kind)
    parity = quantise(done.onnx, done.hf, tmp_path, "fp16", done.probe, 2)
    assert parity.passed and parity.mean_kl < 1e-5 and parity.argmax_agreement > 0.95


def test_its_graphs_agree(quantised, exported):
    """Not to the last bit: int8 rounds activations by the largest of all that go through together."""
    _, out, _ = quantised
    ids = exported("llama").probe[0]
    whole = OnnxModel(out, 2).logits(np.array([ids]), np.ones((1, len(ids)), np.int64))[0]
    steps = Generator(out, 2).forced([ids], [1])[0]
    assert np.abs(whole - steps).mean() < 0.05 * np.abs(whole).mean()


def test_weights_that_are_no_numbers_fail(exported, tmp_path, monkeypatch):
    done, true = exported("llama"), OnnxModel.logits
    monkeypatch.setattr(OnnxModel, "logits", lambda self, *args, **kwargs: np.nan * true(self, *args, **kwargs))
    assert not quantise(done.onnx, done.hf, tmp_path / "out", "int4", done.probe, 2).passed


def test_what_cannot_be_quantised_is_told_in_a_line(exported, tmp_path, monkeypatch):
    def broken(proto):
        raise ValueError("no kernel\nfor this")

    monkeypatch.setattr(quantise_module, "_int8", broken)
    with pytest.raises(RunError, match=r"cannot be quantised to int8: ValueError: no kernel$"):
        quantise(exported("llama").onnx, exported("llama").hf, tmp_path / "out", "int8", exported("llama").probe, 2)
