"""One pass of the teacher over the training blocks that the batches will take, each once; kept is what is asked for.

A part is {"kind": "last-hidden"}, {"kind": "top-k", "k", "temperature"} or {"kind": "layer", "layer", "dimensions"},
with an "identity" beside it; cache.py describes the folder that comes of it.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from featkd.align.output import softmax_logits
from featkd.distill import compress
from featkd.distill.batches import IGNORED, begins_anew, learned, on_device
from featkd.distill.cache import PART
from featkd.distill.forward import Forward, Output, check_apart
from featkd.distill.runtime import Runtime
from featkd.distill.signal import LOGITS_BYTES, logits_bytes
from featkd.errors import InputError, RunError

TOKENS_AT_ONCE = 2048  # not the batch size of the training, on which no part depends
Part = dict[str, Any]
Rows = dict[str, torch.Tensor]
Sums = dict[str, float]  # of what is told per token, over the tokens of the rows


class Pass(NamedTuple):
    """Some blocks: keep, valid, targets as in MicroBatch, and what the teacher says of them."""

    keep: torch.Tensor
    valid: torch.Tensor
    targets: torch.Tensor
    said: Output


def make(
    parts: dict[str, Part],
    teacher: Any,
    vocabulary: int,
    blocks: np.ndarray,
    chosen: np.ndarray,
    run: Runtime,
    out: Path,
    on_step: Callable[..., None] = lambda **fields: None,
) -> dict[str, dict[str, Any]]:
    """Write every part into a folder of its name in `out`. Returns what is told of each: bytes, tokens, fidelity.

    Under bf16 the teacher's linear layers stay rounded.
    blocks int32 [3, blocks, block_size]; chosen: numbers of those to keep; vocabulary: how many rows of the teacher's
    output embedding are tokens, and no padding. Raises InputError where the family's logits do not follow from its last
    state, RunError where what it says is not finite.
    """
    teacher.to(run.device).eval().requires_grad_(False)
    forward, kinds = Forward(teacher), {part["kind"] for part in parts.values()}
    if not forward.plain and "last-hidden" in kinds:
        raise InputError(
            f"teacher_signal.outputs: the logits of {teacher.config.model_type} are not made of its last state alone; "
            "write top-k, or online"
        )
    if begins_anew(blocks):
        check_apart(forward)
    if run.bf16:
        forward.round_once()
    layers = {part["layer"]: part["dimensions"] for part in parts.values() if part["kind"] == "layer"}
    codecs = {layer: _codec(forward, layer, kept, blocks, chosen, run) for layer, kept in layers.items()}
    folders = {name: _Folder(out / name, part, vocabulary, blocks, chosen) for name, part in parts.items()}
    for part, folder in zip(parts.values(), folders.values(), strict=True):
        if part["kind"] == "layer":
            folder.save(codecs[part["layer"]]._asdict())
    start, done = run.clock(), 0
    for found in _passes(forward, set(layers), kinds != {"layer"}, blocks, chosen, run):
        for name, part in parts.items():
            if part["kind"] == "layer":
                folders[name].add(*_layer(found, part["layer"], codecs[part["layer"]]))
            else:
                of = _top_k if part["kind"] == "top-k" else _last_hidden
                with run.autocast():
                    folders[name].add(*of(found, forward, vocabulary, part))
        done += len(found.keep)
        rate = done * blocks.shape[2] / (run.clock() - start)
        on_step(step=done, steps=len(chosen), tokens_per_s=rate)
    return {name: folder.close() for name, folder in folders.items()}


@torch.no_grad()
def _passes(
    forward: Forward, layers: set[int], outputs: bool, blocks: np.ndarray, chosen: np.ndarray, run: Runtime
) -> Iterator[Pass]:
    at_once = max(1, TOKENS_AT_ONCE // blocks.shape[2])
    for first in range(0, len(chosen), at_once):
        ids, labels, positions = on_device(blocks[:, chosen[first : first + at_once]], run)
        keep, targets = learned(labels)
        with run.autocast():
            said = forward.at_layers(ids, keep, positions, layers, outputs)
        yield Pass(keep, labels != IGNORED, targets, said)


def _codec(
    forward: Forward, layer: int, dimensions: int, blocks: np.ndarray, chosen: np.ndarray, run: Runtime
) -> compress.Codec:
    """Fitted on the first blocks in the order of the batches. A pass for each layer: all their states are large."""
    states, count = [], 0
    for some in _passes(forward, {layer}, False, blocks, chosen, run):
        states.append(some.said.hidden[layer][some.valid].float())
        count += int(some.valid.sum())
        if count >= compress.FIT_TOKENS:
            break
    return compress.fit(torch.cat(states), dimensions)


def _layer(found: Pass, layer: int, codec: compress.Codec) -> tuple[Rows, Sums]:
    states = found.said.hidden[layer][found.valid].float()
    codes, norms = compress.encode(codec, states)
    again = compress.decode(codec, codes, norms)
    off = (again.norm(dim=-1) - norms).abs() / norms.clamp_min(compress.TINY)
    cosine = F.cosine_similarity(again, states, dim=-1)
    return {"codes": codes, "norms": norms}, {"cosine": float(cosine.sum()), "norm_error": float(off.sum())}


@torch.no_grad()
def _last_hidden(found: Pass, forward: Forward, vocabulary: int, part: Part) -> tuple[Rows, Sums]:
    states = found.said.states
    kept, kl = states.to(torch.bfloat16), 0.0
    for rows in _slices(states, forward):
        p, q = (
            softmax_logits(x[rows], forward.head, found.targets[rows]).log_softmax(-1)
            for x in (states, kept.to(states.dtype))
        )
        kl += float((p.exp() * (p - q)).sum())
    return {"states": kept}, {"kl": kl}


@torch.no_grad()
def _top_k(found: Pass, forward: Forward, vocabulary: int, part: Part) -> tuple[Rows, Sums]:
    best, states = [], found.said.states
    for rows in _slices(states, forward):
        logits = softmax_logits(states[rows], forward.head, found.targets[rows])[:, :vocabulary]
        best.append((logits / part["temperature"]).log_softmax(-1).topk(min(part["k"], vocabulary), dim=-1))
    log_p, ids = (torch.cat(both) for both in zip(*best, strict=True))
    return {"log_p": log_p, "ids": ids}, {"coverage": float(log_p.exp().sum())}


def _slices(states: torch.Tensor, forward: Forward) -> list[slice]:
    """Logits of a slice are of a moderate size. There is one at least."""
    size = max(1, LOGITS_BYTES // logits_bytes(2, forward.model.config.vocab_size))
    return [slice(first, first + size) for first in range(0, max(1, len(states)), size)]


class _Folder:
    """A part on its way to the disk: arrays are mapped files, made when the first rows come."""

    def __init__(self, folder: Path, part: Part, vocabulary: int, blocks: np.ndarray, chosen: np.ndarray):
        self.folder, self.part, self.vocabulary = folder, part, vocabulary
        self.arrays, self.sums, self.at = {}, {}, 0
        counted = blocks[1][chosen] != IGNORED
        starts = np.cumsum([0, *(counted if part["kind"] == "layer" else counted[:, 1:]).sum(axis=1)])
        self.tokens = int(starts[-1])
        folder.mkdir()
        np.save(folder / "blocks.npy", chosen)
        np.save(folder / "starts.npy", starts)

    def save(self, tensors: Rows) -> None:
        for name, tensor in tensors.items():
            np.save(self.folder / f"{name}.npy", tensor.cpu().numpy())

    def add(self, rows: Rows, sums: Sums) -> None:
        count = 0
        for name, tensor in rows.items():
            if not tensor.isfinite().all():
                raise RunError(
                    "teacher.model: its outputs are not finite, and nothing can be learned from them: check the model, "
                    "or write compute.precision: fp32"
                )
            values, count = _values(tensor), len(tensor)
            if name not in self.arrays:
                dtype = np.min_scalar_type(self.vocabulary - 1) if name == "ids" else values.dtype
                shape = (self.tokens, *values.shape[1:])
                self.arrays[name] = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, shape)
            self.arrays[name][self.at : self.at + count] = values
        self.at += count
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}

    def close(self) -> dict[str, Any]:
        """What is told of it."""
        for array in self.arrays.values():
            array.flush()
        (self.folder / PART).write_text(json.dumps(self.part), encoding="utf-8")
        per_token = sum(array[:1].nbytes for array in self.arrays.values())
        files = sum(file.stat().st_size for file in self.folder.iterdir())
        means = {name: total / max(1, self.tokens) for name, total in self.sums.items()}
        return {"bytes": files, "tokens": self.tokens, "bytes_per_token": per_token, **means}


def _values(tensor: torch.Tensor) -> np.ndarray:
    """numpy has no bf16: its bits."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
