"""Students cut out of a wider teacher: exact where nothing is lost, refused where it cannot be done."""

import copy

import pytest
import tiny_models
import torch

from featkd import spec
from featkd.models import given, student

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2"]
TURNED = [kind for kind in FAMILIES if kind not in ("gemma2", "gemma3_text")]
IDS = torch.randint(1, 300, (12, 32), generator=torch.Generator().manual_seed(0))
PROBE = IDS, torch.ones_like(IDS, dtype=torch.bool)
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
