"""A narrower student's weights, cut out of its teacher's.

slice   the most important channels of the residual stream, heads and MLP neurons are kept (Minitron, arXiv 2407.14679)
pca     as slice, but the stream is turned first onto the directions in which its states are largest (SliceGPT, arXiv
        2401.15024). One rotation for the whole stream: no matrix lies between two blocks that could turn it. Gains
        and biases of norms move into what reads them; head and embeddings, if they were tied, part by that

A norm over fewer channels divides by another length. Its gain makes up for that: in the mean over the probe, and
exactly where what is cut off is empty.
"""

import math
from typing import Any

import torch

from featkd import spec
from featkd.errors import InputError
from featkd.models.channels import Kept, choose, cut, head_width
from featkd.models.layout import LAYOUTS, Layout
from featkd.models.probe import Probe

KINDS = ("slice", "pca")
Weights = dict[str, torch.Tensor]


def narrow(size: spec.Student, config: Any) -> None:
    """Give `config`, a teacher's, the width of `size`. Heads keep their own width, and their groups on one key-value
    head stay whole.

    Raises InputError for a family or a shape that cannot be cut out.
    """
    field, layout = f"students.{size.name}", LAYOUTS.get(config.model_type)
    if layout is None:
        raise InputError(
            f"{field}.init: {size.init} does not know the layout of {config.model_type}, only of {', '.join(LAYOUTS)}; "
            "write init: random, or init: copy and no width"
        )
    if size.init == "pca" and layout.post_norms:
        raise InputError(
            f"{field}.init: pca cannot turn the stream of {config.model_type}, whose blocks end with a norm; "
            "write init: slice"
        )
    mlp = "n_inner" if hasattr(config, "n_inner") else "intermediate_size"
    teacher_mlp = getattr(config, mlp) or 4 * config.hidden_size
    hidden_size = _at_most(size, "hidden_size", config.hidden_size)
    heads = _at_most(size, "heads", config.num_attention_heads)
    setattr(config, mlp, _at_most(size, "intermediate_size", teacher_mlp))
    width = head_width(config)
    group = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if heads % group:
        raise InputError(
            f"{field}.heads: {heads} would break up the teacher's groups of {group} heads on one key-value head; "
            f"write {-(-heads // group) * group}"
        )
    if not layout.head_width and hidden_size != heads * width:
        fit = max(1, hidden_size // width) if size.hidden_size else heads
        raise InputError(
            f"{field}.hidden_size: {hidden_size} is not {heads} heads of the teacher's {width} channels; "
            f"write hidden_size: {fit * width} and heads: {fit}"
        )
    if hidden_size % heads:
        raise InputError(
            f"{field}.hidden_size: {hidden_size} is no multiple of {heads} heads; "
            f"write {max(1, hidden_size // heads) * heads}"
        )
    if layout.head_width:
        config.head_dim, config.num_key_value_heads = width, heads // group
    config.hidden_size, config.num_attention_heads = hidden_size, heads
    if size.init == "pca":
        config.tie_word_embeddings = False


def _at_most(size: spec.Student, name: str, teacher: int) -> int:
    wanted = getattr(size, name) or teacher
    if wanted > teacher:
        raise InputError(
            f"students.{size.name}.{name}: {wanted} is above the teacher's {teacher}, of which init: {size.init} keeps "
            f"a part; write at most {teacher}, or init: random"
        )
    return wanted


@torch.no_grad()
def fill(student: Any, teacher: Any, init: str, origins: list[int], probe: Probe) -> None:
    """Cut the student's weights out of the teacher's. origins: its block that each of the student's comes from."""
    layout, weights = LAYOUTS[teacher.config.model_type], teacher.state_dict()
    kept = choose(teacher, layout, origins, student.config, init, probe)
    for name, parameter in student.named_parameters():
        path, kind = name.rsplit(".", 1)
        block, module = layout.place(path)
        block = None if block is None else origins[block]
        if module in layout.all_norms:
            made = _of_norm(weights, layout, kept, block, module, kind)
        elif module in layout.readers or module in layout.writers:
            linear = isinstance(student.get_submodule(path), torch.nn.Linear)
            made = _of_matrix(weights, layout, kept, block, module, kind, linear)
        else:
            made = weights[f"{layout.path(block, module)}.{kind}"]
        parameter.copy_(made)
    if layout.gemma and student.config.hidden_size < teacher.config.hidden_size:
        _scale_embeddings(student, layout, math.sqrt(teacher.config.hidden_size / student.config.hidden_size))


def _of_norm(weights: Weights, layout: Layout, kept: Kept, block: int | None, norm: str, kind: str) -> torch.Tensor:
    """Its gain, with what it lacks in length, or its bias. In a turned stream both have moved into what reads them."""
    path = layout.path(block, norm)
    values = weights[f"{path}.{kind}"]
    if kind == "bias":
        moved = torch.full_like(values, float(norm == layout.final_norm))  # the head has no bias to take it up
        return cut(moved if kept.turned else values, 0, kept.stream)
    length = kept.lengths[path]
    if kept.turned:
        return torch.full_like(values[: kept.stream.shape[1]], length - layout.gemma)
    return length * cut(values, 0, kept.stream) + (length - 1) * layout.gemma


def _of_matrix(
    weights: Weights, layout: Layout, kept: Kept, block: int | None, module: str, kind: str, linear: bool
) -> torch.Tensor:
    """The weight or bias of what reads or writes the stream. linear: its weight is [written, read]."""
    path, axes = layout.path(block, module), {"": None, "stream": kept.stream, **kept.blocks.get(block, {})}
    weight, bias = weights[f"{path}.weight"], weights.get(f"{path}.bias")
    weight = weight if linear else weight.T
    if module in layout.readers:
        norm, writes = layout.readers[module]
        reads = "stream"
        if kept.turned:
            weight, bias = _with_norm(weights, layout, layout.path(block, norm), weight, bias)
    else:
        reads, writes = layout.writers[module], "stream"
        if kept.turned and layout.layer_norm:
            weight = weight.double() - weight.double().mean(0)
            bias = None if bias is None else bias.double() - bias.double().mean()
    if kind == "bias":
        return cut(bias, 0, axes[writes])
    made = cut(cut(weight, 0, axes[writes]), 1, axes[reads])
    return made if linear else made.T


def _with_norm(
    weights: Weights, layout: Layout, norm: str, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [written, read] and bias of what reads through a norm of gain 1 and bias 0, or 1 before a head without
    bias: (1, 1, ...) is a direction that no state has after a LayerNorm."""
    weight = weight.double()
    gained, shift = weight * (weights[f"{norm}.weight"] + layout.gemma), weights.get(f"{norm}.bias")
    if shift is None:
        return gained, bias
    moved = weight @ shift.double()
    if bias is not None:
        return gained, bias + moved
    return gained - gained.mean(1, keepdim=True) + moved[:, None] / len(shift), None


def _scale_embeddings(student: Any, layout: Layout, scale: float) -> None:
    """Gemma multiplies embeddings by the root of the width, which is smaller now; a tied head is to see no change."""
    student.get_input_embeddings().weight.mul_(scale)
    if student.config.tie_word_embeddings:
        student.get_submodule(layout.final_norm).weight.add_(1).div_(scale).sub_(1)
