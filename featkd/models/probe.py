"""A little training text, on which it is found what a student takes over from its teacher."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch


class Probe(NamedTuple):
    """ids, valid [blocks, block]: valid is what belongs to the text that is learned. positions [blocks, block] begin
    anew at every document; None: one per block."""

    ids: torch.Tensor
    positions: torch.Tensor | None
    valid: torch.Tensor

    def blocks(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """Each block as a trunk's arguments, and its valid positions [block]; without blocks that have none."""
        for row, valid in enumerate(self.valid):
            options = {"input_ids": self.ids[row : row + 1], "use_cache": False}
            if self.positions is not None:
                options["position_ids"] = self.positions[row : row + 1]
            if valid.any():
                yield options, valid
