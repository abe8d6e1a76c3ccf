"""Wrong input, told before any work is done."""

from pathlib import Path
from typing import Any

from featkd import environment
from featkd.align.layers import layer_pairs
from featkd.align.projectors import check_projector
from featkd.align.vocabulary import shared_vocabulary
from featkd.data import guards
from featkd.data.tasks import PREFIX
from featkd.data.tokens import load_tokenizer, separator
from featkd.distill.estimate import parameters, passes
from featkd.errors import InputError
from featkd.models import given
from featkd.models.llama import llama_config
from featkd.models.student import student_config
from featkd.spec import Spec, Student
from tasks import plan
from tasks.stages import say


def check(spec: Spec, home: Path) -> None:
    """Does the spec fit its teacher, and are its tasks there? `home` is the .featkd folder. Raises InputError."""
    if "fp16" in spec.export.precisions and environment.device(spec.compute) == "cpu":
        raise InputError("export.precisions: fp16 is for cuda, a processor only casts it; write fp32, int8 or int4")
    _check_licence(spec)
    teacher = _given_teacher(spec) if spec.teacher.model else _teacher_to_be(spec)
    for size in spec.students:
        student = student_config(size, teacher)
        if size.model:
            _check_given_student(spec, size, student, teacher)
        for recipe in filter(None, spec.recipes().values()):
            if recipe.has_features:
                layer_pairs(recipe.layer_pairs, student.num_hidden_layers, teacher.num_hidden_layers)
            if recipe.has_projector:
                check_projector(recipe.projector, student.hidden_size, teacher.hidden_size, recipe.projector_rank)
        _warn_of_size(size.name, parameters(student), parameters(teacher))
    _check_memory(spec, teacher)
    _check_tasks(spec, home)


def _check_licence(spec: Spec) -> None:
    allowed = spec.teacher.licence_allows_distillation
    if spec.teacher.train or allowed:
        return
    told = "forbids training other models on its outputs" if allowed is False else "may forbid distillation"
    line = f"teacher.licence_allows_distillation: the licence of {spec.teacher.model} {told}"
    if spec.teacher.if_licence_forbids == "stop":
        raise InputError(f"{line}; write true if it allows it, or if_licence_forbids: warn")
    say(line if allowed is False else f"{line}: look it up, and write true or false")


def _warn_of_size(name: str, own: int, its: int) -> None:
    if own >= its:
        say(
            f"students.{name}: {own / 1e6:.2f}M parameters, the teacher has {its / 1e6:.2f}M: a student that is no "
            "smaller saves nothing"
        )


def _check_memory(spec: Spec, teacher: Any) -> None:
    device = environment.device(spec.compute)
    everyone = [(arm, size) for size in spec.students for arm in spec.recipes()]
    needs, room = plan.needs(spec, teacher, everyone, device), plan.memory_bytes(spec.compute, device)
    passes(*needs, room, device, spec.compute.processes)


def _given_teacher(spec: Spec) -> Any:
    """Its configuration."""
    folder = given.locate(spec.teacher.model)
    if separator(load_tokenizer(folder)) is None:
        raise InputError(
            "teacher.model: its tokenizer has neither an end nor a begin token: set eos_token in tokenizer_config.json"
        )
    config = given.configuration(folder)
    _check_lengths(spec, config, "the teacher")
    return config


def _check_given_student(spec: Spec, size: Student, student: Any, teacher: Any) -> None:
    """Its tokenizer must be the teacher's: their distributions are compared token by token."""
    if spec.teacher.train:
        raise InputError(
            f"{size.field}: a teacher that is trained here has a tokenizer of its own; give teacher.model too, or "
            "write layers and hidden_size instead of a model"
        )
    folders = given.locate(size.model, size.field), given.locate(spec.teacher.model)
    tokenizers = load_tokenizer(folders[0], size.field), load_tokenizer(folders[1])
    shared_vocabulary(*tokenizers, student.vocab_size, teacher.vocab_size, size.field)
    _check_lengths(spec, student, size.field)


def _check_lengths(spec: Spec, config: Any, whose: str) -> None:
    positions = given.positions(config)
    if spec.block_size > positions:
        raise InputError(f"block_size: {spec.block_size} is above the {positions} positions of {whose}: lower it")
    try:
        spec.check_latency_fits(positions)
    except ValueError as error:
        raise InputError(str(error)) from None


def _teacher_to_be(spec: Spec) -> Any:
    """The configuration of a teacher that is not trained yet. Which token ends a text changes no shape."""
    training = spec.teacher.train
    return llama_config(training.shape, training.vocab_size, spec.block_size, end_id=0)


def _check_tasks(spec: Spec, home: Path) -> None:
    quality = spec.quality
    include = Path(quality.include) if quality.include else None
    if include and not include.is_dir():
        raise InputError(f"quality.include: no folder {include}; give the folder with your task YAMLs")
    if include and home.resolve().is_relative_to(include.resolve()):
        raise InputError(
            f"quality.include: {include} contains {home}, whose tasks are not yours; "
            "move your task YAMLs into a folder of their own"
        )
    guards.suites(spec.guardrails, [])
    foreign = {
        "quality.tasks": [name for name in quality.tasks if not name.startswith(PREFIX)],
        "guardrails.tasks": spec.guardrails.tasks,
    }
    for field, names in foreign.items():
        if names:
            from featkd.measure.accuracy import check_tasks

            check_tasks(names, [include] if include else [], field)
