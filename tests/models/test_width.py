"""Students cut out of a wider teacher: exact where nothing is lost, refused where it cannot be done."""

import copy

import numpy as np
import pytest
import tiny_models
import torch

from featkd import spec
from featkd.distill.batches import IGNORED, probe
from featkd.distill.runtime import Runtime
from featkd.errors import InputError
from featkd.models import given, student
from featkd.models.probe import Probe

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2"]
TURNED = [kind for kind in FAMILIES if kind not in ("gemma2", "gemma3_text")]
IDS = torch.randint(1, 300, (12, 32), generator=torch.Generator().manual_seed(0))
PROBE = Probe(IDS, None, torch.ones_like(IDS, dtype=torch.bool))
HALF = {"hidden_size": 16, "heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    made = {kind: given.load(tiny_models.save(kind, root / kind, layers=3)) for kind in FAMILIES}
    assert all(model.config.hidden_size == 32 for model in made.values())
    return made


def built(teacher, **size):
    return student.build(spec.Student(name="s", **size), teacher, 0, PROBE)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("kind", FAMILIES)
def test_slice_with_nothing_removed_is_the_teacher(teachers, kind):
    made, share = built(teachers[kind], layers=3, init="slice", hidden_size=32, heads=4)
    assert share == 1.0
    assert torch.equal(logits(made), logits(teachers[kind]))


@pytest.mark.parametrize("kind", TURNED)
def test_a_turned_stream_of_full_width_changes_no_logits(teachers, kind):
    made, share = built(teachers[kind], layers=3, init="pca", hidden_size=32)
    own, its = (model.get_input_embeddings().weight for model in (made, teachers[kind]))
    assert share == 1.0 and not torch.allclose(own, its, atol=0.1)
    assert torch.allclose(logits(made), logits(teachers[kind]), atol=1e-4)


@pytest.mark.parametrize(("init", "kind"), [("slice", k) for k in FAMILIES] + [("pca", k) for k in TURNED])
def test_what_is_empty_can_be_cut_off(teachers, init, kind, tmp_path):
    teacher = half_empty(teachers[kind], along_channels=init == "slice")
    made, _ = built(teacher, layers=3, init=init, **HALF)
    found = made.config
    assert (found.hidden_size, found.num_attention_heads, made.base_model.get_input_embeddings().weight.shape[1]) == (
        16, 2, 16)  # fmt: skip
    assert torch.allclose(logits(made), logits(teacher), atol=1e-4)
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(given.load(tmp_path)), logits(made))


def test_heads_of_gemma_and_llama_keep_their_width_and_their_groups(teachers):
    made, _ = built(teachers["llama"], layers=2, init="slice", hidden_size=24, heads=2)
    found = made.config
    assert (found.head_dim, found.num_key_value_heads, found.intermediate_size) == (8, 1, 64)
    assert built(teachers["gpt2"], layers=1, init="slice", hidden_size=16, heads=2)[0].config.n_inner == 128


def test_the_probe_s_valid_tokens_decide_and_nothing_else(teachers):
    def weights(ids, valid, seed=0):
        size = spec.Student(name="s", layers=2, init="pca", **HALF)
        made, _ = student.build(size, teachers["qwen3"], seed, Probe(ids, None, valid))
        return torch.cat([weight.flatten() for weight in made.parameters()])

    other, begin = IDS.clone(), PROBE.valid.clone()
    other[:, 16:], begin[:, 16:] = 7, False
    assert torch.equal(weights(IDS, PROBE.valid), weights(IDS, PROBE.valid, seed=1))
    assert not torch.equal(weights(IDS, PROBE.valid), weights(other, PROBE.valid))
    assert torch.equal(weights(IDS, begin), weights(other, begin))


def test_the_probe_skips_blocks_without_anything_to_learn():
    """Long prompts first: what is cut out of a teacher must not be found on nothing."""
    ids = np.arange(6 * 8).reshape(6, 8)
    labels = np.where(np.arange(6)[:, None] < 4, IGNORED, ids)
    found = probe(np.stack([ids, labels, np.tile(np.arange(8), (6, 1))]), 16, Runtime("cpu", bf16=False))
    assert found.ids.tolist() == ids[4:].tolist() and found.valid.all()


def test_importance_is_that_of_minitron(teachers):
    """What block 2 keeps, recomputed: mean over tokens of |activation|, L2 over sequences, norms summed."""
    teacher, seen = teachers["llama"], {}
    block = teacher.model.layers[2]
    norms = [f"model.layers.{n}.{norm}_layernorm" for n in (0, 2) for norm in ("input", "post_attention")]
    norms.append("model.norm")
    hooks = [
        teacher.get_submodule(path).register_forward_hook(
            lambda _, inputs, output, path=path: seen.update({path: (inputs[0].double(), output.double())})
        )
        for path in [*norms, "model.layers.2.mlp.down_proj", "model.layers.2.self_attn.o_proj"]
    ]
    logits(teacher)
    for hook in hooks:
        hook.remove()

    def importance(activations):
        return activations.abs().mean(1).square().sum(0).sqrt()

    stream = sum(importance(seen[path][1]) for path in norms).topk(16).indices.sort().values
    neurons = importance(seen["model.layers.2.mlp.down_proj"][0]).topk(32).indices.sort().values
    heads = importance(seen["model.layers.2.self_attn.o_proj"][0].unflatten(-1, (4, 8)).norm(dim=-1))
    group = int(heads[2:].sum() > heads[:2].sum())
    made = built(teacher, layers=2, init="slice", **HALF)[0].model.layers[1]
    keys = block.self_attn.k_proj.weight[8 * group : 8 * group + 8]
    assert torch.equal(made.mlp.up_proj.weight, block.mlp.up_proj.weight[neurons][:, stream])
    assert torch.equal(made.self_attn.k_proj.weight, keys[:, stream])


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("llama", {"hidden_size": 40}, r"students.s.hidden_size: 40 is above the teacher's 32, .* write at most 32"),
        ("gpt2", {"intermediate_size": 256}, "students.s.intermediate_size: 256 is above the teacher's 128"),
        ("qwen3", {"heads": 3}, "students.s.heads: 3 would break up the teacher's groups of 2 .* write 4"),
        ("gemma", {"hidden_size": 22}, "students.s.hidden_size: 22 is no multiple of 4 heads; write 20"),
        ("gpt2", {"hidden_size": 16}, "hidden_size: 16 is not 4 heads .* write hidden_size: 16 and heads: 2"),
        ("gpt2", {"heads": 2}, "hidden_size: 32 is not 2 heads .* write hidden_size: 16 and heads: 2"),
        ("llama", {"layers": 4}, "students.s: 4 layers cannot be copied from a teacher with 3"),
        ("gemma2", {"init": "pca", "hidden_size": 16}, "pca cannot turn the stream of gemma2, .* write init: slice"),
        ("smollm3", {}, "init: slice does not know the layout of smollm3, only of llama, .* write init: random"),
    ],
)  # fmt: skip
def test_shapes_and_families_that_cannot_be_cut_out(teachers, kind, size, expected):
    from transformers import AutoConfig

    config = teachers[kind].config if kind in teachers else AutoConfig.for_model(kind, num_hidden_layers=4)
    with pytest.raises(InputError, match=expected) as raised:
        student.student_config(spec.Student(**{"name": "s", "layers": 2, "init": "slice"} | size), config)
    assert "\n" not in str(raised.value)


def half_empty(teacher, along_channels):
    """A copy whose stream, heads and MLP use half of their room: every state lies in half of the channels, or in a
    subspace with half of the directions."""
    config, wide, gpt2 = copy.deepcopy(teacher.config), 32, teacher.config.model_type == "gpt2"
    setattr(config, "layer_norm_epsilon" if gpt2 else "rms_norm_eps", 1e-12)  # it weighs more where fewer share it
    made = type(teacher)(config)
    made.load_state_dict(teacher.state_dict())
    generator = torch.Generator().manual_seed(1)
    if along_channels:
        used = torch.zeros(wide)
        used[torch.randperm(wide, generator=generator)[:16]] = 1
        onto = used.diag() - gpt2 * used[:, None] * used / 16  # a LayerNorm takes the mean away: let it be 0
    else:
        basis = torch.linalg.qr(torch.randn(wide, 15, generator=generator)).Q
        onto = basis @ basis.T
    with torch.no_grad():
        for name, weight in made.named_parameters():
            parts = name.split(".")
            if parts[-2] in ("embed_tokens", "wte", "wpe", "c_proj"):
                weight.copy_(weight @ onto)
            elif parts[-2] in ("o_proj", "down_proj"):
                weight.copy_(onto @ weight)
            elif parts[-2] == "v_proj":
                weight[:8] = 0
            elif parts[-2] == "up_proj":
                weight[::2] = 0
            elif parts[-2] == "c_attn":
                weight[..., 64:80] = 0
            elif parts[-2] == "c_fc":
                weight[..., torch.arange(128) % 4 > 0] = 0
            elif along_channels and parts[-2].startswith("ln_") and parts[-1] == "bias":
                weight.mul_(used)
    return made
