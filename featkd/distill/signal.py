"""What the teacher says of a batch: once, for all students that learn from it."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from featkd.align.head import Head, OnlineTeacher, plain_logits
from featkd.align.relations import QKV
from featkd.distill.batches import MicroBatch
from featkd.distill.forward import Forward
from featkd.distill.runtime import Runtime

LOGITS_BYTES = 256 << 20


@dataclass
class Signal:
    """hidden: all its states [batch, block, hidden]; qkv: by block."""

    outputs: OnlineTeacher | None = None
    hidden: tuple[torch.Tensor, ...] | None = None
    qkv: dict[int, Any] = field(default_factory=dict)


@torch.no_grad()
def online(teacher: Forward, batch: MicroBatch, hidden: bool, qkv_blocks: set[int], run: Runtime) -> Signal:
    """One pass. Logits of a moderate size are computed once, for all; others by each student, a few tokens at a time.

    hidden: whether its states are wanted; qkv_blocks: of which blocks Q, K and V are.
    """
    with run.autocast(), ExitStack() as stack:
        readers = {block: stack.enter_context(QKV(teacher.model, block)) for block in qkv_blocks}
        output = teacher(batch.ids, batch.keep, batch.positions, hidden)
        outputs = OnlineTeacher(output.states, teacher.head)
        if logits_bytes(len(output.states), teacher.model.config.vocab_size) <= LOGITS_BYTES:
            outputs = OnlineTeacher(plain_logits(output.states, teacher.head).float(), Head(None))
    return Signal(outputs, output.hidden, {block: reader.take() for block, reader in readers.items()})


def logits_bytes(tokens: int, vocabulary: int) -> int:
    return 4 * tokens * vocabulary
