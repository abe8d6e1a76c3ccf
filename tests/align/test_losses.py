"""Losses against float64 references written out by hand, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkd.align.features import feature_loss, feature_weight
from featkd.align.layers import layer_pairs, projectors
from featkd.align.head import Head, OnlineTeacher, fused_loss
from featkd.errors import InputError


def random(*shape, seed=0, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def forward_kl(student, teacher):
    targets = torch.zeros(len(student), dtype=torch.long)
    return fused_loss(student, Head(None), targets, OnlineTeacher(teacher, Head(None)))


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def test_the_mean_is_over_tokens_so_that_repeating_a_batch_changes_nothing():
    z, t, targets = random(6, 13).float(), random(6, 13, seed=1).float(), torch.arange(6)
    assert float(forward_kl(z, t)) == pytest.approx(float(forward_kl(z.repeat(3, 1), t.repeat(3, 1))), rel=1e-6)
    once, twice = (float(fused_loss(z.repeat(n, 1), Head(None), targets.repeat(n))) for n in (1, 2))
    assert once == pytest.approx(twice, rel=1e-6)


def test_the_teacher_gets_no_gradient():
    teacher = random(4, 9).float().requires_grad_()
    forward_kl(random(4, 9, seed=1).float().requires_grad_(), teacher).backward()
    assert teacher.grad is None


def reference_terms(s, ps, t):
    """Token by token, from the definitions."""
    scale = t.norm(dim=-1).mean() / s.norm(dim=-1).mean()
    mean_t2 = (t**2).sum(-1).mean()
    l2 = sum(((a - b) ** 2).sum() for a, b in zip(ps, t, strict=True)) / len(t) / mean_t2
    direction = sum(1 - torch.dot(a, b) / (a.norm() * b.norm()) for a, b in zip(ps, t, strict=True)) / len(t)
    norm = sum(((scale.detach() * a.norm() - b.norm()) / b.norm()) ** 2 for a, b in zip(s, t, strict=True)) / len(t)
    return {"l2": l2, "direction": direction, "norm": norm}


TERMS = ("l2", "direction", "norm")


def terms(student, projector, teacher):
    """Each term alone."""
    return {
        term: feature_loss(student, projector, teacher, *(float(term == other) for other in TERMS)) for term in TERMS
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 12), widths=st.tuples(st.integers(1, 9), st.integers(1, 9)), equal=st.booleans(),
    weights=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 3), scale=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_feature_terms_and_their_gradients(tokens, widths, equal, weights, scale, seed):
    mine, theirs = (widths[0], widths[0]) if equal else widths
    s, t = random(tokens, mine, seed=seed), random(tokens, theirs, seed=seed + 1, scale=scale)
    w = None if equal else random(theirs, mine, seed=seed + 2)
    exact = [x.clone().requires_grad_() for x in (s, w) if x is not None]
    reference = reference_terms(exact[0], exact[0] if equal else exact[0] @ exact[1].T, t)
    expected = sum(weight * reference[term] for weight, term in zip(weights, TERMS, strict=True))
    single = [x.float().requires_grad_() for x in (s, w) if x is not None]
    found = feature_loss(single[0], None if equal else single[1], t.float(), *weights)
    found.backward()
    assert float(found.detach()) == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-4, abs=1e-5)
    if any(weights):
        expected.backward()
        for mine, theirs in zip(single, exact, strict=True):
            # of one dimension the cosine is a constant, and its gradient nothing but rounding
            error = float((mine.grad.double() - theirs.grad).norm())
            assert error <= 1e-4 * float(theirs.grad.norm()) + 1e-5 / float(s.norm(dim=-1).min().clamp_max(1))


def test_l2_is_the_norm_term_plus_a_norm_weighted_direction_term():
    s, t = random(9, 8), random(9, 8, seed=1)
    cosine = torch.cosine_similarity(s, t)
    parts = (s.norm(dim=-1) - t.norm(dim=-1)) ** 2 + 2 * s.norm(dim=-1) * t.norm(dim=-1) * (1 - cosine)
    expected = parts.mean() / (t**2).sum(-1).mean()
    assert float(terms(s, None, t)["l2"]) == pytest.approx(float(expected), rel=1e-5)


def test_equal_states_give_no_feature_loss_and_no_gradient():
    t = random(6, 8).float()
    student = t.clone().requires_grad_()
    found = terms(student, None, t)
    sum(found.values()).backward()
    assert all(abs(float(value.detach())) < 1e-5 for value in found.values())
    assert float(student.grad.abs().max()) < 1e-5


def test_the_teachers_states_get_no_gradient():
    teacher = random(4, 8).float().requires_grad_()
    feature_loss(random(4, 8, seed=1).float().requires_grad_(), None, teacher, 1.0, 1.0, 1.0).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("projector", [None, torch.ones(4, 4)])
def test_degenerate_states_stay_finite(projector):
    student = torch.zeros(3, 4, requires_grad=True)
    found = terms(student, projector, torch.zeros(3, 4))
    sum(found.values()).backward()
    assert all(torch.isfinite(value) for value in found.values())
    assert torch.isfinite(student.grad).all()


def test_uniform_pairs_are_at_one_relative_depth_and_never_touch_the_last_block():
    for student in range(1, 13):
        for teacher in range(1, 33):
            pairs = layer_pairs("uniform", student, teacher)
            assert pairs[0] == (0, 0)
            assert all(0 < s < student and 0 < t < teacher for s, t in pairs[1:])
            assert all(2 * abs(s * teacher - t * student) <= student for s, t in pairs)
            assert len({s for s, _ in pairs}) == len(pairs)
    assert layer_pairs("uniform", 6, 12) == [(0, 0), (2, 4), (4, 8)]
    assert layer_pairs("uniform", 4, 12) == [(0, 0), (1, 3), (3, 9)]
    assert layer_pairs("uniform", 2, 4) == [(0, 0), (1, 2)]
    assert layer_pairs("uniform", 1, 4) == [(0, 0)]


def test_explicit_pairs_are_checked():
    assert layer_pairs([(1, 2)], 2, 4) == [(1, 2)]
    with pytest.raises(InputError, match="out of range"):
        layer_pairs([(3, 1)], 2, 4)


def test_projectors_start_orthonormal_and_are_absent_between_equal_widths():
    (linear,) = projectors([(0, 0)], 4, 8, seed=0)
    assert torch.allclose(linear.weight.T @ linear.weight, torch.eye(4), atol=1e-5)
    assert not list(projectors([(0, 0)], 8, 8, seed=0).parameters())


def test_feature_terms_fade_at_the_end():
    assert [feature_weight(at, 0.25) for at in (0, 0.5, 0.75)] == [1, 1, 1]
    assert feature_weight(0.875, 0.25) == pytest.approx(0.5)
    assert feature_weight(1, 0.25) == 0
    assert feature_weight(0.99, 0) == 1
