"""A training that was killed goes on from its last checkpoint, to the same weights as one that was not.

A checkpoint is a folder with a file of tensors per student and, written last, state.json. It is made beside its final
name and renamed whole. Batches follow from the step, random numbers from seed and step: neither has to be kept.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from featkd.distill.learner import Learner
from featkd.errors import InputError

STATE = "state.json"


class Checkpoints:
    """The newest checkpoint of one training, in `folder`. identity: digest of all that its weights depend on."""

    def __init__(self, folder: Path, identity: str, every_s: float):
        self.folder, self.identity, self.every_s = folder, identity, every_s
        folder.mkdir(parents=True, exist_ok=True)
        self.last = time.monotonic()

    @property
    def begun(self) -> bool:
        return bool(self._finished())

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.every_s

    def save(self, step: int, learners: list[Learner], teacher_seconds: float) -> None:
        """After `step` steps. Of several processes the first writes, with what all of them hold."""
        first = learners[0].processes.rank == 0
        partial = self.folder / f"step-{step}.partial"
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        for number, learner in enumerate(learners):
            tensors = learner.tensors()
            if first:
                save_file({name: t.contiguous() for name, t in tensors.items()}, partial / _tensors(number))
        if not first:
            return
        state = {
            "identity": self.identity,
            "step": step,
            "teacher_seconds": teacher_seconds,
            "learners": [learner.facts() for learner in learners],
        }
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
        for file in [*partial.iterdir(), partial]:
            _to_disk(file)
        final = self.folder / f"step-{step}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _to_disk(self.folder)
        for other in self.folder.glob("step-*"):
            if other != final:
                shutil.rmtree(other, ignore_errors=True)
        self.last = time.monotonic()

    def restore(self, learners: list[Learner]) -> dict[str, Any]:
        """Bring the learners, prepared, to the newest checkpoint: {"step", "teacher_seconds"}, step 0 without one.

        Raises InputError for the checkpoint of another training.
        """
        finished = self._finished()
        if not finished:
            return {"step": 0, "teacher_seconds": 0.0}
        folder = max(finished, key=lambda path: int(path.name.removeprefix("step-")))
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["identity"] != self.identity:
            raise InputError(f"checkpoint: {folder} is of another spec, data or version; remove it to train anew")
        for number, (learner, facts) in enumerate(zip(learners, state["learners"], strict=True)):
            learner.restore(load_file(folder / _tensors(number)), facts)
        return {"step": state["step"], "teacher_seconds": state["teacher_seconds"]}

    def _finished(self) -> list[Path]:
        return [path.parent for path in self.folder.glob(f"step-*[0-9]/{STATE}")]


def _tensors(number: int) -> str:
    return f"learner-{number}.safetensors"


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
