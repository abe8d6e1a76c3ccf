"""Batches of token blocks, what is learned of them, and held-out losses over them."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from featkd.align.head import token_losses
from featkd.distill.forward import Forward
from featkd.distill.runtime import Runtime
from featkd.models.probe import Probe
from featkd.training import Optimisation

IGNORED = -100
DATA_SEED = 0


class MicroBatch(NamedTuple):
    """What goes through the models at once.

    ids, positions, valid, keep [blocks, block]: positions begin anew at every document, and are None where none begins
    inside a block; valid is what belongs to the text that is learned, keep marks the positions whose next token is
    learned, targets [tokens] are those tokens. share: its part of the batch's learned tokens. last: the batch ends with
    it. blocks: their numbers in the training text. Of several processes each has another part of the same micro-batch,
    and its number.
    """

    number: int
    ids: torch.Tensor
    positions: torch.Tensor | None
    valid: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    share: float
    last: bool
    blocks: np.ndarray


def micro_batches(
    batch: np.ndarray, size: int | None, run: Runtime, numbers: np.ndarray | None = None
) -> Iterator[MicroBatch]:
    """A batch int32 [3, blocks, block] in parts of `size` blocks; parts where nothing is learned are left out.

    numbers: of the blocks in the training text, [blocks]. One of several processes whose own part has nothing to learn
    takes part all the same, at a share of 0.
    """
    numbers = np.arange(batch.shape[1]) if numbers is None else numbers
    learned_tokens = (batch[1][:, 1:] != IGNORED).sum(axis=1)
    size = size or batch.shape[1]
    starts = [start for start in range(0, batch.shape[1], size) if learned_tokens[start : start + size].any()]
    for number, start in enumerate(starts):
        here = run.processes.part(np.arange(start, min(start + size, batch.shape[1])))
        own = batch[:, here]
        share = int((own[1][:, 1:] != IGNORED).sum()) / int(learned_tokens.sum())
        ids, labels, positions = on_device(own if share else own[[0, 0, 2]], run)
        keep, targets = learned(labels)
        place, last = number * run.processes.count + run.processes.rank, number == len(starts) - 1
        yield MicroBatch(place, ids, positions, labels != IGNORED, keep, targets, share, last, numbers[here])


def batches(blocks: int, batch_size: int, steps: int) -> Iterator[np.ndarray]:
    """Numbers of the blocks of each batch, of so many: the same in the same order for everyone, shuffled epochs, from a
    fixed seed."""
    rng = np.random.default_rng(DATA_SEED)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(blocks)])
        chosen, order = order[:batch_size], order[batch_size:]
        yield chosen


def steps_of(training: Optimisation, block: int) -> int:
    return max(1, math.ceil(training.tokens / (training.batch_size * block)))


def first_epoch(blocks: int, training: Optimisation, block: int) -> np.ndarray:
    """Numbers of all blocks that `batches` takes, each once, in the order of the first epoch."""
    return next(batches(blocks, min(blocks, steps_of(training, block) * training.batch_size), 1))


def on_device(blocks: np.ndarray, run: Runtime) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(ids, labels, positions) [batch, block] of blocks int32 [3, batch, block]. Positions that never begin anew inside
    a block are None: a model counts so by itself, and attends faster without a mask."""
    ids, labels, positions = (torch.from_numpy(part.astype(np.int64)).to(run.device) for part in blocks)
    return ids, labels, positions if begins_anew(blocks) else None


def begins_anew(blocks: np.ndarray) -> bool:
    """Whether a document begins inside one of the blocks int32 [3, blocks, block], and does not see what is before."""
    return bool((blocks[2][:, 1:] == 0).any())


def probe(blocks: np.ndarray, tokens: int, run: Runtime) -> Probe:
    """The first blocks with something to learn, as many as make `tokens` with padding."""
    blocks = blocks[:, (blocks[1] != IGNORED).any(axis=1)]
    ids, labels, positions = on_device(blocks[:, : -(-tokens // blocks.shape[2])], run)
    return Probe(ids, positions, labels != IGNORED)


def learned(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """keep [batch, block]: positions whose next token is learned; targets: those next tokens [tokens]."""
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    keep = following != IGNORED
    return keep, following[keep]


@torch.no_grad()
def block_losses(forward: Forward, blocks: np.ndarray, run: Runtime, batch_size: int) -> np.ndarray:
    """Cross-entropy of every block with a learned token: its sum in nats and its tokens, [blocks, 2].

    Several processes divide the blocks, and all know all losses.
    """
    forward.model.eval()
    blocks = blocks[:, (blocks[1][:, 1:] != IGNORED).any(axis=1)]
    own = blocks[:, run.processes.in_turns(blocks.shape[1])]
    found = [np.empty((0, 2))]
    for start in range(0, own.shape[1], batch_size):
        ids, labels, positions = on_device(own[:, start : start + batch_size], run)
        keep, targets = learned(labels)
        with run.autocast():
            losses = token_losses(forward(ids, keep, positions).states, forward.head, targets)
        per_block = torch.zeros(len(ids), device=ids.device, dtype=torch.float64)
        per_block.index_add_(0, keep.nonzero()[:, 0], losses.double())
        found.append(torch.stack([per_block, keep.sum(1).double()], 1).cpu().numpy())
    forward.model.train()
    return run.processes.together(np.concatenate(found), blocks.shape[1])


def mean_loss(losses: np.ndarray) -> float:
    """Nats per token of `block_losses`."""
    total, tokens = losses.sum(axis=0)
    return float(total / max(tokens, 1))
