"""A forward pass that stops before the head: the logits of a block are its largest tensor."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple

import torch

from featkd.align.output import Head, plain_logits
from featkd.align.relations import blocks_of
from featkd.errors import InputError


class Output(NamedTuple):
    """states [tokens, hidden] before the head at the kept positions, None where the pass ended before; hidden: states
    [batch, block, hidden] by layer, or None."""

    states: torch.Tensor | None
    hidden: tuple[torch.Tensor, ...] | dict[int, torch.Tensor] | None


class _Enough(Exception):
    """All that was wanted of a pass is there."""


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
        options = _options(ids, positions) | {"output_hidden_states": hidden}
        found = (self.model.base_model if self.plain else self.model)(**options)
        states = found.last_hidden_state[keep] if self.plain else found.logits[keep][:, : self.rows]
        return Output(states, found.hidden_states)

    def at_layers(
        self,
        ids: torch.Tensor,
        keep: torch.Tensor,
        positions: torch.Tensor | None,
        layers: set[int],
        outputs: bool = True,
    ) -> Output:
        """The same with the hidden states of these layers alone. Without outputs no block above them runs."""
        if not layers:
            return self(ids, keep, positions) if outputs else Output(None, {})
        if not self._readable:
            found = self(ids, keep, positions, hidden=True)
            return found._replace(hidden={layer: found.hidden[layer] for layer in layers})
        last, states = self.model.config.num_hidden_layers, None
        with (
            suppress(_Enough),
            _reading(self.model, layers, None if outputs or last in layers else max(layers)) as hidden,
        ):
            found = self.model.base_model(**_options(ids, positions))
            hidden[last], states = found.last_hidden_state, found.last_hidden_state[keep]
        return Output(states if outputs else None, {layer: hidden[layer] for layer in layers})

    def round_once(self) -> None:
        """Linear layers and the head become bf16 for good, as autocast would make them anew at every pass: the same
        states in less time and, but for embeddings and a head that is tied to them, half the memory. The model is good
        under autocast alone then."""
        _ = self._readable  # whose probe wants weights of one type
        for layer in rounded_layers(self.model):
            layer.to(torch.bfloat16)
        if self._head.weight is not None:
            self._head = self._head._replace(weight=self._head.weight.bfloat16())

    def release(self, head: bool) -> None:
        """Give the model's weights back to memory, but for the head where that is still wanted."""
        self.model.to("meta")
        if not head:
            self._head = Head(None)

    @cached_property
    @torch.no_grad()
    def _readable(self) -> bool:
        """Whether hidden state n is what goes into block n (from 0): tried on a small probe."""
        if not self.plain or not blocks_of(self.model):
            return False
        ids = torch.arange(4, device=self.model.device)[None]
        states = self.model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[:-1]
        with _reading(self.model, set(range(len(states))), None) as found:
            self.model.base_model(input_ids=ids, use_cache=False)
        return len(found) == len(states) and all(torch.equal(found[n], state) for n, state in enumerate(states))

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


def rounded_layers(model: Any) -> list[torch.nn.Module]:
    """Those whose weights autocast rounds, but for one that shares them with the input embedding, which it does not."""
    from transformers.pytorch_utils import Conv1D

    embedded = model.get_input_embeddings().weight
    linear = (layer for layer in model.modules() if type(layer) in (torch.nn.Linear, Conv1D))
    return [layer for layer in linear if layer.weight is not embedded and layer.weight.dtype == torch.float32]


def check_apart(forward: Forward) -> None:
    """Raises InputError where documents of one block would see each other though positions begin anew."""
    if not forward.keeps_apart():
        raise InputError(
            f"data.attention: the documents of a block cannot be kept apart in a model of the family "
            f"{forward.model.config.model_type}; write block"
        )


def _options(ids: torch.Tensor, positions: torch.Tensor | None) -> dict[str, Any]:
    options = {"input_ids": ids, "use_cache": False}
    return options if positions is None else options | {"position_ids": positions}


@contextmanager
def _reading(model: Any, layers: set[int], last: int | None) -> Iterator[dict[int, torch.Tensor]]:
    """Inputs of these blocks, filled in by a pass of the model. The pass ends with _Enough before block `last`."""
    found: dict[int, torch.Tensor] = {}

    def reader(layer: int) -> Any:
        def keep(block: Any, inputs: tuple, options: dict[str, Any]) -> None:
            found[layer] = inputs[0] if inputs else options["hidden_states"]
            if layer == last:
                raise _Enough

        return keep

    hooks = [
        block.register_forward_pre_hook(reader(layer), with_kwargs=True)
        for layer, block in enumerate(blocks_of(model))
        if layer in layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def head_of(model: Any) -> Head:
    """The output embedding, and what the configuration says of its logits.

    final_logit_softcapping: Gemma 2 and later; logit_scale multiplies (Cohere), logits_scaling divides (Granite).
    """
    layer, config = model.get_output_embeddings(), model.config
    if not isinstance(getattr(layer, "weight", None), torch.Tensor):
        return Head(None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))
