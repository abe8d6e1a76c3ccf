"""A forward pass that stops before the head: the logits of a block are its largest tensor."""

from typing import Any, NamedTuple

import torch

from featkd.align.head import Head, plain_logits


class Output(NamedTuple):
    """states [tokens, hidden] before the head at the kept positions; hidden: states [batch, block, hidden] or None."""

    states: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None


class Forward:
    """The trunk, and beside it the head with what the family does to its logits: a scale, a soft cap.

    A family that does something else is found out on a small probe; then its own forward is used, its logits are the
    states, and the head does nothing. Logits beyond the first `rows` are padding, and left out.
    """

    def __init__(self, model: Any, rows: int | None = None):
        self.model = model
        self.rows = min(rows or model.config.vocab_size, model.config.vocab_size)
        self._head = head_of(model)
        self.plain = self._is_plain()
        if not self.plain:
            self._head = Head(None)

    @property
    def head(self) -> Head:
        return self._head.first(self.rows)

    def __call__(
        self, ids: torch.Tensor, keep: torch.Tensor, positions: torch.Tensor | None = None, hidden: bool = False
    ) -> Output:
        """ids [batch, block]; keep [batch, block] bool; positions [batch, block], None: one text per block. Kept
        positions come in row-major order.

        Where positions begin anew, transformers lets no token attend to what is before (masking_utils,
        find_packed_sequence_indices): given neither a mask nor a cache, and by most families; `keeps_apart` knows.
        """
        options = {"input_ids": ids, "use_cache": False, "output_hidden_states": hidden}
        if positions is not None:
            options["position_ids"] = positions
        found = (self.model.base_model if self.plain else self.model)(**options)
        states = found.last_hidden_state[keep] if self.plain else found.logits[keep][:, : self.rows]
        return Output(states, found.hidden_states)

    @torch.no_grad()
    def keeps_apart(self) -> bool:
        """Whether a text has the same states behind another text as alone, once positions begin anew."""
        training = self.model.training
        self.model.eval()
        try:
            ids = torch.arange(4, device=self.model.device)[None]
            keep = torch.ones_like(ids, dtype=torch.bool)
            behind = self(ids, keep, torch.tensor([[0, 1, 0, 1]], device=ids.device)).states[2:]
            alone = self(ids[:, 2:], keep[:, 2:]).states
            return torch.allclose(behind, alone, rtol=0, atol=1e-3 * float(alone.abs().max()))
        except (TypeError, ValueError):  # a family that takes no positions
            return False
        finally:
            self.model.train(training)

    @torch.no_grad()
    def _is_plain(self) -> bool:
        training = self.model.training
        self.model.eval()
        try:
            ids = torch.arange(4, device=self.model.device)[None]
            trunk = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            logits = self.model(input_ids=ids, use_cache=False).logits
            return torch.allclose(plain_logits(trunk, self._head), logits, atol=1e-5)
        except (AttributeError, TypeError):
            return False
        finally:
            self.model.train(training)


def head_of(model: Any) -> Head:
    """The output embedding, and what the configuration says of its logits.

    final_logit_softcapping: Gemma 2 and later; logit_scale multiplies (Cohere), logits_scaling divides (Granite).
    """
    layer, config = model.get_output_embeddings(), model.config
    if not isinstance(getattr(layer, "weight", None), torch.Tensor):
        return Head(None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))
