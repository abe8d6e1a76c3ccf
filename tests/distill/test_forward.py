"""The trunk and the head apart say what the model says."""

import pytest
import tiny_models
import torch

from featkd.align.output import plain_logits
from featkd.distill.forward import Forward, rounded_layers
from featkd.models import given


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gemma3_text", "cohere", "granite"])
def test_logits_of_kept_positions_are_the_model_s_own(kind, tmp_path):
    """gemma caps its logits, cohere and granite scale them."""
    made = given.load(tiny_models.save(kind, tmp_path)).eval()
    ids = torch.arange(12).reshape(2, 6) + 1
    keep = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]], dtype=torch.bool)
    forward = Forward(made)
    assert forward.plain
    with torch.no_grad():
        found = plain_logits(forward(ids, keep).states, forward.head)
        assert torch.allclose(found, made(input_ids=ids).logits[keep], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_teacher_rounded_once_says_what_autocast_says(kind, tmp_path):
    made = given.load(tiny_models.save(kind, tmp_path)).eval().requires_grad_(False)
    ids, keep = torch.arange(12).reshape(2, 6) + 1, torch.ones(2, 6, dtype=torch.bool)
    forward = Forward(made)
    with torch.autocast("cpu", torch.bfloat16):
        before = forward.at_layers(ids, keep, None, {1, 2})
        linear = rounded_layers(made)
        forward.round_once()
        after = forward.at_layers(ids, keep, None, {1, 2})
    assert torch.equal(before.states, after.states)
    assert all(torch.equal(before.hidden[layer], after.hidden[layer]) for layer in (1, 2))
    assert made.get_input_embeddings().weight.dtype == torch.float32
    assert {layer.weight.dtype for layer in linear} == {forward.head.weight.dtype} == {torch.bfloat16}


def test_a_family_with_other_logits_goes_through_its_own_forward(tmp_path, monkeypatch):
    made = given.load(tiny_models.save("llama", tmp_path)).eval()
    own = type(made.lm_head).forward
    monkeypatch.setattr(type(made.lm_head), "forward", lambda self, x: own(self, x) ** 3)
    ids, keep = torch.arange(12).reshape(2, 6) + 1, torch.ones(2, 6, dtype=torch.bool)
    forward = Forward(made)
    assert not forward.plain
    with torch.no_grad():
        found = plain_logits(forward(ids, keep).states, forward.head)
        assert torch.allclose(found, made(input_ids=ids).logits[keep], atol=1e-5)
