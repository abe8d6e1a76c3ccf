"""Stages teacher and distil: the model to replace, and all students on one pass of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkd import environment
from featkd.child import run_child
from featkd.models import given
from featkd.result import Training
from featkd.store import Artefact, artefact_key
from tasks.context import Context
from tasks.data import folder_digest
from tasks.progress import Progress
from tasks.stages import obtain, stage

ROOMS = ["distill", "models", "align"]
PACKAGES = ["torch", "transformers"]

# Large tensors come and go each step; glibc would hand their pages back to the system and fault them in again.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


@dataclass(frozen=True)
class Model:
    """A trained model: its folder, the digest of what it is, what it cost."""

    folder: Path
    digest: str
    training: Training


@stage("teacher")
def given_teacher(context: Context, folder: str, digest: str) -> Model:
    with context.log.timed("teacher", digest=digest) as entry:
        entry["state"], entry["note"] = "reused", folder
        return Model(Path(folder), digest, Training(parameters=_parameters(Path(folder))))


@stage("teacher")
def trained_teacher(context: Context, blocks: Artefact, tokenizer: Artefact) -> Model:
    spec = context.spec
    training = spec.teacher.train
    job = {
        "mode": "teacher",
        "shape": training.shape.model_dump(mode="json"),
        "positions": spec.block_size,
        "seed": 0,
        "training": training.model_dump(mode="json", exclude={"shape", "vocab_size"}),
        "compute": _compute(context),
    }
    key = artefact_key({"job": job, "tokens": blocks.key, "machine": _machine()}, ROOMS, PACKAGES)

    def build(out: Path) -> dict[str, Any]:
        job.update(tokens=str(blocks.path), tokenizer=str(tokenizer.path), out=str(out))
        with context.workdir() as workdir, Progress("teacher") as progress:
            done = run_child("featkd.distill", job, workdir, on_event=progress, env=MALLOC)
        return {**done["models"]["teacher"], "bf16": done["bf16"]}

    made = obtain(context.log, "teacher", context.store, "teacher", key, build, note=_note)
    return Model(made.path / "teacher", made.meta["weights_sha256"] or made.key, _training(made.meta))


@stage("distil")
def distil(context: Context, teacher: Model, blocks: Artefact) -> dict[tuple[str, str, int], Model]:
    """(arm, size, seed) to student. Only those that the store lacks are trained, side by side."""
    students = _wanted(context, teacher, blocks)
    with context.log.timed("distil") as entry, context.store.lock("distil", blocks.key):
        missing = [student for student in students if not context.store.get("student", student["key"])]
        if missing:
            _train(context, teacher, blocks, missing)
        entry["state"] = "made" if missing else "reused"
        entry["note"] = f"{len(missing)} trained, {len(students) - len(missing)} reused"
    found = {}
    for student in students:
        made = context.store.get("student", student["key"])
        found[student["arm"], student["size"]["name"], student["seed"]] = Model(
            made.path / "model", made.meta["weights_sha256"] or made.key, _training(made.meta)
        )
    return found


def _wanted(context: Context, teacher: Model, blocks: Artefact) -> list[dict[str, Any]]:
    spec = context.spec
    students = []
    for size in spec.students:
        folder = given.locate(size.model, size.field) if size.model else None
        origin = folder_digest(folder) if folder else None
        for arm in spec.arms:
            for seed in spec.seeds:
                student = {
                    "name": f"{arm}-{size.name}-{seed}",
                    "arm": arm,
                    "size": {**size.model_dump(mode="json"), "model": folder},
                    "seed": seed,
                }
                inputs = {
                    "student": {**student, "size": {**student["size"], "name": None, "model": origin}, "name": None},
                    "teacher": teacher.digest,
                    "tokens": blocks.key,
                    "training": spec.training.model_dump(mode="json"),
                    "distillation": spec.distillation.relevant(arm),
                    "compute": _compute(context),
                    "machine": _machine(),
                }
                students.append({**student, "key": artefact_key(inputs, ROOMS, PACKAGES)})
    return students


def _train(context: Context, teacher: Model, blocks: Artefact, students: list[dict[str, Any]]) -> None:
    with context.workdir() as workdir, Progress("distil") as progress:
        job = {
            "mode": "students",
            "teacher": str(teacher.folder),
            "tokenizer": str(teacher.folder),
            "tokens": str(blocks.path),
            "students": students,
            "training": context.spec.training.model_dump(mode="json"),
            "distillation": context.spec.distillation.model_dump(mode="json"),
            "compute": _compute(context),
            "out": str(workdir),
        }
        done = run_child("featkd.distill", job, workdir, on_event=progress, env=MALLOC)
        taught = sum(student["arm"] != "sft" for student in students)
        for student in students:
            share = done["teacher_seconds"] / taught if student["arm"] != "sft" else 0.0
            meta = {**done["models"][student["name"]], "teacher_seconds": share, "bf16": done["bf16"]}
            _keep(context, student["key"], workdir / student["name"], meta)


def _keep(context: Context, key: str, folder: Path, meta: dict[str, Any]) -> None:
    def build(out: Path) -> dict[str, Any]:
        folder.rename(out / "model")
        return meta

    context.store.make("student", key, build)


def _compute(context: Context) -> dict[str, Any]:
    return {**context.spec.compute.model_dump(mode="json"), "threads": context.threads}


def _machine() -> dict[str, Any]:
    """What `auto` in the spec's compute section depends on: weights repeat on the same machine only."""
    found = environment.hardware()
    return {name: found[name] for name in ("cpu", "accelerator")}


def _training(meta: dict[str, Any]) -> Training:
    """A distilled student's seconds are its own and its share of the teacher's pass."""
    own = {name: meta[name] for name in Training.model_fields if name in meta}
    return Training(**{**own, "seconds": meta["seconds"] + meta.get("teacher_seconds", 0.0)})


def _note(made: Artefact) -> str:
    last = made.meta["curve"][-1]["validation_loss"]
    return f"{made.meta['parameters'] / 1e6:.2f}M parameters, validation loss {last:.3f}"


def _parameters(folder: Path) -> int:
    """Of the files that transformers loads: a hub folder may hold a second copy under another name."""
    from math import prod

    from safetensors import safe_open

    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        files = {whole}
    elif index.is_file():
        files = {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
    else:
        files = set(folder.glob("*.safetensors"))
    total = 0
    for file in files:
        with safe_open(file, framework="numpy") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total
