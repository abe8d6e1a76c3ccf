"""Gram and CKA between states of two widths, against float64 references written from the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkd.align.relations import MAX_TOKENS, cka, cka_loss, gram_loss

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
