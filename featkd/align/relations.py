"""Losses between states of any two widths, without a projector: they compare what holds between tokens.

With X [n, d] the student's and Y [n, D] the teacher's states of the same n tokens:

    gram       |X' X'^T - Y' Y'^T|^2 / n^2,  rows of X' and Y' of length 1             (arXiv 1907.09682)
    CKA        |X^T Y|^2 / (|X^T X| |Y^T Y|),  columns of X and Y of mean 0            (arXiv 1905.00414)
    relation   sum over Q, K, V of mean KL(R(teacher) || R(student)),
               R(A) = softmax(A A^T / sqrt d) of each relation head, causal            (arXiv 2012.15828)

Computed in float32, under autocast too; debiased CKA, whose terms cancel, in float64. The teacher is a constant.
What is not defined (no token, states that do not vary) has no gradient; NaN comes of NaN alone.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from featkd.errors import InputError

EPSILON = 1e-6
MAX_TOKENS = 256
States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def gram_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the cosines between tokens (SPKD, arXiv 1907.09682). Scalar, 0 to 4.

    student [tokens, student width], teacher [tokens, teacher width]: valid tokens alone. Of more than MAX_TOKENS,
    that many at even distances are compared. A row of zeros has cosine 0 with all, and gets no gradient.
    """
    chosen = min(len(student), MAX_TOKENS)
    rows = torch.arange(chosen, device=student.device) * len(student) // max(chosen, 1)
    with torch.autocast(student.device.type, enabled=False):
        own, theirs = _unit(student[rows].float()), _unit(teacher.detach()[rows].float())
        return (own @ own.T - theirs @ theirs.T).square().sum() / max(chosen, 1) ** 2


def _unit(states: torch.Tensor) -> torch.Tensor:
    norm = states.norm(dim=-1, keepdim=True)
    return torch.where(norm <= EPSILON, 0.0, states / norm.clamp_min(EPSILON))


def cka_loss(student: torch.Tensor, teacher: torch.Tensor, debiased: bool = False) -> torch.Tensor:
    """1 - `cka`. Scalar, 0 to 1 (2 if debiased); 1 where CKA is not defined."""
    return 1 - cka(student, teacher, debiased)


def cka(student: torch.Tensor, teacher: torch.Tensor, debiased: bool = False) -> torch.Tensor:
    """Linear centred kernel alignment (arXiv 1905.00414): 1 if one is the other rotated, scaled and shifted. Scalar.

    student [tokens, student width], teacher [tokens, teacher width]: valid tokens alone.
    debiased: HSIC_1 (Song et al. 2012) in place of |X^T Y|^2, as in arXiv 2010.15327: about 0 for unrelated states
    where the plain one, with fewer tokens than widths, is near 1. May be negative; needs 4 tokens.
    0, without a gradient, where it is not defined: one token, states that do not vary.
    """
    with torch.autocast(student.device.type, enabled=False):
        x, y = (_centred(z.double() if debiased else z.float()) for z in (student, teacher.detach()))
        (n, d), (_, e) = x.shape, y.shape
        if n * (d + e) < d * d + d * e + e * e:
            by_x, by_y = x @ x.T, y @ y.T
            both, own, theirs = (by_x * by_y).sum(), by_x.square().sum(), by_y.square().sum()
        else:
            both, own, theirs = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
        noise = 1e-12 * own, 1e-12 * theirs
        if debiased:
            x2, y2 = x.square().sum(-1), y.square().sum(-1)
            both, own, theirs = _hsic_1(both, x2, y2), _hsic_1(own, x2, x2), _hsic_1(theirs, y2, y2)
        undefined = (own <= noise[0]) | (theirs <= noise[1])
        return torch.where(undefined, 0.0, both / torch.where(undefined, 1.0, own * theirs).sqrt()).float()


def _centred(states: torch.Tensor) -> torch.Tensor:
    """Columns of mean 0, together of norm 1 (CKA has no scale); zeros where all that is left is rounding."""
    centred = states - states.mean(0)
    spread = centred.detach().norm()
    return centred * torch.where(spread <= EPSILON * states.detach().norm(), 0.0, 1 / spread)


def _hsic_1(product: torch.Tensor, x2: torch.Tensor, y2: torch.Tensor) -> torch.Tensor:
    """n (n - 3) HSIC_1, from <K, L> and the diagonals x2, y2 [n] of centred K, L (whose other entries sum to -x2)."""
    n = len(x2)
    return product - n / (n - 2) * (x2 @ y2) + x2.sum() * y2.sum() / ((n - 1) * (n - 2)) if n > 3 else 0 * product


def relation_loss(student: States, teacher: States, heads: int, mask: torch.Tensor) -> torch.Tensor:
    """MiniLMv2 with a causal mask (arXiv 2012.15828). Scalar, nats: a mean over tokens and heads, summed over Q, K, V.

    student, teacher: (Q, K, V), each [batch, block, a width of its own]; each is split anew into `heads` relation
    heads, whatever the attention heads. mask [batch, block] bool: the tokens that count, as query and as key.
    Raises InputError where `heads` does not divide a width.
    """
    widths = [states.shape[-1] for states in (*student, *teacher)]
    if any(width % heads for width in widths):
        common = math.gcd(*widths)
        raise InputError(
            f"distillation.relation_heads: {heads} does not divide the width of Q, K, V: student {widths[:3]}, teacher "
            f"{widths[3:]}; write a divisor of {common}, e.g. {max(n for n in range(1, heads) if common % n == 0)}"
        )
    with torch.autocast(mask.device.type, enabled=False):
        total = sum(
            _Relation.apply(s[valid], t[valid], heads)
            for own, theirs in zip(student, teacher, strict=True)
            for s, t, valid in zip(own, theirs, mask, strict=True)
        )
    return total / (heads * mask.sum().clamp_min(1))


class _Relation(torch.autograd.Function):
    """Summed KL of one sequence and its gradient at once: nothing of [heads, tokens, tokens] is kept for later."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, heads: int) -> torch.Tensor:
        a, log_q = _log_relations(student, heads)
        _, log_p = _log_relations(teacher, heads)
        p = log_p.exp()
        loss = (p * (log_p - log_q)).sum()
        by_scores = log_q.exp_().sub_(p)
        gradient = (by_scores + by_scores.mT) @ a * a.shape[-1] ** -0.25
        ctx.save_for_backward(gradient.transpose(0, 1).reshape(student.shape).to(student.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.saved_tensors[0] * outer, None, None


def _log_relations(states: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """states [tokens, width] -> A / d^(1/4) [heads, tokens, d]; log softmax(A A^T / sqrt d) [heads, tokens, tokens]."""
    a = states.float().unflatten(-1, (heads, -1)).transpose(0, 1)
    a = a * a.shape[-1] ** -0.25
    future = torch.ones(len(states), len(states), dtype=torch.bool, device=states.device).triu(1)
    # the lowest number, not minus infinity, of which p (log p - log q) would be NaN
    return a, F.log_softmax((a @ a.mT).masked_fill_(future, torch.finfo(torch.float32).min), dim=-1)


class QKV:
    """Reads what the query, key and value projections of one block put out: before rotation and norms of heads.

    `with QKV(model, 3) as third: model(ids); q, k, v = third.take()`. block: 1 to the number of layers, as hidden
    state n is the output of block n. Reads any family with q_proj, k_proj and v_proj, and those of FUSED.
    Raises InputError for another family, and for a block out of range.
    """

    def __init__(self, model: Any, block: int):
        layers, family = model.config.num_hidden_layers, model.config.model_type
        if not 1 <= block <= layers:
            raise InputError(f"distillation.layer_pairs: {block} has no Q, K and V; write a block from 1 to {layers}")
        blocks = blocks_of(model) or [torch.nn.Module()] * layers
        self._projections, self._split = _projections(blocks[block - 1], model.config)
        self._seen: dict[torch.nn.Module, torch.Tensor] = {}
        if not self._projections:
            raise InputError(f"distillation.relation_weight: cannot read Q, K, V of block {block} of {family}; write 0")

    def __enter__(self) -> "QKV":
        def keep(projection: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._seen[projection] = output

        self._hooks = [projection.register_forward_hook(keep) for projection in self._projections]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> States:
        """(Q, K, V) of the last forward pass, each [batch, block, its width], with their graph. They go only once."""
        return self._split(*(self._seen.pop(projection) for projection in self._projections))


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """The decoder blocks of any family, in their order; none where they are not found."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return list(next((found for found in lists if len(found) == model.config.num_hidden_layers), []))


def _projections(block: torch.nn.Module, config: Any) -> tuple[list[torch.nn.Module], Callable[..., States]]:
    """The modules to listen to (none if unknown), and how their outputs become (Q, K, V)."""
    heads = getattr(config, "num_attention_heads", None) or 1
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    fused, split = FUSED.get(config.model_type, ("", _in_a_row))
    for module in block.modules():
        if fused and hasattr(module, fused):
            return [getattr(module, fused)], partial(split, heads=heads, kv_heads=kv_heads)
        found = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        width = heads * (getattr(module, "head_dim", None) or config.hidden_size // heads)
        if None not in found and getattr(found[0], "out_features", width) == width:  # wider: with a gate (Qwen3-Next)
            return found, lambda q, k, v: (q, k, v)
    return [], split


def _in_a_row(fused: torch.Tensor, heads: int, kv_heads: int) -> States:
    parts = fused.unflatten(-1, (heads + 2 * kv_heads, -1)).split([heads, kv_heads, kv_heads], dim=-2)
    return tuple(part.flatten(-2) for part in parts)


def _by_head(fused: torch.Tensor, heads: int, kv_heads: int) -> States:
    return tuple(part.flatten(-2) for part in fused.unflatten(-1, (heads, 3, -1)).unbind(-2))


FUSED = {"gpt2": ("c_attn", _in_a_row), "phi3": ("qkv_proj", _in_a_row), "gpt_neox": ("query_key_value", _by_head)}
