"""What a training will take, before it starts: an estimate, between 0.8 and 1.3 of the peaks of bench-arms and
bench-engine on a processor; not yet held against an accelerator.

Held for the whole pass: the teacher's weights, under bf16 those of its linear layers in that type; per student weights
and two moments of AdamW, float32, its projectors too. At work, one student after the other: what the teacher says of a
micro-batch, the student's gradients and the activations that its backward pass needs, in every layer a mask [blocks,
block, block] that keeps documents apart; under bf16 a copy of a student's weights in that type.

Of several processes each takes that for its part of a micro-batch, and on a processor they share the memory. With
sharding: fsdp each holds its part of the blocks, and at work one whole block on top. Not counted: that each loads
whole models before it divides them, and the launcher itself (0.2 GB).
"""

from typing import Any, NamedTuple

import torch

from featkd.align.head import BUDGET_BYTES
from featkd.align.relations import blocks_of
from featkd.distill.forward import head_of, rounded_layers
from featkd.distill.signal import LOGITS_BYTES, logits_bytes
from featkd.errors import InputError
from featkd.teaching import Recipe, TeacherSignal
from featkd.training import Compute, Optimisation

BASE_BYTES = {"cpu": 500_000_000, "cuda": 600_000_000}  # the libraries; on an accelerator its context
WIDTHS, MLP_WIDTHS = 16, 4  # floats per token and block that wait for the backward pass: of the stream, of the MLP
FLOAT, BF16 = 4, 2
TOP_K_BYTES = 4 + 8  # a log-probability and an id
ONLINE = TeacherSignal()
ONE = Compute()


class Need(NamedTuple):
    """Bytes of one model: held through the whole pass, on top while it is at work, and at first: before the pass,
    beside the students' weights."""

    held: int
    at_work: int
    at_first: int = 0


def teacher_need(
    config: Any,
    training: Optimisation,
    block_size: int,
    features: bool,
    bf16: bool,
    compute: Compute = ONE,
    signal: TeacherSignal = ONLINE,
) -> Need:
    """config: of the teacher. features: whether some student learns from its hidden states. What is cached lies on the
    disk but for the batch at hand; where all is, the teacher goes once the students are made, but for its head."""
    tokens = _tokens(training, block_size, compute)
    outputs = min(logits_bytes(tokens, config.vocab_size), LOGITS_BYTES)
    if signal.outputs == "top-k":
        outputs = tokens * signal.top_k * TOP_K_BYTES
    states = (config.num_hidden_layers + 1 if features else 2) * tokens * config.hidden_size * FLOAT
    weights, block = held_parameters(config, compute)
    once = bf16 and compute.sharding == "none"  # Forward.round_once
    head = config.vocab_size * config.hidden_size
    if signal.outputs != "online" and (signal.features != "online" or not features):
        kept = head * (signal.outputs == "last-hidden")
        return Need(kept * (BF16 if once else FLOAT), outputs + states, weights * FLOAT)
    if not once:
        return Need(weights * FLOAT, outputs + states + block * FLOAT + (weights + block) * BF16 * bf16)
    model = _on_meta(config)
    rounded = sum(p.numel() for layer in rounded_layers(model) for p in layer.parameters())
    tied = head if head_of(model).weight is model.get_input_embeddings().weight else 0
    return Need((weights - rounded) * FLOAT + (rounded + tied) * BF16, outputs + states, weights * FLOAT)


def student_need(
    config: Any,
    teacher: Any,
    recipe: Recipe,
    training: Optimisation,
    block_size: int,
    device: str,
    bf16: bool,
    compute: Compute = ONE,
) -> Need:
    """config, teacher: configurations."""
    trained, block = held_parameters(config, compute)
    if recipe and recipe.has_projector and config.hidden_size != teacher.hidden_size:
        pairs = len(recipe.layer_pairs) if isinstance(recipe.layer_pairs, list) else 3
        trained += pairs * config.hidden_size * teacher.hidden_size
    gradients = trained * FLOAT
    several = training.micro_batch_size not in (None, training.batch_size)
    mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    per_token = config.num_hidden_layers * (WIDTHS * config.hidden_size + MLP_WIDTHS * mlp + block_size) * FLOAT
    activations = _tokens(training, block_size, compute) * per_token + BUDGET_BYTES[device]
    activations += 2 * block * FLOAT + (parameters(config) if block else trained) * BF16 * bf16
    if several:  # gradients of all students wait for the last micro-batch
        return Need(3 * trained * FLOAT + gradients, activations)
    return Need(3 * trained * FLOAT, gradients + activations)


def passes(teacher: Need, students: list[Need], memory_bytes: int, device: str, processes: int = 1) -> list[list[int]]:
    """Which students, by their place in the list, are trained beside each other: as many as memory has room for.

    memory_bytes: of an accelerator, or of the processor, which all processes share.
    Raises InputError when the teacher and one student have none.
    """
    if device == "cpu":
        memory_bytes //= processes
    least = max(together(teacher, [need], device) for need in students)
    if least > memory_bytes:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"compute.memory_gb: the teacher and one student need about {least / 1e9:.1f} GB to train{each}, there are "
            f"{memory_bytes / 1e9:.1f}; lower training.micro_batch_size, block_size or the student"
        )
    groups: list[list[int]] = [[]]
    for place in range(len(students)):
        beside = [students[other] for other in [*groups[-1], place]]
        if together(teacher, beside, device) > memory_bytes:
            groups.append([])
        groups[-1].append(place)
    return groups


def together(teacher: Need, students: list[Need], device: str) -> int:
    """Bytes at the peak of one pass; one student is at work at a time."""
    held = sum(need.held for need in students)
    first = teacher.at_first + held // 3  # weights, without two moments
    at_work = teacher.held + teacher.at_work + held + max(need.at_work for need in students)
    return BASE_BYTES[device] + max(first, at_work)


def parameters(config: Any) -> int:
    """Of the model that a configuration describes; tied ones once."""
    return sum(parameter.numel() for parameter in _on_meta(config).parameters())


def held_parameters(config: Any, compute: Compute) -> tuple[int, int]:
    """(those that one process holds, those of a block that is gathered for its work: 0 where none has to be)."""
    if compute.sharding == "none":
        return parameters(config), 0
    blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(_on_meta(config))]
    return parameters(config) - sum(blocks) + -(-sum(blocks) // compute.processes), max(blocks, default=0)


def _on_meta(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _tokens(training: Optimisation, block_size: int, compute: Compute) -> int:
    return (training.micro_batch_size or training.batch_size) * block_size // compute.processes
