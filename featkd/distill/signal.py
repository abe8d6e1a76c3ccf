"""What the teacher says of a batch: once, for all students that learn from it."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from featkd.align.head import OnlineTeacher, TopKTeacher
from featkd.align.output import Head, softmax_logits
from featkd.align.relations import QKV
from featkd.distill.batches import MicroBatch
from featkd.distill.forward import Forward
from featkd.distill.runtime import Runtime
from featkd.teaching import Distillation

LOGITS_BYTES = 256 << 20


@dataclass
class Signal:
    """outputs, or top_k by temperature; hidden: states [batch, block, hidden] by layer; qkv: by block."""

    outputs: OnlineTeacher | None = None
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    qkv: dict[int, Any] = field(default_factory=dict)
    top_k: dict[float, TopKTeacher] = field(default_factory=dict)

    def outputs_for(self, recipe: Distillation, rows: int) -> OnlineTeacher | TopKTeacher:
        """rows: of the vocabulary that the student shares with the teacher; the likeliest tokens are all among them."""
        if not self.top_k:
            return self.outputs.first(rows)
        log_p, ids = self.top_k[recipe.temperature]
        return TopKTeacher(log_p[:, : recipe.top_k], ids[:, : recipe.top_k])


@torch.no_grad()
def online(
    teacher: Forward, batch: MicroBatch, layers: set[int], qkv_blocks: set[int], run: Runtime, outputs: bool = True
) -> Signal:
    """One pass, that ends at the highest of the layers where outputs are not wanted.

    layers: whose hidden states are wanted; qkv_blocks: of which blocks, among them, Q, K and V are.
    """
    with run.autocast(), ExitStack() as stack:
        readers = {block: stack.enter_context(QKV(teacher.model, block)) for block in qkv_blocks}
        found = teacher.at_layers(batch.ids, batch.keep, batch.positions, layers, outputs)
        said = teacher_outputs(found.states, teacher, batch.targets) if outputs else None
    return Signal(said, found.hidden or {}, {block: reader.take() for block, reader in readers.items()})


def teacher_outputs(states: torch.Tensor, teacher: Forward, targets: torch.Tensor) -> OnlineTeacher:
    """states [tokens, hidden]; targets [tokens]. Logits of a moderate size are computed once, for all; others by each
    student, a few tokens at a time."""
    if logits_bytes(len(states), teacher.model.config.vocab_size) <= LOGITS_BYTES:
        return OnlineTeacher(softmax_logits(states, teacher.head, targets), Head(None))
    return OnlineTeacher(states, teacher.head)


def logits_bytes(tokens: int, vocabulary: int) -> int:
    return 4 * tokens * vocabulary
