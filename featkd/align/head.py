"""The fused distillation head: from hidden states to the loss and its gradients, a few tokens at a time.

    logits = softcap(scale * (W h + bias)),  softcap(z) = cap * tanh(z / cap)
    loss   = T^2 * divergence(teacher, student) + ce_weight * cross-entropy      mean over tokens, nats

Logits are the largest tensors of a step; here no more than `budget_bytes` of them exist at a time, whatever the number
of tokens. Tokens come in chunks as large as the budget allows (the matrix products want them large), their logits in
tiles that stay in the processor's cache (a dozen steps follow each other on the same numbers). The gradient is computed
with the loss, in closed form and in the place of the logits, so that nothing of the vocabulary's width is kept for the
backward pass, and no logit is computed twice: 6 d V + 2 D V operations per token for widths d and D, those of the
matrix products. How logits come from states: output.py. Forward KL and cross-entropy in 16 bits on an accelerator:
accelerator.py.
"""

from typing import Any, NamedTuple

import torch

from featkd.align import accelerator
from featkd.align.logits import DIVERGENCES, Softmax, softmax, top_k_and_tail
from featkd.align.output import Gradients, Head, RawLogits, cast, own_arithmetic, raw_logits, softcap
from featkd.align.products import held_per_token, logits_type, slices
from featkd.errors import InputError

BUDGET_BYTES = {"cpu": 64 << 20, "cuda": accelerator.BUDGET_BYTES}
TILE_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}
FEWEST_TOKENS = 128  # whatever the vocabulary: with fewer the matrix products are slow
WHOLE = 64  # tokens: of no multiple of it the products are up to a fifth slower
TILES = 9  # the most that the steps on one tile hold at a time


class OnlineTeacher(NamedTuple):
    """hidden [tokens, teacher hidden], of this step or from a cache, and the teacher's head.

    Logits that are there already: hidden [tokens, vocabulary] and Head(None).
    """

    hidden: torch.Tensor
    head: Head

    def first(self, rows: int) -> "OnlineTeacher":
        """What it says of the first so many tokens of the vocabulary."""
        return OnlineTeacher(self.hidden[:, :rows] if self.head.weight is None else self.hidden, self.head.first(rows))


class TopKTeacher(NamedTuple):
    """The k likeliest tokens: log_p and ids [tokens, k]. log_p at the loss's temperature, not renormalised."""

    log_p: torch.Tensor
    ids: torch.Tensor


class Objective(NamedTuple):
    """The loss: a key of DIVERGENCES, its mix, the temperature, the weight of cross-entropy beside it.

    top_k: forward-kl on the teacher's k likeliest tokens and one bucket for all others (`top_k_and_tail`).
    """

    divergence: str = "forward-kl"
    mix: float = 0.5
    temperature: float = 1.0
    ce_weight: float = 0.0
    top_k: int | None = None


FORWARD_KL = Objective()
CROSS_ENTROPY = Objective(ce_weight=1.0)
Found = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def fused_loss(
    hidden: torch.Tensor,
    head: Head,
    targets: torch.Tensor,
    teacher: OnlineTeacher | TopKTeacher | None = None,
    objective: Objective = FORWARD_KL,
    budget_bytes: int | None = None,
) -> torch.Tensor:
    """The loss, a scalar in nats per token. Its gradient reaches the student's states, weight and bias alone.

    Args:
        hidden: the student's states before the head at the tokens to be learned, [tokens, hidden].
        targets: the next tokens' ids [tokens].
        teacher: what to learn from; None: cross-entropy alone, whatever the objective says.
        budget_bytes: for logits and what is made of them. By default 64 MB on a processor and 1 GB on an accelerator,
            or more where that is not enough for 128 tokens (162 MB for a vocabulary of 152k).

    Raises InputError where shapes do not fit each other or no token is left.
    """
    _check(hidden, head, targets, teacher)
    if teacher is None:
        objective = CROSS_ENTROPY
    return _Head.apply(hidden, head.weight, head.bias, head, targets, teacher, objective, budget_bytes)


@torch.no_grad()
def token_losses(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every token, nats [tokens]. Arguments and errors as for `fused_loss`."""
    _check(hidden, head, targets, None)
    return _run(hidden, head, targets, None, CROSS_ENTROPY, None, (False,) * 3)[0]


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        head: Head,
        targets: torch.Tensor,
        teacher: OnlineTeacher | TopKTeacher | None,
        objective: Objective,
        budget_bytes: int | None,
    ) -> torch.Tensor:
        losses, *gradients = _run(hidden, head, targets, teacher, objective, budget_bytes, ctx.needs_input_grad[:3])
        inputs = (hidden, weight, bias)
        ctx.save_for_backward(*(g if g is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)))
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given = (gradient if gradient is None or outer == 1 else gradient * outer for gradient in ctx.saved_tensors)
        return *given, None, None, None, None, None


def _run(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, teacher: Any, objective: Objective, *rest: Any
) -> Found:
    plain_kl = teacher is None or (
        isinstance(teacher, OnlineTeacher) and objective.divergence == "forward-kl" and not objective.top_k
    )
    with own_arithmetic(hidden.device.type) as dtype:
        if isinstance(teacher, OnlineTeacher):
            teacher = OnlineTeacher(*cast(*teacher, dtype))
        hidden, head = cast(hidden, head, dtype)
        if plain_kl and accelerator.takes(hidden, head, teacher):
            return accelerator.losses_and_gradients(
                hidden, head, targets, teacher, objective.temperature, objective.ce_weight, *rest
            )
        return _chunks(hidden, head, targets, teacher, objective, *rest)


def _chunks(
    hidden: torch.Tensor,
    head: Head,
    targets: torch.Tensor,
    teacher: OnlineTeacher | TopKTeacher | None,
    objective: Objective,
    budget_bytes: int | None,
    wanted: tuple[bool, ...],
) -> Found:
    """Losses [tokens] and, as `wanted`, the gradients of their mean by states, weight and bias."""
    tokens, vocabulary, device = len(hidden), _vocabulary(hidden, head), hidden.device
    losses = torch.empty(tokens, dtype=torch.float32, device=device)
    gradients = Gradients(hidden, head, wanted)
    tile = max(1, TILE_BYTES[device.type] // (4 * vocabulary))
    online = isinstance(teacher, OnlineTeacher)
    made = online and (teacher.head.weight is not None or teacher.head.scale != objective.temperature)
    heads = [head, *([teacher.head] if made else [])]
    kept = [logits_type(one.weight) for one in heads]
    per_token = vocabulary * sum(one.itemsize for one in kept) + 4 * held_per_token(head.weight)
    budget = BUDGET_BYTES[device.type] if budget_bytes is None else budget_bytes
    room = budget - 4 * TILES * vocabulary * min(tile, tokens)
    chunk = max(FEWEST_TOKENS if budget_bytes is None else 1, room // per_token)
    chunk = min(chunk // WHOLE * WHOLE or chunk, tokens)
    buffers = [torch.empty(chunk, vocabulary, dtype=one, device=device) for one in kept]
    for rows in slices(tokens, chunk):
        states, following = hidden[rows], targets[rows]
        z = raw_logits(states, head, objective.temperature, following, buffers[0])
        if online:
            u = RawLogits(teacher.hidden[rows])
            if made:
                u = raw_logits(u.kept, teacher.head, objective.temperature, following, buffers[1])
        for part in slices(len(states), tile):
            at = slice(rows.start + part.start, rows.start + part.stop)
            if online:
                signal = softcap(u.tile(part), teacher.head.softcap, objective.temperature)
            else:
                signal = teacher and (teacher.log_p[at], teacher.ids[at])
            losses[at], gradient = _tile(z.tile(part), head.softcap, signal, targets[at], objective)
            z.kept[part] = gradient
        gradients.add(rows, z.kept)
    return losses, *gradients.found


def _tile(
    z: torch.Tensor, cap: float | None, signal: Any, targets: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a few tokens [tokens] and their gradient by z, the logits before the cap over T, times T."""
    t = objective.temperature
    capped = softcap(z, cap, t)
    student = softmax(capped)
    if signal is None:
        value, gradient = torch.zeros(len(z), device=z.device), torch.zeros_like(z)
    else:
        value, gradient = _divergence(capped, student, signal, objective)
    if t != 1:
        value, gradient = value * t**2, gradient.mul_(t)
    if objective.ce_weight:
        logits, target = capped if t == 1 else capped * t, targets[:, None]
        hard = student if t == 1 else softmax(logits)
        value = value + objective.ce_weight * (hard.normaliser - logits.gather(-1, target))[:, 0]
        gradient.add_(hard.probabilities, alpha=objective.ce_weight)
        gradient.scatter_add_(-1, target, torch.full_like(target, -objective.ce_weight, dtype=torch.float32))
    if cap:
        gradient.mul_(1 - (capped * (t / cap)).square_())
    return value, gradient


def _divergence(
    z: torch.Tensor, student: Softmax, signal: torch.Tensor | tuple[torch.Tensor, torch.Tensor], objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(signal, tuple):
        return top_k_and_tail(z, student, *signal)
    if objective.top_k:
        log_p = torch.log_softmax(signal, -1)
        return top_k_and_tail(z, student, *log_p.topk(min(objective.top_k, log_p.shape[-1]), dim=-1))
    return DIVERGENCES[objective.divergence](z, student, signal, objective.mix)


def _vocabulary(hidden: torch.Tensor, head: Head) -> int:
    return hidden.shape[-1] if head.weight is None else len(head.weight)


def _check(hidden: torch.Tensor, head: Head, targets: torch.Tensor, teacher: Any) -> None:
    if not len(hidden):
        raise InputError("no token is learned: all labels are masked; check data.prompt_field and block_size")
    if len(targets) != len(hidden):
        raise InputError(f"targets: {len(targets)} for {len(hidden)} tokens; give one id per token")
    sides = [("student", hidden, head)]
    if isinstance(teacher, OnlineTeacher):
        sides.append(("teacher", teacher.hidden, teacher.head))
    for side, states, its in sides:
        if its.weight is not None and its.weight.shape[1] != states.shape[-1]:
            raise InputError(f"{side}: states of width {states.shape[-1]}, head of width {its.weight.shape[1]}")
        if len(states) != len(hidden):
            raise InputError(f"{side}: {len(states)} tokens, the student has {len(hidden)}")
    if isinstance(teacher, TopKTeacher) and (
        teacher.log_p.shape != teacher.ids.shape or len(teacher.ids) != len(hidden)
    ):
        raise InputError(f"top_k: log_p {list(teacher.log_p.shape)}, ids {list(teacher.ids.shape)}: one row per token")
    if len(sides) == 2 and _vocabulary(*sides[0][1:]) != _vocabulary(*sides[1][1:]):
        raise InputError(
            f"vocabulary: {_vocabulary(*sides[0][1:])} of the student, {_vocabulary(*sides[1][1:])} of the teacher; "
            "slice both heads to what featkd.align.vocabulary.shared_vocabulary finds"
        )
