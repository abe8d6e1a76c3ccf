"""Batches of token blocks, what is learned of them, and held-out losses over them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from featkd.align.head import token_losses
from featkd.distill.forward import Forward
from featkd.distill.runtime import Runtime

IGNORED = -100
DATA_SEED = 0


class MicroBatch(NamedTuple):
    """What goes through the models at once.

    ids, valid, keep [blocks, block]: valid is what belongs to the text that is learned, keep marks the positions whose
    next token is learned, targets [tokens] are those tokens. share: its part of the batch's learned tokens. last: the
    batch ends with it. Of several processes each has another part of the same micro-batch, and its number.
    """

    number: int
    ids: torch.Tensor
    valid: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    share: float
    last: bool


def micro_batches(batch: np.ndarray, size: int | None, run: Runtime) -> Iterator[MicroBatch]:
    """A batch int32 [2, blocks, block] in parts of `size` blocks; parts where nothing is learned are left out.

    One of several processes whose own part has nothing to learn takes part all the same, at a share of 0.
    """
    learned_tokens = (batch[1][:, 1:] != IGNORED).sum(axis=1)
    size = size or batch.shape[1]
    starts = [start for start in range(0, batch.shape[1], size) if learned_tokens[start : start + size].any()]
    for number, start in enumerate(starts):
        own = run.processes.part(batch[:, start : start + size])
        share = int((own[1][:, 1:] != IGNORED).sum()) / int(learned_tokens.sum())
        ids, labels = on_device(own if share else np.stack([own[0], own[0]]), run)
        keep, targets = learned(labels)
        place = number * run.processes.count + run.processes.rank
        yield MicroBatch(place, ids, labels != IGNORED, keep, targets, share, number == len(starts) - 1)


def batches(blocks: np.ndarray, batch_size: int, steps: int) -> Iterator[np.ndarray]:
    """The same batches in the same order for everyone: shuffled epochs, from a fixed seed."""
    rng = np.random.default_rng(DATA_SEED)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(blocks.shape[1])])
        chosen, order = order[:batch_size], order[batch_size:]
        yield blocks[:, chosen]


def on_device(blocks: np.ndarray, run: Runtime) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels) [batch, block] of blocks int32 [2, batch, block]."""
    ids, labels = (torch.from_numpy(part.astype(np.int64)).to(run.device) for part in blocks)
    return ids, labels


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
        ids, labels = on_device(own[:, start : start + batch_size], run)
        keep, targets = learned(labels)
        with run.autocast():
            losses = token_losses(forward(ids, keep).states, forward.head, targets)
        per_block = torch.zeros(len(ids), device=ids.device, dtype=torch.float64)
        per_block.index_add_(0, keep.nonzero()[:, 0], losses.double())
        found.append(torch.stack([per_block, keep.sum(1).double()], 1).cpu().numpy())
    forward.model.train()
    return run.processes.together(np.concatenate(found), blocks.shape[1])


def mean_loss(losses: np.ndarray) -> float:
    """Nats per token of `block_losses`."""
    total, tokens = losses.sum(axis=0)
    return float(total / max(tokens, 1))
