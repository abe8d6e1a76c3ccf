"""Which students the spec wants, which of them are trained side by side, and where a killed training goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

from featkd import environment
from featkd.align.products import FAST_BF16
from featkd.distill.estimate import Need, passes, student_need, teacher_need
from featkd.models import given
from featkd.models.student import student_config
from featkd.spec import Spec, Student, digest
from featkd.store import artefact_key
from featkd.training import FREE, Compute
from tasks.context import Context
from tasks.data import folder_digest
from tasks.stages import say

ROOMS = ["distill", "models", "align"]
PACKAGES = ["torch", "transformers"]
KEYS = "keys.json"

Wanted = dict[str, Any]


def wanted(context: Context, teacher_digest: str, tokens: str) -> list[Wanted]:
    """Every size, seed and arm as the training child takes them, and the key of what will come of it.

    `tokens`: key of the token blocks. The key knows no names: arms and sizes of the same content are one student.
    """
    spec, students = context.spec, []
    for size in spec.students:
        folder = given.locate(size.model, size.field) if size.model else None
        origin = folder_digest(folder) if folder else None
        for seed in spec.seeds:
            for arm, recipe in spec.recipes().items():
                learned = recipe and recipe.model_dump(mode="json")
                inputs = {
                    "size": {**size.model_dump(mode="json"), "model": origin, "name": None},
                    "seed": seed,
                    "recipe": learned,
                    "signal": spec.teacher_signal.of(recipe),
                    "teacher": teacher_digest,
                    "tokens": tokens,
                    "training": spec.training.model_dump(mode="json"),
                    "compute": compute(context),
                    "machine": machine(),
                }
                student = {"arm": arm, "size": {**size.model_dump(mode="json"), "model": folder}, "seed": seed}
                key = artefact_key(inputs, ROOMS, PACKAGES)
                name = student_name(arm, size.name, seed)
                students.append({**student, "name": name, "recipe": learned, "key": key})
    return students


def student_name(arm: str, size: str, seed: int) -> str:
    """What the training child calls a student."""
    return f"{arm}-{size}-{seed}"


def side_by_side(context: Context, teacher: Path, missing: dict[str, Wanted]) -> list[list[Wanted]]:
    """Groups that share a pass of the teacher: what a killed run had begun, and the rest as memory has room.

    missing: by key. Raises InputError when there is no room for one.
    """
    left, groups = dict(missing), []
    for begun in _begun(context.home / "checkpoints"):
        if begun <= left.keys():
            groups.append([left.pop(key) for key in sorted(begun)])
            say(f"distil: {len(begun)} students go on from the checkpoint of a run that was ended")
    if not left:
        return groups
    rest = list(left.values())
    places = [(student["arm"], Student.model_validate(student["size"])) for student in rest]
    room = memory_bytes(context.spec.compute, context.device)
    teacher_and_students = needs(context.spec, given.configuration(teacher), places, context.device)
    found = passes(*teacher_and_students, room, context.device, context.spec.compute.processes)
    if len(found) > 1:
        say(f"distil: {len(found)} passes of the teacher, for {room / 1e9:.1f} GB hold no more students at a time")
    return groups + [[rest[place] for place in group] for group in found]


def needs(spec: Spec, teacher: Any, places: list[tuple[str, Student]], device: str) -> tuple[Need, list[Need]]:
    """What the teacher and each student, an arm and a size, take. teacher: its configuration.

    A student whose guard needs a twin of its own holds twice as much.
    """
    precision = spec.compute.precision
    bf16 = precision == "bf16" or (precision == "auto" and (device == "cuda" or FAST_BF16))
    recipes, found = spec.recipes(), []
    for arm, size in places:
        recipe = recipes[arm]
        need = student_need(
            student_config(size, teacher), teacher, recipe, spec.training, spec.block_size, device, bf16, spec.compute
        )
        guarded = recipe is not None and recipe.has_features and recipe.guard
        twin = guarded and recipe.outputs_only() not in recipes.values()
        found.append(need._replace(held=2 * need.held) if twin else need)
    features = any(recipes[arm] is not None and recipes[arm].has_features for arm, _ in places)
    of_teacher = teacher_need(
        teacher, spec.training, spec.block_size, features, bf16, spec.compute, spec.teacher_signal
    )
    return of_teacher, found


def memory_bytes(limits: Compute, device: str) -> int:
    """What training may take: as the spec says, or what is free."""
    return int(limits.memory_gb * 1e9) if limits.memory_gb else environment.free_memory_bytes(device)


def checkpoint_folder(context: Context, keys: list[str]) -> Path:
    """Where the training of what has these keys keeps its checkpoints; it says so itself."""
    folder = context.home / "checkpoints" / digest(sorted(keys))[:20]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEYS).write_text(json.dumps(sorted(keys)), encoding="utf-8")
    return folder


def forget(context: Context, keys: list[str]) -> None:
    """Remove the checkpoints of what the store has now."""
    shutil.rmtree(context.home / "checkpoints" / digest(sorted(keys))[:20], ignore_errors=True)


def compute(context: Context) -> dict[str, Any]:
    """The spec's section, resolved: without what changes no weights."""
    return {**context.spec.compute.model_dump(mode="json", exclude=set(FREE)), "threads": context.threads}


def machine() -> dict[str, Any]:
    """What `auto` in the spec's compute section depends on: weights repeat on the same machine only."""
    found = environment.hardware()
    return {name: found[name] for name in ("cpu", "instructions", "accelerator")}


def _begun(folder: Path) -> list[set[str]]:
    """Keys of each group with a checkpoint."""
    return [set(json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob(f"*/{KEYS}"))
            if list(file.parent.glob("step-*[0-9]"))]  # fmt: skip
