"""The graph that generates: each layer's attention is one GroupQueryAttention, ONNX Runtime's op over a KV cache.

transformers hands queries, keys and values to whatever attention is registered (its attention interface, made for
serving engines: huggingface.co/docs/transformers/attention_interface); here that is the op itself, so no pattern has
to be found in a finished graph. Inputs: input_ids [batch, n], attention_mask [batch, past + n], logits_to_keep, and
the KV cache under the names of the general graph. Rows are padded on the right. The op takes any batch from an empty
past or for one new token; many new tokens after a past only for a batch of one. Positions follow from the mask. The
cache may be a buffer with room for more tokens, the same one as input and output: nothing is copied then.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from featkd.deploy.graphs import kept_logits, pack_projections
from featkd.deploy.session import PAST, PRESENT
from featkd.errors import RunError

ATTENTION = "featkd_fused"
GROUP_QUERY = "GroupQueryAttention"
MOVING_TABLES = ("dynamic", "longrope")  # rotary tables that depend on the length of the text


def trace(model: Any, past: dict[str, tuple[int, int]], rotary_inside: bool) -> Any:
    """The onnx_ir.Model of a transformers causal LM, weights included.

    Args:
        model: in eval mode.
        past: cache input name to (heads, width), keys and values of each layer in turn.
        rotary_inside: let the op rotate queries and keys where it can, from tables; else the model's own way.
    Raises RunError where the model's attention cannot be handed over.
    """
    tables = _rotary_tables(model, next(iter(past.values()))[1]) if rotary_inside else None
    batch, n, seen = 2, 3, 5
    states = [torch.zeros(batch, heads, seen, width) for heads, width in past.values()]
    pairs = list(zip(states[::2], states[1::2], strict=True))
    mask = torch.ones(batch, seen + n, dtype=torch.long)
    inputs = (torch.ones(batch, n, dtype=torch.long), mask, torch.tensor([0, 2]), pairs)
    size = torch.export.Dim
    of_batch, of_past = size("batch"), size("past")
    grows = {0: of_batch, 2: of_past}
    shapes = (
        {0: of_batch, 1: size("new")},
        {0: of_batch, 1: size("total")},
        {0: size("kept")},
        [(grows, grows)] * len(pairs),
    )
    with torch.no_grad(), _handed_over(model, tables is not None), kept_logits(model):
        program = torch.onnx.export(
            _Generating(model, tables).eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["input_ids", "attention_mask", "logits_to_keep", *past],
            output_names=["logits", *(PRESENT + name.removeprefix(PAST) for name in past)],
            verbose=False,
        )
    _fuse(program.model)
    found = sum(node.op_type == GROUP_QUERY for node in program.model.graph)
    if found != len(pairs):
        raise RunError(f"{found} of {len(pairs)} layers handed their attention over")
    return program.model


class _Generating(torch.nn.Module):
    def __init__(self, model: Any, tables: tuple[torch.Tensor, torch.Tensor] | None):
        super().__init__()
        self.model = model
        for name, table in zip(("cos", "sin"), tables or (), strict=False):
            self.register_buffer(name, table)

    def forward(self, input_ids: Any, attention_mask: Any, logits_to_keep: Any, past: list[tuple[Any, Any]]) -> Any:
        n, total = input_ids.shape[1], attention_mask.shape[1]
        lengths = attention_mask.sum(1)
        positions = (lengths - n).clamp(min=0)[:, None] + torch.arange(n)[None]
        op = torch.onnx.ops
        size = op.symbolic("Shape", [attention_mask], {"start": 1, "end": 2}, dtype=torch.int64, shape=(1,))
        small = op.symbolic("Cast", [size], {"to": 6}, dtype=torch.int32, shape=(1,))
        ends = [(lengths - 1).to(torch.int32), op.symbolic("Squeeze", [small], dtype=torch.int32, shape=())]
        tables = [self.cos, self.sin] if hasattr(self, "cos") else []
        present: list[Any] = [None] * len(past)

        def attend(
            module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
            dropout: float = 0.0, sliding_window: int | None = None, softcap: float | None = None, **others: Any,
        ) -> tuple[Any, None]:  # fmt: skip
            if others.get("s_aux") is not None:
                raise RunError("the model's attention has sinks")
            rows, heads, _, width = query.shape
            options: dict[str, Any] = {"num_heads": heads, "kv_num_heads": key.shape[1]}
            options["scale"] = float(scaling if scaling is not None else width**-0.5)
            if sliding_window:
                options["local_window_size"] = int(sliding_window)  # keys, the token itself among them
            if softcap:
                options["softcap"] = float(softcap)
            if tables:
                options["do_rotary"] = 1
            flat = [states.transpose(1, 2).flatten(2) for states in (query, key, value)]
            cache = (rows, key.shape[1], total, width)
            attended, *present[module.layer_idx] = op.symbolic_multi_out(
                f"com.microsoft::{GROUP_QUERY}",
                [*flat, *past[module.layer_idx], *ends, *tables],
                options,
                dtypes=[query.dtype] * 3,
                shapes=[flat[0].shape, cache, cache],
                version=1,
            )
            return attended.unflatten(2, (heads, width)), None

        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
        logits = self.model(
            input_ids=input_ids, position_ids=positions, past_key_values=_Untouched(), use_cache=True,
            logits_to_keep=logits_to_keep,
        ).logits  # fmt: skip
        return logits, present


class _Untouched(Cache):
    """The op keeps the cache: layers get their new keys and values back as they are."""

    def __init__(self) -> None:
        self.layers = []

    def update(self, keys: Any, values: Any, layer: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        return 0


@contextlib.contextmanager
def _handed_over(model: Any, unrotated: bool) -> Iterator[None]:
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *args, **kwargs: None)  # the name has to be known
    model.set_attn_implementation(ATTENTION)
    source = sys.modules[type(model).__module__]
    with contextlib.ExitStack() as stack:
        stack.callback(model.set_attn_implementation, before)
        if unrotated:
            stack.enter_context(mock.patch.object(source, "apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (q, k)))
        yield


def _rotary_tables(model: Any, width: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """cos and sin [positions, width / 2] of rotary embeddings (arXiv 2104.09864), None where the op cannot use them:
    it knows halves turned as in Llama, over the whole head, whose width is a multiple of 16."""
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    known = hasattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb")
    if rotary is None or not known or width % 16 or getattr(rotary, "rope_type", "default") in MOVING_TABLES:
        return None
    positions = torch.arange(model.config.get_text_config().max_position_embeddings)[None]
    try:
        tables = rotary(torch.zeros(1, 1), positions)
    except TypeError:  # one table per kind of layer
        return None
    if any(table.shape[-1] != width for table in tables):
        return None
    cos, sin = (table[0, :, : width // 2].contiguous() for table in tables)
    return cos, sin


def _fuse(program: Any) -> None:
    """Norms to ONNX Runtime's ops; no reshaping around attention; queries, keys and values from one product."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
    from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

    fuse_rms_normalization(program)
    fuse_skip_rms_normalization(program)
    pack_projections(program)
    for node in [node for node in program.graph if node.op_type == GROUP_QUERY]:
        for index in range(3):
            node.replace_input_with(index, _unshaped(node.inputs[index]))
        _skip_reshapes(node.outputs[0])
        split = node.inputs[0].producer()
        if split is not None and split.op_type == "Split" and list(split.outputs) == list(node.inputs[:3]):
            node.replace_input_with(0, split.inputs[0])  # the op takes them packed as well
            node.replace_input_with(1, None)
            node.replace_input_with(2, None)
    RemoveUnusedNodesPass()(program)


def _unshaped(value: Any) -> Any:
    """The value that a chain of Reshapes began with, where its shape is the same: [batch, n, heads * width]."""
    first = value
    while first.producer() is not None and first.producer().op_type == "Reshape":
        first = first.producer().inputs[0]
    return first if _alike(first, value) else value


def _skip_reshapes(value: Any) -> None:
    """Whoever takes `value` through Reshapes that end in its own shape takes it as it is."""
    last = value
    while len(uses := list(last.uses())) == 1 and uses[0].node.op_type == "Reshape":
        last = uses[0].node.outputs[0]
    if last is not value and _alike(last, value):
        for use in list(last.uses()):
            use.node.replace_input_with(use.idx, value)


def _alike(a: Any, b: Any) -> bool:
    ranked = a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape) == 3
    return ranked and isinstance(a.shape[2], int) and a.shape[2] == b.shape[2]
