"""Losses between states of two widths, against float64 references written from the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from featkd.align.relations import MAX_TOKENS, QKV, cka, cka_loss, gram_loss, relation_loss
from featkd.errors import InputError

NAN = float("nan")
POINTWISE = {
    "gram": gram_loss,
    "cka": cka_loss,
    "debiased cka": lambda student, teacher: cka_loss(student, teacher, debiased=True),
}


def random(*shape, seed=0, scale=1.0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def rotation(width, seed=9):
    return torch.linalg.qr(random(width, width, seed=seed)).Q


def random_mask(batch, block, share, seed):
    return torch.rand(batch, block, generator=torch.Generator().manual_seed(seed)) < share


def value_and_gradient(loss, *student):
    """Of a loss of float tensors; the gradients in the order of the tensors."""
    leaves = [states.detach().clone().requires_grad_() for states in student]
    value = loss(*leaves)
    value.backward()
    return float(value.detach()), [leaf.grad for leaf in leaves]


def close(found, expected, relative, floor=0.0):
    return float((found.double() - expected).norm()) <= relative * float(expected.norm()) + floor


def exact_gram(student, teacher):
    own, theirs = (torch.cosine_similarity(states[:, None], states[None], dim=-1) for states in (student, teacher))
    return (own - theirs).square().mean()


def hsic(k, m):
    centre = torch.eye(len(k), dtype=k.dtype) - 1 / len(k)
    return torch.trace(k @ centre @ m @ centre)


def hsic_1(k, m):
    """Song et al. 2012, equation 5: diagonals out, nothing centred."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, m = (gram - torch.diag(torch.diag(gram)) for gram in (k, m))
    between = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return (torch.trace(k @ m) + between) / (n * (n - 3))


def exact_cka(student, teacher, of=hsic):
    k, m = student @ student.T, teacher @ teacher.T
    return of(k, m) / (of(k, k) * of(m, m)).sqrt()


EXACT = {
    "gram": exact_gram,
    "cka": lambda student, teacher: 1 - exact_cka(student, teacher),
    "debiased cka": lambda student, teacher: 1 - exact_cka(student, teacher, hsic_1),
}


@pytest.mark.parametrize("name", POINTWISE)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3), block=st.integers(2, 9), widths=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    share=st.sampled_from([0.4, 0.8, 1.0]), scale=st.sampled_from([1e-2, 1.0, 1e3]), shift=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_losses_on_valid_tokens_and_their_gradients(name, batch, block, widths, share, scale, shift, seed):
    mask = random_mask(batch, block, share, seed)
    if mask.sum() < 5:
        mask = torch.ones(batch, block + 4, dtype=torch.bool)
    s = random(*mask.shape, widths[0], seed=seed, scale=scale, shift=shift * scale).float()
    t = random(*mask.shape, widths[1], seed=seed + 1).float()
    expected, (gradient,) = value_and_gradient(lambda s: EXACT[name](s[mask], t.double()[mask]), s.double())
    found, (mine,) = value_and_gradient(lambda s: POINTWISE[name](s[mask], t[mask]), s)
    # at width 1 cosines are constants, and of few tokens CKA is near 1: there the gradient is but rounding
    valid = s.double()[mask]
    size = valid.norm(dim=-1).min() if name == "gram" else (valid - valid.mean(0)).norm()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert close(mine, gradient, 1e-5, 1e-6 / float(size))
    assert float(mine[~mask].norm()) == 0


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("tokens", [30, 200])
def test_states_like_those_of_a_language_model(name, tokens):
    """One direction outweighs all others, and the rest has correlations; fewer tokens than widths, and more."""
    s, t = (random(tokens, 16, seed=n) @ random(16, width, seed=n + 2) for n, width in enumerate((48, 64)))
    s[:, 3] += 500
    s[0] *= 30
    expected, (gradient,) = value_and_gradient(lambda s: EXACT[name](s, t.float().double()), s.float().double())
    found, (mine,) = value_and_gradient(lambda s: POINTWISE[name](s, t.float()), s.float())
    assert found == pytest.approx(expected, rel=1e-4) and close(mine, gradient, 1e-4)


def test_gram_takes_tokens_at_even_distances():
    s, t = random(3 * MAX_TOKENS, 5).float(), random(3 * MAX_TOKENS, 7, seed=1).float()
    found, (gradient,) = value_and_gradient(lambda s: gram_loss(s, t), s)
    assert found == pytest.approx(float(gram_loss(s[::3], t[::3])))
    assert (gradient.norm(dim=-1) > 0).nonzero()[:, 0].tolist() == list(range(0, 3 * MAX_TOKENS, 3))


@pytest.mark.parametrize("tokens", [257, 300, 511, 513, 5000])
def test_no_token_is_chosen_twice_and_no_stretch_is_left_out(tokens):
    states, teacher = random(tokens, 8, seed=2).float(), random(tokens, 4).float()
    _, (gradient,) = value_and_gradient(lambda s: gram_loss(s, teacher), states)
    chosen = (gradient.norm(dim=-1) > 0).nonzero()[:, 0]
    assert len(chosen) == MAX_TOKENS
    ends = torch.tensor([-1]), torch.tensor([tokens])
    assert int(torch.cat([ends[0], chosen, ends[1]]).diff().max()) <= tokens // MAX_TOKENS + 1


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_equal_states_give_no_loss_and_no_gradient(name, tokens):
    states = random(tokens, 12, scale=3, shift=1).float()
    found, (gradient,) = value_and_gradient(lambda s: POINTWISE[name](s, states), states)
    assert found == pytest.approx(1 if tokens == 1 and name != "gram" else 0, abs=1e-6)
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("name", POINTWISE)
def test_a_rotation_changes_nothing_and_a_scale_nothing_either(name):
    loss, s, t = POINTWISE[name], random(20, 6).float(), random(20, 9, seed=1).float()
    expected = pytest.approx(float(loss(s, t)), rel=1e-5)
    assert float(loss(s @ rotation(6).float(), t)) == expected
    assert float(loss(s, t @ rotation(9).float())) == expected
    assert float(loss(1e4 * s, 1e-4 * t)) == expected
    if name != "gram":
        assert float(loss(s + 5, t - random(9, seed=3).float())) == expected


def test_a_map_that_is_no_rotation_counts():
    s, squeeze = random(20, 6).float(), torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]))
    assert all(float(loss(s @ squeeze, s)) > 0.05 for loss in POINTWISE.values())


def test_few_tokens_of_unrelated_states_look_alike_to_the_plain_cka_alone():
    found = [
        (float(cka(s, t)), float(cka(s, t, debiased=True)))
        for s, t in ((random(12, 200, seed=n).float(), random(12, 300, seed=n + 100).float()) for n in range(10))
    ]
    plain, debiased = torch.tensor(found).mean(0).tolist()
    assert plain > 0.9 and abs(debiased) < 0.1


def test_swapping_the_two_sides_changes_nothing():
    s, t = random(9, 4).float(), random(9, 30, seed=1).float()
    for loss in POINTWISE.values():
        assert float(loss(s, t)) == pytest.approx(float(loss(t, s)), rel=1e-5)


DEGENERATE = {
    "no token": torch.zeros(0, 4),
    "one token": torch.ones(1, 4),
    "two tokens": random(2, 4).float(),
    "three tokens": random(3, 4).float(),
    "zeros": torch.zeros(6, 4),
    "constant": torch.full((6, 4), 0.1),
    "large and constant": torch.full((7, 4), 1e4 / 3),
    "a row of zeros": torch.cat([random(5, 4).float(), torch.zeros(1, 4)]),
    "tokens at right angles": torch.eye(6),
}


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_states_have_a_finite_loss_and_gradient(name, case):
    states = DEGENERATE[case]
    other = random(len(states), 5, seed=4).float()
    for mine, theirs in ((states, other), (other, states), (states, states)):
        found, (gradient,) = value_and_gradient(lambda s, t=theirs: POINTWISE[name](s, t), mine)
        assert math.isfinite(found) and torch.isfinite(gradient).all()
        assert float(gradient.norm()) < 10
        undefined = case in ("no token", "one token", "zeros", "constant", "large and constant")
        undefined |= name == "debiased cka" and case in ("two tokens", "three tokens", "tokens at right angles")
        if name != "gram" and undefined:
            assert found == 1 and float(gradient.norm()) == 0
    if name == "gram" and len(states) < 2:
        assert found == 0 and float(gradient.norm()) == 0


def test_a_row_of_zeros_gets_no_gradient_and_leaves_the_others_theirs():
    s, t = DEGENERATE["a row of zeros"], random(6, 3, seed=5).float()
    _, (gradient,) = value_and_gradient(lambda s: gram_loss(s, t), s)
    assert float(gradient[-1].norm()) == 0 and float(gradient[:-1].norm(dim=-1).min()) > 0


@pytest.mark.parametrize("name", POINTWISE)
def test_nan_is_told(name):
    s = random(6, 4).float()
    s[2, 1] = NAN
    assert math.isnan(float(POINTWISE[name](s, random(6, 4, seed=1).float())))


@pytest.mark.parametrize("name", POINTWISE)
def test_the_teacher_gets_no_gradient(name):
    teacher = random(8, 4).float().requires_grad_()
    POINTWISE[name](random(8, 4, seed=1).float().requires_grad_(), teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", POINTWISE)
def test_half_precision_outside_is_float32_inside(name):
    s, t = random(20, 6).bfloat16(), random(20, 9, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, (gradient,) = value_and_gradient(lambda s: POINTWISE[name](s, t), s)
    expected, (exact,) = value_and_gradient(lambda s: EXACT[name](s, t.double()), s.double())
    assert found == pytest.approx(expected, rel=1e-5)
    assert gradient.dtype == torch.bfloat16 and close(gradient, exact, 1e-2)


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
