"""The teacher's signal, read from disk: folders that make_cache.py has made, one per part.

A part is the outputs (last-hidden, or top-k at one temperature) or one layer's hidden states. Its folder holds

    part.json   identity, what it is
    blocks.npy  [blocks], numbers of the blocks of training text; starts.npy [blocks + 1], where each begins below
    states.npy  [tokens, hidden], bf16 as int16                            last-hidden
    log_p.npy, ids.npy  [tokens, k]                                        top-k
    codes.npy [tokens, kept], norms.npy [tokens], directions.npy, steps.npy  a layer (compress.py)

with a row for every position whose next token is learned (outputs), or that belongs to the text (layers). Arrays are
mapped into memory, so that they may be larger than it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featkd.align.head import TopKTeacher
from featkd.distill.batches import MicroBatch
from featkd.distill.compress import Codec, decode
from featkd.distill.forward import Forward
from featkd.distill.runtime import Runtime
from featkd.distill.signal import Signal, online, teacher_outputs
from featkd.errors import InputError
from featkd.teaching import TeacherSignal

PART = "part.json"


class Stored:
    """One part. Raises InputError for a folder whose identity is another."""

    def __init__(self, folder: Path, identity: str):
        self.about: dict[str, Any] = json.loads((folder / PART).read_text(encoding="utf-8"))
        if self.about["identity"] != identity:
            raise InputError(
                f"teacher_signal: {folder} is of another teacher, tokenizer, data, spec or version; remove it to make "
                "it anew"
            )
        self.arrays = {
            file.stem: np.load(file, mmap_mode="r")
            for file in folder.glob("*.npy")
            if file.stem not in ("blocks", "starts")
        }
        self.starts = np.load(folder / "starts.npy")
        self.place = {int(block): row for row, block in enumerate(np.load(folder / "blocks.npy"))}

    def rows(self, name: str, blocks: np.ndarray) -> np.ndarray:
        """Of one array, for these blocks, one after the other."""
        places = [self.place[int(block)] for block in blocks]
        return np.concatenate([self.arrays[name][self.starts[at] : self.starts[at + 1]] for at in places])


class Cache:
    """The parts that a training needs; what is not among them is online. `folders`: part to (folder, identity)."""

    def __init__(self, signal: TeacherSignal, folders: dict[str, tuple[Path, str]]):
        self.outputs, self.features = signal.outputs != "online", signal.features != "online"
        stored = [Stored(Path(folder), identity) for folder, identity in folders.values()]
        self.last_hidden = next((part for part in stored if part.about["kind"] == "last-hidden"), None)
        self.top_k = {part.about["temperature"]: part for part in stored if part.about["kind"] == "top-k"}
        self.layers = {part.about["layer"]: part for part in stored if part.about["kind"] == "layer"}
        self.codecs: dict[int, Codec] = {}

    def signal(
        self, teacher: Forward, batch: MicroBatch, layers: set[int], qkv_blocks: set[int], run: Runtime
    ) -> Signal:
        """As `online`. The teacher works no more than what is not cached asks for."""
        found = Signal()
        seen = set() if self.features else layers
        if seen or not self.outputs:
            found = online(teacher, batch, seen, qkv_blocks, run, outputs=not self.outputs)
        if self.last_hidden:
            states = torch.from_numpy(self.last_hidden.rows("states", batch.blocks)).view(torch.bfloat16)
            with torch.no_grad(), run.autocast():
                found.outputs = teacher_outputs(states.to(run.device).float(), teacher, batch.targets)
        for temperature, part in self.top_k.items():
            log_p, ids = part.rows("log_p", batch.blocks), part.rows("ids", batch.blocks).astype(np.int64)
            found.top_k[temperature] = TopKTeacher(*(torch.from_numpy(x).to(run.device) for x in (log_p, ids)))
        if self.features:
            found.hidden = {layer: self._hidden(layer, batch, run) for layer in layers}
        return found

    def _hidden(self, layer: int, batch: MicroBatch, run: Runtime) -> torch.Tensor:
        """[batch, block, hidden], float32; zeros where there is no text."""
        part = self.layers[layer]
        if layer not in self.codecs:
            fitted = (torch.from_numpy(np.array(part.arrays[name])) for name in Codec._fields)
            self.codecs[layer] = Codec(*(tensor.to(run.device) for tensor in fitted))
        codes, norms = (torch.from_numpy(part.rows(name, batch.blocks)).to(run.device) for name in ("codes", "norms"))
        states = decode(self.codecs[layer], codes, norms)
        hidden = states.new_zeros(*batch.ids.shape, states.shape[-1])
        hidden[batch.valid] = states
        return hidden
