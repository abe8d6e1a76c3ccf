"""Losses against float64 references written out by hand, gradients included."""

import pytest
import torch

from featkd.align.features import feature_terms, feature_weight
from featkd.align.layers import layer_pairs, projectors
from featkd.align.logits import cross_entropy, distillation_loss, log_probabilities
from featkd.align.logits import forward_kl as kl_of_log_probabilities
from featkd.errors import InputError


def random(*shape, seed=0, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def forward_kl(student, teacher, temperature):
    return kl_of_log_probabilities(
        log_probabilities(student, temperature), log_probabilities(teacher, temperature), temperature
    )


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_forward_kl_and_its_gradient(temperature):
    z, t = random(7, 31), random(7, 31, seed=1)
    p, q = (torch.softmax(logits / temperature, -1) for logits in (t, z))
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    student = z.float().requires_grad_()
    loss = forward_kl(student, t.float(), temperature)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert relative(student.grad, temperature * (q - p) / 7) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
def test_the_mixture_is_the_sum_of_its_parts(temperature, ce_weight):
    z, t, targets = random(6, 13).float(), random(6, 13, seed=1).float(), torch.arange(6)
    expected = forward_kl(z, t, temperature) + ce_weight * cross_entropy(z, targets)
    found = distillation_loss(z, log_probabilities(t, temperature), targets, temperature, ce_weight)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_equal_logits_give_no_loss_and_no_gradient():
    logits = random(5, 11).float().requires_grad_()
    loss = forward_kl(logits, logits.detach().clone(), 2.0)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert float(logits.grad.abs().max()) < 1e-7


def test_the_mean_is_over_tokens_so_that_repeating_a_batch_changes_nothing():
    z, t = random(6, 13).float(), random(6, 13, seed=1).float()
    assert float(forward_kl(z, t, 1.0)) == pytest.approx(
        float(forward_kl(z.repeat(3, 1), t.repeat(3, 1), 1.0)), rel=1e-6
    )
    targets = torch.arange(6)
    assert float(cross_entropy(z, targets)) == pytest.approx(float(cross_entropy(z.repeat(2, 1), targets.repeat(2))))


def test_the_teacher_gets_no_gradient():
    teacher = random(4, 9).float().requires_grad_()
    forward_kl(random(4, 9, seed=1).float().requires_grad_(), teacher, 1.0).backward()
    assert teacher.grad is None


def reference_terms(s, ps, t):
    """Token by token, from the definitions."""
    scale = t.norm(dim=-1).mean() / s.norm(dim=-1).mean()
    mean_t2 = (t**2).sum(-1).mean()
    l2 = sum(((a - b) ** 2).sum() for a, b in zip(ps, t, strict=True)) / len(t) / mean_t2
    direction = sum(1 - torch.dot(a, b) / (a.norm() * b.norm()) for a, b in zip(ps, t, strict=True)) / len(t)
    norm = sum(((scale.detach() * a.norm() - b.norm()) / b.norm()) ** 2 for a, b in zip(s, t, strict=True)) / len(t)
    return {"l2": l2, "direction": direction, "norm": norm}


@pytest.mark.parametrize("term", ["l2", "direction", "norm"])
def test_feature_terms_and_their_gradients(term):
    s, w, t = random(9, 5), random(8, 5, seed=1), random(9, 8, seed=2)
    exact = s.clone().requires_grad_()
    expected = reference_terms(exact, exact @ w.T, t)[term]
    expected.backward()
    student = s.float().requires_grad_()
    found = feature_terms(student, student @ w.T.float(), t.float())[term]
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert relative(student.grad, exact.grad) < 1e-5


def test_l2_is_the_norm_term_plus_a_norm_weighted_direction_term():
    s, t = random(9, 8), random(9, 8, seed=1)
    cosine = torch.cosine_similarity(s, t)
    parts = (s.norm(dim=-1) - t.norm(dim=-1)) ** 2 + 2 * s.norm(dim=-1) * t.norm(dim=-1) * (1 - cosine)
    expected = parts.mean() / (t**2).sum(-1).mean()
    assert float(feature_terms(s, s, t)["l2"]) == pytest.approx(float(expected), rel=1e-5)


def test_equal_states_give_no_feature_loss_and_no_gradient():
    t = random(6, 8).float()
    student = t.clone().requires_grad_()
    terms = feature_terms(student, student, t)
    sum(terms.values()).backward()
    assert all(abs(float(value.detach())) < 1e-5 for value in terms.values())
    assert float(student.grad.abs().max()) < 1e-5


def test_degenerate_states_stay_finite():
    student = torch.zeros(3, 4, requires_grad=True)
    terms = feature_terms(student, student * 1.0, torch.zeros(3, 4))
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
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
