"""Build a student of the teacher's family: fewer layers, a narrower stream, random or copied weights."""

import copy
import re
from typing import Any

import torch

from featkd import spec
from featkd.errors import InputError


def student_config(size: spec.Student, teacher_config: Any) -> Any:
    """The teacher's configuration with the size's shape. Raises InputError where the shape does not fit."""
    config = copy.deepcopy(teacher_config)
    config.num_hidden_layers = size.layers
    kinds = getattr(config, "layer_types", None)
    if kinds:  # a copied block stays what it is; a new one follows the teacher's pattern from its start
        copied = size.init == "copy" and size.layers <= len(kinds)
        chosen = _source_layers(size.layers, len(kinds)) if copied else range(size.layers)
        config.layer_types = [kinds[layer % len(kinds)] for layer in chosen]
    if size.hidden_size:
        config.hidden_size = size.hidden_size
    if size.intermediate_size:
        setattr(config, "n_inner" if hasattr(config, "n_inner") else "intermediate_size", size.intermediate_size)
    if size.heads:
        group = max(1, teacher_config.num_attention_heads // _kv_heads(teacher_config))
        config.num_attention_heads = size.heads
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = max(1, size.heads // group)
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"students.{size.name}: {config.num_attention_heads} heads do not divide hidden_size {config.hidden_size}"
        )
    if getattr(config, "head_dim", None) and (size.hidden_size or size.heads):
        config.head_dim = config.hidden_size // config.num_attention_heads
    return config


def build(size: spec.Student, teacher: Any, seed: int) -> tuple[Any, float]:
    """(student, share of its weights copied from the teacher). The same seed gives the same weights."""
    from transformers import AutoModelForCausalLM

    config = student_config(size, teacher.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if size.init == "random":
        return student, 0.0
    return student, _copy_layers(student, teacher)


def _copy_layers(student: Any, teacher: Any) -> float:
    """Copy evenly spaced teacher blocks, first and last among them, and all that stands outside the blocks."""
    s_layers, t_layers = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    if s_layers > t_layers:
        raise InputError(f"students: {s_layers} layers cannot be copied from a teacher with {t_layers}")
    source = _source_layers(s_layers, t_layers)
    weights = teacher.state_dict()

    def origin(name: str) -> str:
        return re.sub(r"\.(\d+)\.", lambda match: f".{source[int(match[1])]}.", name, count=1)

    copied = {name: weights[origin(name)] for name in student.state_dict()}
    student.load_state_dict(copied)
    return 1.0


def _source_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """Evenly spaced teacher blocks, first and last among them."""
    return [round(index * (teacher_layers - 1) / max(1, student_layers - 1)) for index in range(student_layers)]


def _kv_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads
