"""Build a student: of the teacher's family, with fewer layers or a narrower stream, random weights or the teacher's; or
a model that the user has."""

import copy
import re
from typing import Any

import torch

from featkd import spec
from featkd.errors import InputError
from featkd.models import given, width
from featkd.models.probe import Probe

NOT_PER_LAYER = ("architectures", "eos_token_id")  # lists whose length may be the number of layers by chance


def student_config(size: spec.Student, teacher_config: Any) -> Any:
    """The teacher's configuration with the size's shape, or the given model's own. Raises InputError where the shape
    does not fit."""
    if size.model:
        return given.configuration(given.locate(size.model, size.field), size.field)
    config = copy.deepcopy(teacher_config)
    config.num_hidden_layers = size.layers
    origins = _origins(size, teacher_config.num_hidden_layers)
    for name, values in _per_layer(teacher_config).items():
        setattr(config, name, [values[layer] for layer in origins])
    if size.init in width.KINDS:
        width.narrow(size, config)
        return config
    if size.hidden_size:
        config.hidden_size = size.hidden_size
    if size.intermediate_size:
        setattr(config, "n_inner" if hasattr(config, "n_inner") else "intermediate_size", size.intermediate_size)
    if size.heads:
        config.num_attention_heads = size.heads
        if getattr(config, "num_key_value_heads", None):
            most = round(size.heads * config.num_key_value_heads / teacher_config.num_attention_heads)
            config.num_key_value_heads = max(n for n in range(1, max(1, most) + 1) if size.heads % n == 0)
    if size.hidden_size or size.heads:
        if config.hidden_size % (2 * config.num_attention_heads):
            raise InputError(
                f"students.{size.name}: {config.num_attention_heads} heads do not divide hidden_size "
                f"{config.hidden_size} into even parts"
            )
        if getattr(config, "head_dim", None):
            config.head_dim = config.hidden_size // config.num_attention_heads
    return config


def _per_layer(config: Any) -> dict[str, list]:
    """What the configuration says of each block: its kind of attention, its positions."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == config.num_hidden_layers and name not in NOT_PER_LAYER
    }


def _origins(size: spec.Student, teacher_layers: int) -> list[int]:
    """The teacher's block that each block takes after: its copy, or its kind in the teacher's order from the start.

    Copies are evenly spaced, first and last among them. Raises InputError when there are more of them than blocks.
    """
    if size.init == "random":
        return [layer % teacher_layers for layer in range(size.layers)]
    if size.layers > teacher_layers:
        raise InputError(
            f"students.{size.name}: {size.layers} layers cannot be copied from a teacher with {teacher_layers}; "
            "lower layers or write init: random"
        )
    return [round(layer * (teacher_layers - 1) / max(1, size.layers - 1)) for layer in range(size.layers)]


def build(size: spec.Student, teacher: Any, seed: int, probe: Probe | None = None) -> tuple[Any, float]:
    """(student, share of its weights that stem from the teacher). The same seed and probe give the same weights.

    `size.model`, if given, is a local folder by now. probe: on which it is found what to keep of the teacher's width.
    """
    from transformers import AutoModelForCausalLM

    if size.model:
        return given.load(size.model, size.field), 0.0
    config = student_config(size, teacher.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if size.init == "random":
        return student, 0.0
    origins = _origins(size, teacher.config.num_hidden_layers)
    if size.init == "copy":
        _copy_layers(student, teacher, origins)
    else:
        width.fill(student, teacher, size.init, origins, probe)
    return student, 1.0


def _copy_layers(student: Any, teacher: Any, origins: list[int]) -> None:
    """Copy the teacher's blocks `origins` and all that stands outside the blocks."""
    weights = teacher.state_dict()

    def origin(name: str) -> str:
        return re.sub(r"\.(\d+)\.", lambda match: f".{origins[int(match[1])]}.", name, count=1)

    student.load_state_dict({name: weights[origin(name)] for name in student.state_dict()})
