"""The fused head against float64 logits of the whole vocabulary, whose gradients autograd finds."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logits import OBJECTIVES, bucketed, close, random, reference

from featkd.align import head as fused
from featkd.align import output, products
from featkd.align.head import Objective, OnlineTeacher, TopKTeacher, fused_loss
from featkd.align.output import Head
from featkd.errors import InputError


def logits(states, head):
    """In float64, by the definition."""
    z = head.scale * F.linear(states.double(), head.weight.double(), None if head.bias is None else head.bias.double())
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def exact(states, head, targets, teacher, objective):
    """(loss, gradients by states, weight and bias) in float64."""
    leaves = [x.detach().double().clone().requires_grad_() for x in (states, head.weight, head.bias) if x is not None]
    head = head._replace(weight=leaves[1], bias=leaves[2] if len(leaves) > 2 else None)
    z, t = logits(leaves[0], head), objective.temperature
    loss = objective.ce_weight * F.cross_entropy(z, targets)
    if isinstance(teacher, OnlineTeacher):
        p, q = torch.softmax(logits(*teacher).detach() / t, -1), torch.softmax(z / t, -1)
        loss = loss + t**2 * reference(objective.divergence, p, q, objective.mix).mean()
    return float(loss.detach()), torch.autograd.grad(loss, leaves)


def found(states, head, targets, teacher, objective, budget=1 << 20):
    leaves = [x.detach().clone().requires_grad_() for x in (states, head.weight, head.bias) if x is not None]
    head = head._replace(weight=leaves[1], bias=leaves[2] if len(leaves) > 2 else None)
    loss = fused_loss(leaves[0], head, targets, teacher, objective, budget)
    loss.backward()
    return float(loss.detach()), [leaf.grad for leaf in leaves]


def case(tokens, widths, vocabulary, seed=0, bias=False, scale=1.0, softcaps=(None, None)):
    d, wide = widths
    mine = Head(random(vocabulary, d, seed=seed).float(), None, scale, softcaps[0])
    theirs = Head(random(vocabulary, wide, seed=seed + 1).float(), None, 1.0, softcaps[1])
    if bias:
        mine = mine._replace(bias=random(vocabulary, seed=seed + 2).float())
        theirs = theirs._replace(bias=random(vocabulary, seed=seed + 3).float())
    states, of_teacher = random(tokens, d, seed=seed + 4).float(), random(tokens, wide, seed=seed + 5).float()
    return states, mine, torch.arange(tokens) % vocabulary, OnlineTeacher(of_teacher, theirs)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that small tensors, too, are taken in several blocks, tiles and chunks."""
    monkeypatch.setattr(products, "BLOCK", 4)
    monkeypatch.setattr(products, "PARTS", 3)
    monkeypatch.setattr(fused, "TILE_BYTES", {"cpu": 400, "cuda": 400})


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 9), widths=st.tuples(st.integers(1, 6), st.integers(1, 6)), vocabulary=st.integers(2, 40),
    objective=st.builds(
        Objective, st.sampled_from(OBJECTIVES), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0.5, 4),
        st.sampled_from([0.0, 0.1, 1.0]), st.none(),
    ),
    bias=st.booleans(), scale=st.sampled_from([1.0, 0.0625, 2.0]), budget=st.sampled_from([0, 5000, 1 << 20]),
    softcaps=st.tuples(*[st.sampled_from([None, 2.0, 30.0])] * 2), seed=st.integers(0, 999),
)  # fmt: skip
def test_losses_and_gradients(tokens, widths, vocabulary, objective, bias, scale, budget, softcaps, seed):
    given = case(tokens, widths, vocabulary, seed, bias, scale, softcaps)
    loss, gradients = found(*given, objective, budget)
    expected, expected_gradients = exact(*given, objective)
    size = max(1.0, float(logits(given[0], given[1]).abs().max() / objective.temperature))
    floor = 3e-7 * objective.temperature**2 * size
    assert loss == pytest.approx(expected, rel=1e-5, abs=floor)
    for gradient, by_definition in zip(gradients, expected_gradients, strict=True):
        assert close(gradient, by_definition, 1e-5, floor * 10)


def test_cross_entropy_alone():
    states, head, targets, _ = case(7, (5, 3), 30, bias=True)
    loss, gradients = found(states, head, targets, None, Objective())
    expected, expected_gradients = exact(states, head, targets, None, Objective(ce_weight=1.0))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert all(close(g, e, 1e-5, 0) for g, e in zip(gradients, expected_gradients, strict=True))


def test_a_teacher_of_cached_tokens_is_the_online_one_cut_to_them():
    states, head, targets, teacher = case(6, (5, 3), 30)
    log_p, ids = torch.log_softmax(logits(*teacher) / 2, -1).float().topk(4, dim=-1)
    cached = found(states, head, targets, TopKTeacher(log_p, ids), Objective(temperature=2.0))
    online = found(states, head, targets, teacher, Objective(temperature=2.0, top_k=4))
    assert cached[0] == pytest.approx(online[0], rel=1e-6)
    assert cached[0] == pytest.approx(float(bucketed(logits(states, head), logits(*teacher), 4, 2.0)), rel=1e-5)
    assert all(close(c, o.double(), 1e-5, 0) for c, o in zip(cached[1], online[1], strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_teachers_own_states_give_no_loss_and_no_gradient(objective):
    states, head, targets, _ = case(5, (6, 6), 40, softcaps=(3.0, 3.0))
    loss, gradients = found(states, head, targets, OnlineTeacher(states, head), Objective(objective, 0.1, 2.0))
    assert abs(loss) < 1e-5 and all(float(gradient.abs().max()) < 1e-5 for gradient in gradients)


def test_the_teacher_gets_no_gradient_and_a_frozen_head_none():
    states, head, targets, teacher = case(4, (3, 5), 20, bias=True)
    parameters = [teacher.hidden, teacher.head.weight, teacher.head.bias]
    for parameter in parameters:
        parameter.requires_grad_()
    states.requires_grad_()
    fused_loss(states, head, targets, teacher).backward()
    assert states.grad is not None and head.weight.grad is None
    assert all(parameter.grad is None for parameter in parameters)


def test_a_head_tied_to_the_embedding_gets_both_gradients():
    states, head, targets, teacher = case(4, (3, 5), 20)
    weight = head.weight.clone().requires_grad_()
    (fused_loss(F.embedding(targets, weight), Head(weight), targets, teacher) * 3).backward()
    other = head.weight.double().clone().requires_grad_()
    p = torch.softmax(logits(*teacher), -1)
    (3 * reference("forward-kl", p, torch.softmax(F.embedding(targets, other) @ other.T, -1), 0).mean()).backward()
    assert close(weight.grad, other.grad, 1e-5, 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rounded_weights_of_a_large_vocabulary_give_gradients_within_a_percent(objective, monkeypatch):
    """Logits rounded to bf16 before the softmax miss by 4 to 23 % (a peer's open issue)."""
    monkeypatch.undo()
    states, head, targets, teacher = case(3, (64, 64), 151_936, scale=0.1)
    teacher = teacher._replace(head=Head(teacher.head.weight * 0.1))
    given, objective = rounded(states, head, targets, teacher), Objective(objective, 0.1, 1.0, 0.1)
    gradients, expected = found(*given, objective)[1], exact(*given, objective)[1]
    assert all(close(g, e, 1e-2, 0) for g, e in zip(gradients, expected, strict=True))


def rounded(states, head, targets, teacher):
    """The same in bf16."""
    theirs = teacher.head._replace(weight=teacher.head.weight.bfloat16())
    own = head._replace(weight=head.weight.bfloat16())
    return states.bfloat16(), own, targets, OnlineTeacher(teacher.hidden.bfloat16(), theirs)


def test_under_autocast_gradients_are_exact_but_for_the_rounded_weights():
    states, head, targets, teacher = case(6, (64, 64), 500, scale=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = found(states, head, targets, teacher, Objective())[1]
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2
    expected = exact(*rounded(states, head, targets, teacher), Objective())[1]
    assert all(close(g, e, 1e-2, 0) for g, e in zip(gradients, expected, strict=True))


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def at_bf16(request, monkeypatch):
    """A processor that multiplies bf16 fast and one that does not, with blocks and tiles as they are."""
    if request.param and not products.FAST_BF16:
        pytest.skip("this processor is slow at bf16")
    monkeypatch.undo()
    for module in (output, products):
        monkeypatch.setattr(module, "FAST_BF16", request.param)


def far_from_zero(by, spreads=(0.2, 0.3), **options):
    """Logits of some spread around `by`, as GPT-2's around -100."""
    states, head, targets, teacher = case(130, (65, 65), 3000, **options)
    sides = []
    for x, its, spread in ((states, head, spreads[0]), (teacher.hidden, teacher.head, spreads[1])):
        x, weight = x.clone(), its.weight * spread
        x[:, 0], weight[:, 0] = by, 1.0
        sides.append((x, its._replace(weight=weight)))
    (states, head), (hidden, theirs) = sides
    return rounded(states, head, targets, OnlineTeacher(hidden, theirs))


@pytest.mark.parametrize("t", [1.0, 2.0])
@pytest.mark.parametrize(
    ("by", "options"),
    [
        (-100.0, {}),
        (-100.0, {"bias": True}),
        (-100.0, {"scale": 0.5}),
        (0.0, {"softcaps": (20.0, 30.0)}),
        (-100.0, {"spreads": (1.0, 1.2)}),  # sure of tokens that are no target
    ],
)
def test_bf16_logits_are_exact_where_probability_is(by, options, t, at_bf16):
    given, objective = far_from_zero(by, **options), Objective("forward-kl", 0.1, t, 0.1)
    expected = exact(*given, objective)[1]
    gradients = found(*given, objective, budget=None)[1]
    assert all(close(g, e, 1e-2, 0) for g, e in zip(gradients, expected, strict=True))


def test_bf16_logits_as_they_are_would_not_do():
    """What the test above would find of a head that rounds them."""
    states, head, _, teacher = far_from_zero(-100.0)
    p, q = (
        torch.softmax(F.linear(x, w).float(), -1)
        for x, w in ((teacher.hidden, teacher.head.weight), (states, head.weight))
    )
    whole = F.linear(states.double(), head.weight.double()).softmax(-1) - logits(*teacher).softmax(-1)
    assert float((q - p - whole).norm() / whole.norm()) > 0.05


@pytest.mark.parametrize("cap", [None, 30.0])
def test_logits_at_once_have_the_softmax_of_float64(cap, at_bf16):
    _, _, targets, teacher = far_from_zero(0.0 if cap else -100.0, softcaps=(None, cap))
    exactly = logits(*teacher).softmax(-1)
    found = output.softmax_logits(*teacher, targets)
    assert found.dtype == torch.float32
    assert float((found.softmax(-1) - exactly).norm() / exactly.norm()) < 1e-2
    assert output.softmax_logits(teacher.hidden[:0], teacher.head, targets[:0]).shape == (0, 3000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, h, y, t: (s[:0], h, y[:0], t), "no token is learned"),
        (lambda s, h, y, t: (s, h, y[:2], t), "one id per token"),
        (lambda s, h, y, t: (s[:, :2], h, y, t), "student: states of width 2, head of width 3"),
        (lambda s, h, y, t: (s, h, y, t._replace(hidden=t.hidden[:2])), "teacher: 2 tokens"),
        (lambda s, h, y, t: (s, Head(h.weight[:9]), y, t), "vocabulary: 9 of the student, 20 of the teacher"),
        (lambda s, h, y, t: (s, h, y, TopKTeacher(torch.zeros(4, 2), torch.zeros(4, 3).long())), "top_k"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(InputError, match=message):
        fused_loss(*change(*case(4, (3, 5), 20)))
