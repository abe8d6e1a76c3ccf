"""Q, K and V relations against a float64 reference, and what is read of the blocks of each family."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_relations import NAN, close, random, random_mask, value_and_gradient
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from featkd.align.relations import QKV, relation_loss
from featkd.errors import InputError


def exact_relation(student, teacher, heads, mask):
    """Query by query, over the valid keys up to it."""
    total, queries = 0.0, mask.nonzero().tolist()
    for own, theirs in zip(student, teacher, strict=True):
        for row, query in queries:
            keys = [key for key in range(query + 1) if mask[row, key]]
            for head in range(heads):
                q, p = (
                    torch.softmax(part[keys] @ part[query] / math.sqrt(part.shape[-1]), -1)
                    for part in (x[row].chunk(heads, dim=-1)[head] for x in (own, theirs))
                )
                total = total + (p * (p / q).log()).sum()
    return total / (heads * len(queries))


def projections(widths, batch, block, seed, scale=1.0):
    return [random(batch, block, width, seed=seed + n, scale=scale).float() for n, width in enumerate(widths)]


def doubled(states):
    return [part.detach().double() for part in states]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 4), parts=st.tuples(*[st.integers(1, 4)] * 4), batch=st.integers(1, 3),
    block=st.integers(1, 7), share=st.sampled_from([0.3, 0.7, 1.0]), scale=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_relation_and_its_gradient(heads, parts, batch, block, share, scale, seed):
    mask = random_mask(batch, block, share, seed)
    mask[0, 0] = True
    s = projections([heads * parts[0], heads * parts[1], heads * parts[1]], batch, block, seed, scale)
    t = projections([heads * parts[2], heads * parts[3], heads * parts[3]], batch, block, seed + 10, scale)
    expected, exact = value_and_gradient(lambda *s: exact_relation(s, doubled(t), heads, mask), *doubled(s))
    found, mine = value_and_gradient(lambda *s: relation_loss(s, t, heads, mask), *s)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for gradient, reference in zip(mine, exact, strict=True):
        assert close(gradient, reference, 1e-4, 1e-7)
        assert float(gradient[~mask].norm()) == 0


@pytest.mark.parametrize("garbage", [1e30, NAN, float("inf")])
@pytest.mark.parametrize("left", [True, False])
def test_masked_garbage_changes_nothing(garbage, left):
    s, t = projections([8, 4, 4], 2, 6, 0), projections([12, 8, 8], 2, 6, 5)
    mask = torch.ones(2, 6, dtype=torch.bool)
    expected, gradients = value_and_gradient(lambda *s: relation_loss(s, t, 2, mask), *s)
    pad = (3, 0) if left else (0, 3)
    padded = [[torch.nn.functional.pad(x, (0, 0, *pad), value=garbage) for x in side] for side in (s, t)]
    wider = torch.nn.functional.pad(mask, pad)
    found, mine = value_and_gradient(lambda *s: relation_loss(s, padded[1], 2, wider), *padded[0])
    assert found == pytest.approx(expected, rel=1e-6)
    for gradient, reference in zip(mine, gradients, strict=True):
        assert torch.allclose(gradient[wider].view_as(reference), reference, atol=1e-7)
        assert float(gradient[~wider].abs().max()) == 0


def test_relation_of_equal_states_and_of_none():
    s = projections([8, 4, 4], 2, 5, 0)
    everything, nothing = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    lonely = nothing.clone()
    lonely[:, 2] = True
    other = projections([8, 4, 4], 2, 5, 7)
    for target, mask in ((s, everything), (other, nothing), (other, lonely)):
        found, gradients = value_and_gradient(lambda *s, t=target, m=mask: relation_loss(s, t, 2, m), *s)
        assert found == 0 and all(float(gradient.abs().max()) == 0 for gradient in gradients)


def test_the_relation_is_causal():
    s, t = projections([8, 4, 4], 1, 5, 0), projections([8, 4, 4], 1, 5, 7)
    past = torch.tensor([[True, True, True, False, False]])
    _, gradients = value_and_gradient(lambda *s: relation_loss(s, t, 2, past), *s)
    assert all(float(gradient[:, 3:].norm()) == 0 for gradient in gradients)
    later = [torch.cat([x[:, :3], x[:, 3:] + 9], 1) for x in s]
    assert float(relation_loss(later, t, 2, past)) == float(relation_loss(s, t, 2, past))


def test_repeating_a_batch_changes_nothing():
    s, t, mask = projections([8, 4, 4], 2, 5, 0), projections([4, 4, 4], 2, 5, 7), random_mask(2, 5, 0.7, 3)
    twice = relation_loss([x.repeat(2, 1, 1) for x in s], [x.repeat(2, 1, 1) for x in t], 2, mask.repeat(2, 1))
    assert float(twice) == pytest.approx(float(relation_loss(s, t, 2, mask)), rel=1e-6)


def test_relation_under_autocast_and_without_a_gradient_for_the_teacher():
    mask = torch.ones(2, 5, dtype=torch.bool)
    s, t = ([x.bfloat16() for x in projections([8, 4, 4], 2, 5, seed)] for seed in (0, 7))
    for part in t:
        part.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found, mine = value_and_gradient(lambda *s: relation_loss(s, t, 2, mask), *s)
    expected, exact = value_and_gradient(lambda *s: exact_relation(s, doubled(t), 2, mask), *doubled(s))
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(close(gradient, reference, 1e-2) for gradient, reference in zip(mine, exact, strict=True))
    assert all(part.grad is None for part in t)


def test_heads_that_do_not_divide_a_width_are_refused():
    s, t, mask = projections([32, 16, 16], 1, 3, 0), projections([48, 48, 48], 1, 3, 1), torch.ones(1, 3).bool()
    with pytest.raises(InputError, match=r"distillation.relation_heads: 12 does not .* divisor of 16, e.g. 8"):
        relation_loss(s, t, 12, mask)
    assert float(relation_loss(s, t, 16, mask)) > 0


def tiny(kind, **more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    config = AutoConfig.for_model(kind, vocab_size=50, **(sizes | more), bos_token_id=1, eos_token_id=2)
    config._attn_implementation = "spy"
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


ATTENDED = {}


def spy(module, query, key, value, mask, **options):
    """What the family itself takes for Q, K and V: after rotation and norms of heads. Each [batch, block, width]."""
    ATTENDED[module.layer_idx + 1] = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]
    options["softcap"] = None
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=True, **options)


AttentionInterface.register("spy", spy)
WIDTHS = {"gpt2": (32, 32, 32), "gpt_neox": (32, 32, 32)}
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt2", "gpt_neox", "phi3", "phi"]
HEAD_NORMS = ("qwen3", "gemma3_text")
IDS = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_read_is_what_the_family_attends_with(kind):
    model = tiny(kind)
    with QKV(model, 2) as second:
        model(IDS)
        q, k, v = second.take()
    attended = ATTENDED[2]
    assert [x.shape for x in (q, k, v)] == [(2, 6, width) for width in WIDTHS.get(kind, (32, 16, 16))]
    assert torch.equal(v, attended[2])
    if kind not in HEAD_NORMS:  # the first position is not rotated
        assert torch.equal(q[:, 0], attended[0][:, 0]) and torch.equal(k[:, 0], attended[1][:, 0])
    if kind == "gpt2":  # without rotation
        assert torch.equal(q, attended[0]) and torch.equal(k, attended[1])
    assert all(x.requires_grad for x in (q, k, v))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_block_is_the_one_whose_output_is_the_hidden_state_of_that_index(kind):
    model = tiny(kind)
    for block in (1, 2, 3):
        with QKV(model, block) as captured:
            states = model(IDS, output_hidden_states=True).hidden_states
            q, _, _ = captured.take()
        before = torch.autograd.grad(q.sum(), states[block - 1], retain_graph=True)[0]
        assert float(before.norm()) > 0
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(q.sum(), states[block])


def test_a_student_learns_the_teachers_relations():
    teacher, student = tiny("llama", hidden_size=48, head_dim=12), tiny("gpt2")
    mask = torch.ones_like(IDS, dtype=torch.bool)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    with QKV(teacher, 3) as theirs, QKV(student, 2) as own:
        for _ in range(10):
            with torch.no_grad():
                teacher(IDS)
            student(IDS)
            loss = relation_loss(own.take(), theirs.take(), 8, mask)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert student.transformer.h[2].attn.c_attn.weight.grad is None


def test_no_hook_stays_behind():
    model = tiny("llama")
    with pytest.raises(ZeroDivisionError), QKV(model, 1):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("block", [0, 4, -1])
def test_a_block_out_of_range_is_refused(block):
    with pytest.raises(InputError, match=f"distillation.layer_pairs: {block} has .* from 1 to 3"):
        QKV(tiny("llama"), block)


GATED = {"layer_types": ["full_attention"] * 3, "num_experts": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(("kind", "more"), [("bloom", {}), ("mamba", {}), ("qwen3_next", GATED)])
def test_a_family_that_cannot_be_read_is_refused(kind, more):
    model = tiny(kind, **more)
    with pytest.raises(InputError, match=f"distillation.relation_weight: cannot .* block 1 of {kind}; write 0"):
        QKV(model, 1)
