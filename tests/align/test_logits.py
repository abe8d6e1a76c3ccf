"""Divergences against float64 references written from the definitions, whose gradients autograd finds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkd.align.head import Objective, OnlineTeacher, fused_loss
from featkd.align.logits import DIVERGENCES
from featkd.align.output import Head

OBJECTIVES = list(DIVERGENCES)
CASES = {
    "objective": st.sampled_from(OBJECTIVES),
    "tokens": st.integers(1, 9),
    "vocabulary": st.integers(2, 60),
    "temperature": st.floats(0.25, 8),
    "mix": st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    "ce_weight": st.sampled_from([0.0, 0.1, 1.0]),
    "scale": st.sampled_from([1e-3, 1.0, 5.0, 20.0]),
    "seed": st.integers(0, 2**16),
}


def random(*shape, seed, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def kl(a, b):
    """sum a log(a / b) by the definition, 0 where a is 0."""
    return torch.where(a > 0, a * (a / b).log(), torch.zeros_like(a)).sum(-1)


def reference(objective, p, q, b):
    if objective == "forward-kl" or (objective == "jsd" and b == 0):
        return kl(p, q)
    if objective == "reverse-kl" or (objective == "jsd" and b == 1):
        return kl(q, p)
    if objective == "jsd":
        m = b * p + (1 - b) * q
        return b * kl(p, m) + (1 - b) * kl(q, m)
    if objective == "skew-kl":
        return kl(p, b * p + (1 - b) * q)
    return kl(q, (1 - b) * p + b * q)


def exact(z, t, targets, temperature, ce_weight, objective, mix):
    """(loss, gradient) in float64."""
    z = z.double().clone().requires_grad_()
    p, q = torch.softmax(t.double() / temperature, -1), torch.softmax(z / temperature, -1)
    hard = -torch.log_softmax(z, -1)[torch.arange(len(z)), targets].mean()
    loss = temperature**2 * reference(objective, p, q, mix).mean() + ce_weight * hard
    (gradient,) = torch.autograd.grad(loss, z)
    return float(loss.detach()), gradient


def found(z, t, targets, temperature, ce_weight, objective, mix, top_k=None):
    z = z.clone().requires_grad_()
    teacher = OnlineTeacher(t, Head(None))
    loss = fused_loss(z, Head(None), targets, teacher, Objective(objective, mix, temperature, ce_weight, top_k))
    loss.backward()
    return float(loss.detach()), z.grad


def close(got, expected, relative, floor):
    """Error in the norm, relative or under a floor: where student and teacher nearly agree the gradient cancels."""
    return float((got.double() - expected).norm()) <= relative * float(expected.norm()) + floor


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**CASES)
def test_losses_and_gradients(objective, tokens, vocabulary, temperature, mix, ce_weight, scale, seed):
    z, t = (random(tokens, vocabulary, seed=seed + n, scale=scale).float() for n in (0, 1))
    targets = torch.arange(tokens) % vocabulary
    case = (z, t, targets, temperature, ce_weight, objective, mix)
    (loss, gradient), (expected, expected_gradient) = found(*case), exact(*case)
    # a float32 log-probability of -x is known to about 1e-7 x, and its divergence is that times T^2
    floor = 1e-6 * temperature**2 * max(1.0, scale / temperature)
    assert loss == pytest.approx(expected, rel=1e-5, abs=floor)
    assert close(gradient, expected_gradient, 1e-5, floor)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("mix", [0.0, 0.1, 1.0])
def test_equal_logits_give_no_loss_and_no_gradient(objective, mix):
    z = random(5, 40, seed=0, scale=4).float()
    loss, gradient = found(z, z, torch.zeros(5, dtype=torch.long), 2.0, 0.0, objective, mix)
    assert abs(loss) < 1e-5 and float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rounded_inputs_of_a_large_vocabulary_give_gradients_within_a_percent(objective):
    z, t = (random(2, 151_936, seed=n, scale=3).bfloat16() for n in (0, 1))
    case = (z, t, torch.tensor([5, 9]), 1.0, 0.1, objective, 0.1)
    assert close(found(*case)[1], exact(*case)[1], 1e-2, 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_hundred_and_fifty_thousand_words_in_float32(objective):
    z, t = (random(2, 151_936, seed=n, scale=3).float() for n in (0, 1))
    case = (z, t, torch.tensor([5, 9]), 1.0, 0.1, objective, 0.1)
    assert close(found(*case)[1], exact(*case)[1], 2e-5, 0)


@pytest.mark.parametrize(("mix", "limit"), [(1e-5, "forward-kl"), (1 - 1e-5, "reverse-kl")])
def test_jsd_tends_to_what_is_computed_at_its_ends(mix, limit):
    z, t, targets = random(4, 20, seed=0), random(4, 20, seed=1), torch.zeros(4, dtype=torch.long)
    loss, gradient = exact(z, t, targets, 1.0, 0.0, "jsd", mix)
    at_the_end, gradient_there = exact(z, t, targets, 1.0, 0.0, limit, 0.5)
    assert loss / (mix * (1 - mix)) == pytest.approx(at_the_end, rel=1e-3)
    assert close(gradient / (mix * (1 - mix)), gradient_there, 1e-3, 0)
    assert float(found(z.float(), t.float(), targets, 1.0, 0.0, "jsd", round(mix))[1].norm()) > 0.01


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_temperature_is_used_and_keeps_the_gradient_s_size(objective):
    z, t, targets = random(6, 50, seed=0).float(), random(6, 50, seed=1).float(), torch.zeros(6, dtype=torch.long)
    sizes = [float(found(z, t, targets, at, 0.0, objective, 0.1)[1].norm()) for at in (1.0, 4.0, 16.0)]
    assert len(set(sizes)) == 3 and max(sizes) / min(sizes) < 4


def test_one_token_may_be_certain_and_another_impossible():
    z, t = torch.zeros(2, 8), torch.zeros(2, 8)
    z[0, 0], t[0, 1], z[1, 2], t[1, 2] = 80.0, 80.0, 80.0, 80.0
    for objective in OBJECTIVES:
        loss, gradient = found(z, t, torch.zeros(2, dtype=torch.long), 1.0, 0.0, objective, 0.1)
        assert math.isfinite(loss) and loss > 0.1 and torch.isfinite(gradient).all()


def bucketed(z, t, k, temperature):
    """The definition: k tokens and one bucket, as distributions of k + 1."""
    p, q = torch.softmax(t / temperature, -1), torch.softmax(z / temperature, -1)
    ids = t.topk(k, dim=-1).indices
    p, q = (torch.cat([x.gather(-1, ids), 1 - x.gather(-1, ids).sum(-1, keepdim=True)], -1) for x in (p, q))
    return temperature**2 * kl(p, q).mean()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 6), vocabulary=st.integers(3, 50), share=st.floats(0.05, 0.95),
    temperature=st.floats(0.5, 4), seed=st.integers(0, 999),
)  # fmt: skip
def test_top_k_and_tail(tokens, vocabulary, share, temperature, seed):
    z, t = random(tokens, vocabulary, seed=seed, scale=2), random(tokens, vocabulary, seed=seed + 1, scale=2)
    k = max(1, min(vocabulary - 1, round(share * vocabulary)))
    student = z.clone().requires_grad_()
    expected = bucketed(student, t, k, temperature)
    expected.backward()
    loss, gradient = found(
        z.float(), t.float(), torch.zeros(tokens, dtype=torch.long), temperature, 0.0, "forward-kl", 0.5, k
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    assert close(gradient, student.grad, 1e-4, 1e-5)


def test_top_k_of_everything_is_the_whole_distribution():
    z, t, targets = random(3, 20, seed=0).float(), random(3, 20, seed=1).float(), torch.zeros(3, dtype=torch.long)
    whole, part = (found(z, t, targets, 2.0, 0.1, "forward-kl", 0.5, k) for k in (None, 99))
    assert part[0] == pytest.approx(whole[0], rel=1e-5) and close(part[1], whole[1].double(), 1e-5, 1e-7)


def test_mass_that_leaks_out_of_the_teachers_tokens_costs():
    """Renormalised on the teacher's tokens the loss would not move (two peers do that)."""
    z, t, targets = random(4, 50, seed=0).float(), random(4, 50, seed=1, scale=3).float(), torch.zeros(4).long()
    leaking = z + 10
    ids = t.topk(8, dim=-1).indices
    leaking.scatter_(-1, ids, z.gather(-1, ids))
    before, after = (found(x, t, targets, 1.0, 0.0, "forward-kl", 0.5, 8)[0] for x in (z, leaking))
    assert after > before + 3
