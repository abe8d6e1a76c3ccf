"""Students of the teacher's family, random or copied; folders that cannot be used."""

import pytest
import tiny_models
import torch

from featkd import spec
from featkd.errors import InputError
from featkd.models import given, student


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "qwen2", "gemma"])
def test_students_of_other_families(kind, tmp_path):
    made = given.load(tiny_models.save(kind, tmp_path, layers=3))
    narrow = spec.Student(name="s", layers=1, hidden_size=16, heads=2, intermediate_size=24)
    model, copied = student.build(narrow, made, 0)
    assert (model.config.num_hidden_layers, model.config.hidden_size, copied) == (1, 16, 0.0)
    assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.shape[-1] == made.config.vocab_size
    copied_model, share = student.build(spec.Student(name="c", layers=2, init="copy"), made, 0)
    assert share == 1.0
    last = [name for name in made.state_dict() if ".2." in name][0]
    assert torch.equal(copied_model.state_dict()[last.replace(".2.", ".1.")], made.state_dict()[last])


def test_shapes_that_do_not_fit_are_refused(tmp_path):
    made = given.load(tiny_models.save("llama", tmp_path))
    with pytest.raises(InputError, match="heads do not divide"):
        student.student_config(spec.Student(name="s", layers=1, hidden_size=18, heads=4), made.config)
    with pytest.raises(InputError, match="cannot be copied"):
        student.build(spec.Student(name="s", layers=9, init="copy"), made, 0)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "cannot be loaded"),
    ],
)
def test_teacher_folders_that_cannot_be_used(tmp_path, spoil, expected):
    tiny_models.save("llama", tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=expected) as raised:
        given.load(given.locate(str(tmp_path)))
    assert "\n" not in str(raised.value)


def test_copied_blocks_keep_their_kind_of_attention(tmp_path):
    made = given.load(tiny_models.save("gemma2", tmp_path, layers=4))
    kinds = made.config.layer_types
    assert len(set(kinds)) == 2
    copied = student.student_config(spec.Student(name="c", layers=2, init="copy"), made.config)
    assert copied.layer_types == [kinds[0], kinds[3]]
    random = student.student_config(spec.Student(name="r", layers=6), made.config)
    assert random.layer_types == (kinds + kinds)[:6]


@pytest.mark.parametrize(
    ("heads", "teacher_heads", "teacher_kv", "kv"),
    [(10, 9, 3, 2), (6, 9, 3, 2), (4, 32, 8, 1), (2, 32, 1, 1), (8, 8, 8, 8), (12, 32, 8, 3)],
)
def test_key_value_heads_keep_the_teacher_s_share_and_divide_the_heads(heads, teacher_heads, teacher_kv, kv):
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=8 * teacher_heads, num_attention_heads=teacher_heads, num_key_value_heads=teacher_kv
    )
    size = spec.Student(name="s", layers=1, hidden_size=8 * heads, heads=heads)
    assert student.student_config(size, config).num_key_value_heads == kv


def test_every_list_of_one_value_per_layer_follows_its_blocks():
    from transformers import AutoConfig

    config = AutoConfig.for_model("smollm3", num_hidden_layers=8, eos_token_id=list(range(8)))
    assert config.no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0]
    copied = student.student_config(spec.Student(name="c", layers=3, init="copy"), config)
    assert copied.no_rope_layers == [1, 1, 0] and len(copied.layer_types) == 3
    assert copied.eos_token_id == config.eos_token_id
    assert student.student_config(spec.Student(name="r", layers=5), config).no_rope_layers == [1, 1, 1, 0, 1]
