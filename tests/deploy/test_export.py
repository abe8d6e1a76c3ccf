import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from featkd.deploy import export as export_module
from featkd.deploy import fused, parity, template
from featkd.deploy.export import export
from featkd.deploy.generate import Generator, Sampling
from featkd.deploy.session import OnnxModel
from featkd.errors import InputError, RunError


def slowly(*kinds):
    return [pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


@pytest.mark.parametrize("kind", ["llama", "gpt2", *slowly("mistral", "qwen2", "gemma2")])
def test_true_export_passes_every_check(exported, kind):
    done = exported(kind)
    assert (done.parity.graph, done.parity.general_why) == ("fused", None)
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


def test_the_readmes_script_needs_onnxruntime_alone(exported, tmp_path):
    done, readme = exported("gpt2"), (Path(__file__).parents[2] / "README.md").read_text()
    (tmp_path / "text.py").write_text(readme.split("```python\n")[1].split("```")[0])
    prompt = AutoTokenizer.from_pretrained(done.onnx).decode(done.probe[0][:10])
    run = [sys.executable, "-I", str(tmp_path / "text.py"), str(done.onnx), prompt]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    tokenizer = Tokenizer.from_file(str(done.onnx / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids
    assert printed == tokenizer.decode(ids + Generator(done.onnx, 2).generate(ids, 40)) + "\n"


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
    model = export_module.load(done.hf)
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
    found = parity.check(export_module.load(done.hf), done.onnx, done.probe, 1e-4, 2)
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
    tokens = Generator(done.onnx, 2).generate(done.probe[0][:10], 20)
    model = AutoModelForCausalLM.from_pretrained(done.hf)
    expected = model.generate(torch.tensor([done.probe[0][:10]]), max_new_tokens=20, min_new_tokens=20, do_sample=False,
                              eos_token_id=-1)  # fmt: skip
    assert tokens == expected[0, 10:].tolist()


def test_both_graphs_have_one_copy_of_the_weights(exported):
    files = {file.name for file in exported("llama").onnx.glob("*.onnx*")}
    assert files == {"model.onnx", "model.onnx.data", "generate.onnx"}
    weights = sum(file.stat().st_size for file in exported("llama").hf.glob("*.safetensors"))
    assert (exported("llama").onnx / "model.onnx.data").stat().st_size < 1.1 * weights


@pytest.mark.parametrize("kind", ["gpt2", *slowly("mistral")])
def test_prompts_side_by_side_give_what_each_gives_alone(exported, kind):
    done = exported(kind)
    prompts = [done.probe[0][:20], done.probe[1][:5], done.probe[2][:11]]
    alone = [Generator(done.onnx, 2, graph="general").generate(prompt, 30) for prompt in prompts]
    for graph in ("fused", "general"):
        together = list(Generator(done.onnx, 2, graph=graph).batch(prompts, 30))
        assert [list(row) for row in zip(*together, strict=True)] == alone


def test_sampling(exported):
    generator, prompt = Generator(exported("llama").onnx, 2), exported("llama").probe[0][:10]
    greedy = generator.generate(prompt, 20)
    assert list(generator.stream(prompt, 20, Sampling(1.0, top_k=1))) == greedy
    assert list(generator.stream(prompt, 20, Sampling(1.0, top_p=1e-9))) == greedy
    drawn = [list(generator.stream(prompt, 20, Sampling(1.0, seed=seed))) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sampled_tokens_follow_the_distribution(exported):
    generator, prompt = Generator(exported("llama").onnx, 2), exported("llama").probe[0][:10]
    logits = generator.forced([prompt], [len(prompt)])[0][0] / 2
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    top = np.argsort(-shares)[:5]
    drawn = np.array([next(generator.batch([prompt] * 400, 1, Sampling(2.0, top_k=5, seed=seed))) for seed in range(5)])
    assert set(drawn.ravel()) <= set(top)
    np.testing.assert_allclose(
        [(drawn == token).mean() for token in top], shares[top] / shares[top].sum(), atol=4 * (0.25 / drawn.size) ** 0.5
    )


def test_what_cannot_be_fused_generates_with_the_general_graph(exported, tmp_path, monkeypatch):
    done = exported("llama")

    def unsuitable(model, past, rotary_inside):
        raise RunError("the model's attention has sinks")

    monkeypatch.setattr(fused, "trace", unsuitable)
    monkeypatch.setattr(template, "program", lambda model, trace, graphs, kind: trace(model))
    found = export(done.hf, tmp_path / "onnx", done.probe, 1e-4, 2)
    assert found.passed and found.graph == "general" and "sinks" in found.general_why
    assert not (tmp_path / "onnx" / "generate.onnx").exists()
    general, whole = (Generator(folder, 2).generate(done.probe[0], 5) for folder in (tmp_path / "onnx", done.onnx))
    assert general == whole


def test_a_fused_graph_that_differs_is_left_out(exported, tmp_path, monkeypatch):
    done, true = exported("llama"), parity.generation
    monkeypatch.setattr(parity, "generation", lambda *args: {**true(*args), "batched": 1.0})
    found = export_module._fused(
        export_module.load(done.hf), _copied(done.onnx, tmp_path), done.probe, 1e-4, 2, done.graphs
    )
    assert found == "its logits differ by 1.0e+00" and not (tmp_path / "onnx" / "generate.onnx").exists()


def _copied(onnx, folder):
    return shutil.copytree(onnx, folder / "onnx")


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
