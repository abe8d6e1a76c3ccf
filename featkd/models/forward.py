"""A forward pass that computes logits only where they are wanted."""

from typing import Any, NamedTuple

import torch


class Output(NamedTuple):
    """logits [tokens, vocabulary] of the kept positions; hidden: states [batch, block, hidden] or None."""

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None


class Forward:
    """Trunk, then the head on the kept positions alone: the logits of a block are its largest tensor.

    A family whose forward does more than that (a soft cap, a scale) is found out on a small probe, and then its own
    forward is used and its logits are selected afterwards.
    """

    def __init__(self, model: Any):
        self.model = model
        self.plain = self._is_plain()

    def __call__(self, ids: torch.Tensor, keep: torch.Tensor, hidden: bool = False) -> Output:
        """ids [batch, block]; keep [batch, block] bool. Kept positions come in row-major order."""
        options = {"input_ids": ids, "use_cache": False, "output_hidden_states": hidden}
        if not self.plain:
            found = self.model(**options)
            return Output(found.logits[keep], found.hidden_states)
        found = self.model.base_model(**options)
        return Output(self.model.get_output_embeddings()(found.last_hidden_state[keep]), found.hidden_states)

    @torch.no_grad()
    def _is_plain(self) -> bool:
        training = self.model.training
        self.model.eval()
        try:
            ids = torch.arange(4, device=self.model.device)[None]
            trunk = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            head = self.model.get_output_embeddings()
            return torch.allclose(head(trunk), self.model(input_ids=ids, use_cache=False).logits, atol=1e-5)
        except (AttributeError, TypeError):
            return False
        finally:
            self.model.train(training)
