"""Stage signal: what students learn from the teacher, kept by one pass of it for all who come."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from featkd.align.layers import layer_pairs
from featkd.child import run_child
from featkd.distill.batches import first_epoch
from featkd.errors import InputError
from featkd.models import given
from featkd.models.student import student_config
from featkd.spec import Spec, Student
from featkd.store import Artefact, artefact_key
from featkd.teaching import Distillation
from tasks import plan
from tasks.context import Context
from tasks.progress import Progress

Part = dict[str, Any]


def parts(spec: Spec, student: plan.Wanted, teacher: Any) -> dict[str, Part]:
    """What of a cached signal a student needs, by name. teacher: its configuration."""
    if student["recipe"] is None:
        return {}
    signal, recipe = spec.teacher_signal, Distillation.model_validate(student["recipe"])
    found: dict[str, Part] = {}
    if signal.outputs == "last-hidden":
        found["last-hidden"] = {"kind": "last-hidden"}
    if signal.outputs == "top-k":
        name = f"top-{signal.top_k}-at-{recipe.temperature:g}"
        found[name] = {"kind": "top-k", "k": signal.top_k, "temperature": recipe.temperature}
    if signal.features == "int8" and recipe.has_features:
        dimensions = min(signal.feature_dimensions or teacher.hidden_size // 2, teacher.hidden_size)
        for layer in sorted(_layers(recipe, student_config(Student.model_validate(student["size"]), teacher), teacher)):
            found[f"layer-{layer}"] = {"kind": "layer", "layer": layer, "dimensions": dimensions}
    return found


def _layers(recipe: Distillation, student: Any, teacher: Any) -> set[int]:
    """`auto` chooses when the student is there: it may take any but the last."""
    if recipe.layer_pairs == "auto":
        return set(range(teacher.num_hidden_layers))
    pairs = layer_pairs(recipe.layer_pairs, student.num_hidden_layers, teacher.num_hidden_layers)
    return {layer for _, layer in pairs}


def obtain(
    context: Context, teacher: Path, digest: str, tokens: Artefact, wanted: dict[str, Part]
) -> dict[str, Artefact]:
    """Every part from the store, or made now, all that are missing in one pass of the teacher."""
    blocks = np.load(tokens.path / "train.npy", mmap_mode="r")
    taken = len(first_epoch(blocks.shape[1], context.spec.training, blocks.shape[2]))
    inputs = {"teacher": digest, "tokens": tokens.key, "blocks": taken,
              "compute": plan.compute(context), "machine": plan.machine()}  # fmt: skip
    keys = {name: artefact_key({"part": part, **inputs}, plan.ROOMS, plan.PACKAGES) for name, part in wanted.items()}
    with context.log.timed("signal") as entry:
        found = {name: made for name, key in keys.items() if (made := context.store.get("signal", key))}
        missing = {name: {**wanted[name], "identity": key} for name, key in keys.items() if name not in found}
        entry["state"] = "made" if missing else "reused"
        if missing:
            _check_room(context, missing, given.configuration(teacher), taken * blocks.shape[2])
            found |= _make(context, teacher, tokens, missing)
        entry["note"] = _note(list(found.values()))
    return {name: found[name] for name in wanted}


def _check_room(context: Context, missing: dict[str, Part], teacher: Any, tokens: int) -> None:
    """Raises InputError where the disk has no room for the parts."""
    of_token = {"last-hidden": 2 * teacher.hidden_size}
    need = tokens * sum(
        8 * part["k"] if part["kind"] == "top-k" else of_token.get(part["kind"], part.get("dimensions"))
        for part in missing.values()
    )
    free = shutil.disk_usage(context.home.parent).free
    if need > free:
        raise InputError(
            f"teacher_signal: about {need / 1e9:.1f} GB are to be kept, {context.home} has room for {free / 1e9:.1f}; "
            "lower top_k or feature_dimensions, or write online"
        )


def _make(context: Context, teacher: Path, tokens: Artefact, missing: dict[str, Part]) -> dict[str, Artefact]:
    job = {
        "mode": "signal",
        "teacher": str(teacher),
        "tokenizer": str(teacher),
        "tokens": str(tokens.path),
        "parts": missing,
        "training": context.spec.training.model_dump(mode="json"),
        "compute": plan.compute(context),
    }
    with context.workdir() as out:
        with Progress("signal") as progress:
            done = run_child("featkd.distill", {**job, "out": str(out)}, out, on_event=progress)
        seconds = done["seconds"] / len(missing)
        return {
            name: _keep(context, part["identity"], out / name, {**part, **done["parts"][name], "seconds": seconds})
            for name, part in missing.items()
        }


def _keep(context: Context, key: str, folder: Path, meta: dict[str, Any]) -> Artefact:
    def build(out: Path) -> dict[str, Any]:
        for file in folder.iterdir():
            file.rename(out / file.name)
        return meta

    return context.store.make("signal", key, build)


def told(spec: Spec, used: dict[str, Artefact]) -> dict[str, Any] | None:
    """What a student learned from: a result.Signal. Fidelity is that of the part where it is least."""
    if not used:
        return None
    metas = [made.meta for made in used.values()]
    layers = [meta for meta in metas if meta["kind"] == "layer"]

    def of(name: str, choose: Any) -> float | None:
        return choose((meta[name] for meta in metas if name in meta), default=None)

    return {
        "outputs": spec.teacher_signal.outputs,
        "features": spec.teacher_signal.features if layers else None,
        "top_k": of("k", max),
        "layers": [meta["layer"] for meta in layers],
        "dimensions": of("dimensions", max),
        "bytes_per_token": sum(meta["bytes_per_token"] for meta in metas),
        "bytes": sum(meta["bytes"] for meta in metas),
        "coverage": of("coverage", min),
        "kl": of("kl", max),
        "cosine": of("cosine", min),
        "norm_error": of("norm_error", max),
    }


def _note(made: list[Artefact]) -> str:
    """How much there is for a token, and how true it is."""
    per_token, size = (sum(part.meta[name] for part in made) for name in ("bytes_per_token", "bytes"))
    notes = [f"{per_token:,} bytes per token, {size / 1e6:.1f} MB"]
    for name, text in (
        ("coverage", "{:.1%} of the probability"),
        ("kl", "{:.1e} nats from bf16"),
        ("cosine", "cosine {:.4f}"),
    ):
        values = [part.meta[name] for part in made if name in part.meta]
        notes += [text.format(max(values) if name == "kl" else min(values))] if values else []
    return "; ".join(notes)
