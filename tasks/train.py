"""Stages teacher and distil: the model to replace, and all students on one pass of it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featkd.child import Event, run_child
from featkd.models import given
from featkd.result import Training
from featkd.spec import digest
from featkd.store import Artefact, artefact_key
from tasks import plan, signal
from tasks.context import Context
from tasks.progress import Progress
from tasks.stages import obtain, stage

# Large tensors come and go each step; glibc would hand their pages back to the system and fault them in again.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


OnEvent = Callable[[Event], None]


def _ignore(event: Event) -> None:
    pass


@dataclass(frozen=True)
class Model:
    """A trained model: its folder, the digest of what it is, what it cost."""

    folder: Path
    digest: str
    training: Training


@dataclass(frozen=True)
class Kept:
    """Parts of a cached teacher signal: by a student's key and the part's name; each student's share of making them."""

    parts: dict[str, dict[str, Artefact]] = field(default_factory=dict)
    share_s: float = 0.0


@stage("teacher")
def given_teacher(context: Context, folder: str, digest: str) -> Model:
    with context.log.timed("teacher", digest=digest) as entry:
        entry["state"], entry["note"] = "reused", folder
        return Model(Path(folder), digest, Training(parameters=_parameters(Path(folder))))


@stage("teacher")
def trained_teacher(context: Context, blocks: Artefact, tokenizer: Artefact, on_event: OnEvent = _ignore) -> Model:
    """`on_event`: called with the events of the training child, as in `distil`."""
    spec = context.spec
    training = spec.teacher.train
    job = {
        "mode": "teacher",
        "shape": training.shape.model_dump(mode="json"),
        "positions": spec.block_size,
        "seed": 0,
        "training": training.model_dump(mode="json", exclude={"shape", "vocab_size"}),
        "compute": plan.compute(context),
    }
    inputs = {"job": job, "tokens": blocks.key, "machine": plan.machine()}
    key = artefact_key(inputs, plan.ROOMS, plan.PACKAGES)

    def build(out: Path) -> dict[str, Any]:
        job.update(tokens=str(blocks.path), tokenizer=str(tokenizer.path))
        with _trained(context, "teacher", job, [key], on_event) as (done, folder):
            (folder / "teacher").rename(out / "teacher")
        return {**done["models"]["teacher"], "bf16": done["bf16"]}

    made = obtain(context.log, "teacher", context.store, "teacher", key, build, note=_note)
    plan.forget(context, [key])
    return Model(made.path / "teacher", made.meta["weights_sha256"] or made.key, _training(made.meta))


@stage("distil")
def distil(
    context: Context, teacher: Model, blocks: Artefact, on_event: OnEvent = _ignore
) -> dict[tuple[str, str, int], Model]:
    """(arm, size, seed) to student. Only those that the store lacks are trained."""
    students = plan.wanted(context, teacher.digest, blocks.key)
    with context.store.lock("distil", blocks.key):
        missing = {student["key"]: student for student in students if not context.store.get("student", student["key"])}
        kept = _signal(context, teacher, blocks, students, list(missing.values()))
        with context.log.timed("distil") as entry:
            groups = plan.side_by_side(context, teacher.folder, missing) if missing else []
            for number, group in enumerate(groups, 1):
                name = f"distil {number}/{len(groups)}" if len(groups) > 1 else "distil"
                _train(context, teacher, blocks, group, kept, name, on_event)
            entry["state"] = "made" if missing else "reused"
            entry["note"] = f"{len(missing)} trained, {len(students) - len(missing)} reused"
            if len(groups) > 1:
                entry["note"] += f"; {len(groups)} passes of the teacher"
    found = {}
    for student in students:
        made = context.store.get("student", student["key"])
        found[student["arm"], student["size"]["name"], student["seed"]] = Model(
            made.path / "model", made.meta["weights_sha256"] or made.key, _training(made.meta)
        )
    return found


def _signal(
    context: Context, teacher: Model, blocks: Artefact, everyone: list[plan.Wanted], missing: list[plan.Wanted]
) -> Kept:
    """What the missing students learn from, where it is cached. What its making took is shared by everyone taught."""
    if not context.spec.teacher_signal.cached or not missing:
        return Kept()
    config = given.configuration(teacher.folder)
    parts = {student["key"]: signal.parts(context.spec, student, config) for student in missing}
    wanted = {name: part for its in parts.values() for name, part in its.items()}
    made = signal.obtain(context, teacher.folder, teacher.digest, blocks, wanted) if wanted else {}
    seconds = sum(part.meta["seconds"] for part in made.values())
    taught = sum(student["recipe"] is not None for student in everyone)
    return Kept({key: {name: made[name] for name in its} for key, its in parts.items()}, seconds / max(1, taught))


def _train(
    context: Context,
    teacher: Model,
    blocks: Artefact,
    students: list[plan.Wanted],
    kept: Kept,
    name: str,
    on_event: OnEvent,
) -> None:
    """A group, on one pass of the teacher, into the store. In the order of the keys: that of its checkpoints."""
    students = sorted(students, key=lambda student: student["key"])
    job = {
        "mode": "students",
        "teacher": str(teacher.folder),
        "tokenizer": str(teacher.folder),
        "tokens": str(blocks.path),
        "students": students,
        "training": context.spec.training.model_dump(mode="json"),
        "compute": plan.compute(context),
    }
    if context.spec.teacher_signal.cached:
        job["signal"] = context.spec.teacher_signal.model_dump(mode="json")
        used = {name: made for student in students for name, made in kept.parts[student["key"]].items()}
        job["parts"] = {name: (str(made.path), made.key) for name, made in used.items()}
    with _trained(context, name, job, [student["key"] for student in students], on_event) as (done, folder):
        taught = sum(student["recipe"] is not None for student in students)
        for student in students:
            share = done["teacher_seconds"] / taught + kept.share_s if student["recipe"] is not None else 0.0
            meta = {**done["models"][student["name"]], "teacher_seconds": share, "bf16": done["bf16"]}
            meta["signal"] = signal.told(context.spec, kept.parts.get(student["key"], {}))
            _keep(context, student["key"], folder / student["name"], meta)
    plan.forget(context, [student["key"] for student in students])


@contextmanager
def _trained(
    context: Context, name: str, job: dict[str, Any], keys: list[str], on_event: OnEvent
) -> Iterator[tuple[dict, Path]]:
    """What the child says, and the folder with its models."""
    checkpoints = plan.checkpoint_folder(context, keys)
    with context.workdir() as out:
        job = {**job, "out": str(out), "checkpoints": str(checkpoints), "identity": digest(sorted(keys))}
        job["compute"] = {**job["compute"], "checkpoint_minutes": context.spec.compute.checkpoint_minutes}
        with Progress(name) as progress:

            def tell(event: Event) -> None:
                progress(event)
                on_event(event)

            done = run_child("featkd.distill", job, out, on_event=tell, env=MALLOC)
        yield done, out


def _keep(context: Context, key: str, folder: Path, meta: dict[str, Any]) -> None:
    def build(out: Path) -> dict[str, Any]:
        folder.rename(out / "model")
        return meta

    context.store.make("student", key, build)


def _training(meta: dict[str, Any]) -> Training:
    """A distilled student's seconds are its own and its share of the teacher's pass."""
    found = {name: meta[name] for name in Training.model_fields if name in meta}
    return Training(**{**found, "seconds": meta["seconds"] + meta.get("teacher_seconds", 0.0)})


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
