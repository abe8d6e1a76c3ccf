"""Documents that share a block: each is to the models as if it stood alone, in states, losses and gradients."""

import numpy as np
import pytest
import tiny_models
import torch
from test_engine import RUN, blocks_of, students, weights
from transformers import AutoModelForCausalLM

from featkd.distill import batches, engine
from featkd.distill.forward import Forward
from featkd.errors import InputError
from featkd.models import given
from featkd.teaching import Distillation

LENGTHS = [[10, 17, 13], [1, 30, 9]]
SLIDING = {"sliding_window": 5}
QWEN2 = SLIDING | {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}
FAMILIES = {"llama": {}, "gpt2": {}, "qwen2": QWEN2, "qwen3": {}, "gemma": {}, "gemma2": SLIDING,
            "gemma3_text": SLIDING, "mistral": SLIDING}  # fmt: skip


def packed():
    """Blocks [3, 2, 40] of documents of LENGTHS, all learned but the first token of each."""
    ids = np.random.default_rng(0).integers(1, 300, (2, 40), dtype=np.int32)
    positions = np.array([np.concatenate([np.arange(n) for n in row]) for row in LENGTHS], dtype=np.int32)
    return np.stack([ids, np.where(positions == 0, batches.IGNORED, ids), positions])


def each_alone(blocks):
    """The same documents: blocks [3, 1, length] each."""
    for row, lengths in enumerate(LENGTHS):
        for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
            yield blocks[:, row : row + 1, start : start + length]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_document_in_a_block_is_as_if_alone(kind, attention, tmp_path):
    if (kind, attention) == ("gemma2", "sdpa"):
        pytest.skip("its soft cap has no SDPA")
    folder, blocks = tiny_models.save(kind, tmp_path), packed()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, **FAMILIES[kind]).eval()
    forward = Forward(model)
    assert forward.plain and forward.keeps_apart()

    def found(documents):
        """States, and the gradient of a sum over tokens."""
        model.zero_grad()
        states = []
        for part in documents:
            ids, labels, positions = batches.on_device(part, RUN)
            output = forward(ids, torch.ones_like(ids, dtype=torch.bool), positions, hidden=True)
            states.append(torch.stack([state.flatten(0, 1) for state in output.hidden]))
            weighed = output.states * torch.linspace(-1, 1, output.states.shape[-1])
            weighed.sum().backward()
        return torch.cat(states, 1).detach(), {n: p.grad for n, p in model.base_model.named_parameters()}

    (together, gradients), (alone, theirs) = found([blocks]), found(each_alone(blocks))
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, theirs[name], rtol=1e-4, atol=1e-4 * float(theirs[name].abs().max())), name
    ids, _, _ = batches.on_device(blocks, RUN)
    stream = forward(ids, torch.ones_like(ids, dtype=torch.bool)).states
    assert (stream.detach() - together[-1]).abs().max() > 0.1, "without positions they are not"


def test_held_out_losses_are_those_of_the_documents_alone(folder):
    forward, blocks = Forward(students(folder, ["sft"])[1][0].model), packed()
    together = batches.block_losses(forward, blocks, RUN, batch_size=2)
    alone = np.concatenate([batches.block_losses(forward, part, RUN, 1) for part in each_alone(blocks)])
    assert together.sum(0) == pytest.approx(alone.sum(0), rel=1e-6)


@pytest.mark.parametrize("apart", [True, False])
def test_what_stands_in_other_documents_makes_no_difference_to_a_training(folder, apart):
    """Nor to what is fitted on the text before it: the last document of each block is learned, the others are noise."""
    recipe = Distillation(layer_pairs="auto", projector="pca", gram_weight=1)
    found = []
    for seed in (0, 1):
        train_blocks, valid_blocks = blocks_of(folder)
        train_blocks[0][:, :20] = np.random.default_rng(seed).integers(1, 300, (24, 20))
        train_blocks[1][:, :21] = batches.IGNORED
        train_blocks[2][:, 20:] -= 20 * apart
        made, learners = students(folder, ["logit-kd", "feature-kd"], distillation=recipe)
        engine.train(learners, made, train_blocks, valid_blocks, RUN, lambda **fields: None)
        found.append([weights(learner) for learner in learners])
    for one, other in zip(*found, strict=True):
        assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one) == apart


def test_a_family_that_cannot_keep_documents_apart_is_refused_with_the_remedy(folder, tmp_path):
    """Bloom takes no positions."""
    _, (learner,) = students(folder, ["sft"])
    learner.model = given.load(tiny_models.save("bloom", tmp_path))
    train_blocks, valid_blocks = blocks_of(folder)
    engine.train([learner], None, train_blocks, valid_blocks, RUN, lambda **fields: None)
    train_blocks[2][:, 20:] -= 20
    with pytest.raises(InputError, match="data.attention: .* of the family bloom; write block"):
        engine.train([learner], None, train_blocks, valid_blocks, RUN, lambda **fields: None)
