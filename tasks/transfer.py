"""Stages tokens and layers: what of the teacher is in a student, on held-out text."""

from pathlib import Path
from typing import Any

from featkd import environment
from featkd.models import given
from featkd.spec import Student
from featkd.store import Artefact, artefact_key
from tasks.context import Context
from tasks.stages import obtain, stage
from tasks.train import Model

ROOMS = ["measure", "deploy", "models", "align"]


@stage("tokens")
def tokens(context: Context, name: str, teacher: Artefact, onnx: Artefact, tasks: Artefact) -> Artefact:
    """Next tokens of two exported models."""
    inputs = {"teacher": teacher.key, "onnx": onnx.key, "tasks": tasks.key, "device": context.device}

    def build(out: Path) -> dict[str, Any]:
        from featkd.measure import transfer

        return transfer.tokens(teacher.path, onnx.path, tasks.json("texts.json"), context.threads, context.device, out)

    return obtain(
        context.log, f"tokens {name}", context.store, "tokens-beside",
        artefact_key(inputs, ROOMS, environment.onnxruntime_package()), build,
        note=lambda made: f"{made.meta['tokens']:,} held-out tokens",
    )  # fmt: skip


@stage("layers")
def layers(
    context: Context,
    name: str,
    teacher: Model,
    model: Model,
    size: Student,
    seed: int,
    blocks: Artefact,
    tasks: Artefact,
) -> Artefact:
    """States of a student, with its first weights and as trained, beside the teacher's."""
    inputs = {
        "teacher": teacher.digest,
        "model": model.digest,
        "size": size.model_dump(mode="json"),
        "seed": seed,
        "blocks": blocks.key,
        "tasks": tasks.key,
        "device": context.device,
    }

    def build(out: Path) -> dict[str, Any]:
        from featkd.distill.alignment import PROBE_TOKENS
        from featkd.measure import transfer

        start = size.model_copy(update={"model": given.locate(size.model, size.field)}) if size.model else size
        return transfer.layers(
            teacher.folder, model.folder, start, seed, blocks.path, PROBE_TOKENS, tasks.json("texts.json"),
            context.device, out,
        )  # fmt: skip

    return obtain(
        context.log, f"layers {name}", context.store, "layers",
        artefact_key(inputs, [*ROOMS, "distill"], ["torch", "transformers"]), build,
        note=lambda made: f"states of {made.meta['tokens']:,} held-out tokens",
    )  # fmt: skip
