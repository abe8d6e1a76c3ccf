"""Losses against float64 references written out by hand, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkd.align.features import Weights, dynamic_weight, feature_loss, feature_weight
from featkd.align.head import OnlineTeacher, fused_loss
from featkd.align.layers import layer_pairs, most_similar, similarities
from featkd.align.output import Head
from featkd.align.projectors import KINDS, check_projector, principal_directions, projector
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
    mean_t2 = (t**2).sum(-1).mean()
    rows = list(zip(s, ps, t, strict=True))
    l2 = sum(((b - c) ** 2).sum() for _, b, c in rows) / len(t) / mean_t2
    cosines = [torch.dot(b, c) / (b.norm() * c.norm()) for _, b, c in rows]
    stretch = (t.norm(dim=-1).mean() / s.norm(dim=-1).mean()).detach()
    scale = (t.norm(dim=-1).mean() / ps.norm(dim=-1).mean()).detach()
    longer = [
        scale * b.norm() * cosine / max(scale * b.norm(), c.norm())
        for (_, b, c), cosine in zip(rows, cosines, strict=True)
    ]
    return {
        "l2": l2,
        "direction": sum(1 - cosine for cosine in cosines) / len(t),
        "norm": sum(((stretch * a.norm() - c.norm()) / c.norm()) ** 2 for a, _, c in rows) / len(t),
        "nd": sum(1 - each for each in longer) / len(t),
    }


TERMS = Weights._fields


def terms(student, projected, teacher):
    """Each term alone."""
    return {term: feature_loss(student, projected, teacher, Weights(**{term: 1.0})) for term in TERMS}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 12), widths=st.tuples(st.integers(1, 9), st.integers(1, 9)), equal=st.booleans(),
    weights=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 4), scale=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_feature_terms_and_their_gradients(tokens, widths, equal, weights, scale, seed):
    mine, theirs = (widths[0], widths[0]) if equal else widths
    s, t = random(tokens, mine, seed=seed), random(tokens, theirs, seed=seed + 1, scale=scale)
    w = None if equal else random(theirs, mine, seed=seed + 2)
    sizes, wanted = (s if equal else s @ w.T).norm(dim=-1), t.norm(dim=-1)
    if float((sizes * wanted.mean() / sizes.mean() / wanted - 1).abs().min()) < 1e-5:
        weights = (*weights[:3], 0.0)  # where the larger of two norms is taken and they are equal, ND has no gradient
    exact = [x.clone().requires_grad_() for x in (s, w) if x is not None]
    reference = reference_terms(exact[0], exact[0] if equal else exact[0] @ exact[1].T, t)
    expected = sum(weight * reference[term] for weight, term in zip(weights, TERMS, strict=True))
    single = [x.float().requires_grad_() for x in (s, w) if x is not None]
    projected = single[0] if equal else single[0] @ single[1].T
    found = feature_loss(single[0], projected, t.float(), Weights(*weights))
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
    assert float(terms(s, s, t)["l2"]) == pytest.approx(float(expected), rel=1e-5)


def test_equal_states_give_no_feature_loss_and_no_gradient():
    t = random(6, 8).float()
    student = t.clone().requires_grad_()
    found = terms(student, student, t)
    sum(found.values()).backward()
    assert all(abs(float(value.detach())) < 1e-5 for value in found.values())
    assert float(student.grad.abs().max()) < 1e-5


def test_the_teachers_states_get_no_gradient():
    teacher = random(4, 8).float().requires_grad_()
    student = random(4, 8, seed=1).float().requires_grad_()
    feature_loss(student, student, teacher, Weights(1.0, 1.0, 1.0, 1.0)).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("teacher", [torch.zeros(3, 4), torch.ones(3, 4)])
def test_degenerate_states_stay_finite(teacher):
    student = torch.zeros(3, 4, requires_grad=True)
    found = terms(student, student, teacher)
    sum(found.values()).backward()
    assert all(torch.isfinite(value) for value in found.values())
    assert torch.isfinite(student.grad).all()


def test_the_norm_term_sees_no_scale_and_keeps_states_small():
    s, t = random(20, 6).float().requires_grad_(), random(20, 9, seed=1).float()
    loss, longer = (feature_loss(x, t, t, Weights(norm=1.0)) for x in (s, s * 7))
    assert float(loss.detach()) == pytest.approx(float(longer.detach()), rel=1e-5)
    loss.backward()
    assert float((s.detach() * s.grad).sum()) > 0.1 * float(s.detach().norm() * s.grad.norm())


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


def test_the_last_blocks_before_the_last():
    assert layer_pairs("last-2", 4, 12) == [(2, 10), (3, 11)]
    with pytest.raises(InputError, match="distillation.layer_pairs: last-4 needs 4 blocks before the last"):
        layer_pairs("last-4", 4, 12)


def test_auto_takes_the_most_similar_layers_in_order_and_no_last_block():
    rotate = torch.linalg.qr(random(16, 16, seed=9))[0][:12]
    teacher = [random(300, 12, seed=n) for n in range(7)]
    student = [teacher[n] @ rotate for n in (1, 2, 5, 6)]  # widths differ, and nothing but a rotation
    found = similarities([x.float() for x in student], [x.float() for x in teacher])
    assert most_similar([(0, 0), (1, 2), (2, 4)], found) == [(0, 1), (1, 2), (2, 5)]
    assert most_similar([(3, 4)], found)[0][1] < 6
    assert found[0, 1] == pytest.approx(1, abs=1e-4) and abs(found[0, 3]) < 0.1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("auto", "none")])
def test_projectors_fit_and_learn(kind):
    made = projector(kind, 6, 9, None, seed=0)
    again = projector(kind, 6, 9, None, seed=0)
    x = random(5, 6).float()
    assert made(x).shape == (5, 9) and torch.equal(made(x), again(x))
    if kind in ("linear", "orthonormal", "pca"):
        assert torch.allclose(made.weight.T @ made.weight, torch.eye(6), atol=1e-5)
    made(x).square().sum().backward()
    optimiser = torch.optim.SGD(made.parameters(), lr=0.1)
    optimiser.step()
    assert not torch.allclose(made(x), again(x))
    if kind == "orthonormal":
        assert torch.allclose(made.weight.T @ made.weight, torch.eye(6), atol=1e-5)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (("linear", 8, 8, None), "distillation.projector: linear between equal widths"),
        (("none", 4, 8, None), "distillation.projector: none cannot join widths 4 and 8; write linear"),
        (("pca", 8, 4, None), "distillation.projector: pca needs a student no wider"),
        (("low-rank", 4, 8, 4), "distillation.projector_rank: 4 is no lower"),
    ],
)
def test_projectors_that_do_not_fit_are_named(case, message):
    with pytest.raises(InputError, match=message):
        check_projector(*case)
    assert [check_projector("auto", *widths, None) for widths in ((8, 8), (4, 8))] == ["none", "linear"]


def test_principal_directions_are_those_along_which_states_are_large():
    basis = torch.linalg.qr(random(10, 10))[0]
    states = random(500, 10, seed=1) * torch.tensor([9.0, 5, 3, *[0.1] * 7]) @ basis.T
    found = principal_directions(states.float(), 3)
    assert torch.allclose(found.T @ found, torch.eye(3), atol=1e-5)
    assert torch.allclose((found.T @ basis[:, :3].float()).abs(), torch.eye(3), atol=0.1)


def test_dynamic_weight_is_a_ratio_within_bounds():
    assert dynamic_weight(3.0, 2.0) == pytest.approx(1.5)
    assert (dynamic_weight(1.0, 1e-9), dynamic_weight(1e-9, 1.0)) == (10.0, 0.01)


def test_feature_terms_fade_at_the_end():
    assert [feature_weight(at, 0.25) for at in (0, 0.5, 0.75)] == [1, 1, 1]
    assert feature_weight(0.875, 0.25) == pytest.approx(0.5)
    assert feature_weight(1, 0.25) == 0
    assert feature_weight(0.99, 0) == 1
