"""What both graphs of a model have in common: chosen logits, packed projections, and one copy of the weights."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def kept_logits(model: Any) -> Iterator[None]:
    """Give forward an input `logits_to_keep` [k] of positions, selected just before the output head.

    The models' own argument of this name indexes with a tensor, and the fused graph of that does not run.
    """
    head, forward, kept = model.get_output_embeddings(), model.forward, []

    def forward_kept(logits_to_keep: Any, **inputs: Any) -> Any:
        kept.append(logits_to_keep)
        return forward(**inputs)

    hook = head.register_forward_pre_hook(lambda module, args: (args[0].index_select(1, kept[-1]),))
    model.forward = forward_kept
    try:
        yield
    finally:
        hook.remove()
        del model.forward


def pack_projections(program: Any) -> None:
    """Three products of one value (queries, keys, values) as one, then split: small models are made of node overhead.

    Changes the onnx_ir.Model in place.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    siblings: dict[int, list[Any]] = {}
    for node in program.graph:
        if node.op_type == "MatMul" and node.inputs[1].const_value is not None:
            siblings.setdefault(id(node.inputs[0]), []).append(node)
    for number, products in enumerate(group for group in siblings.values() if len(group) == 3):
        weights = [node.inputs[1].const_value.numpy() for node in products]
        if any(array.ndim != 2 for array in weights):
            continue
        packed = constant(program.graph, f"packed_{number}", np.concatenate(weights, axis=1))
        sizes = constant(program.graph, f"packed_{number}_sizes", np.array([array.shape[1] for array in weights]))
        product = onnx_ir.node("MatMul", [products[0].inputs[0], packed])
        split = onnx_ir.node("Split", [product.outputs[0], sizes], {"axis": -1}, num_outputs=3)
        program.graph.insert_before(products[0], [product, split])
        for node, part in zip(products, split.outputs, strict=True):
            old = node.outputs[0]
            part.name, part.shape, part.dtype = old.name, old.shape, old.dtype
            old.replace_all_uses_with(part)
        program.graph.remove(products, safe=True)
    RemoveUnusedNodesPass()(program)


def constant(graph: Any, name: str, array: np.ndarray) -> Any:
    """An initializer of a graph."""
    import onnx_ir

    tensor = onnx_ir.tensor(array, name=name)
    kind = onnx_ir.TensorType(tensor.dtype)
    value = onnx_ir.Value(name=name, type=kind, shape=onnx_ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def save_beside(program: Any, other: Path, path: Path) -> None:
    """Save a graph that takes its weights from the data file of `other`, saved before, where they are the same.

    What is not there goes into a data file of its own, if it is much.
    """
    import onnx_ir

    there = {}
    for value in onnx_ir.load(str(other)).graph.initializers.values():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            there[_digest(value.const_value)] = value.const_value
    own = []
    for name, value in program.graph.initializers.items():
        same = there.get(_digest(value.const_value))
        if same is not None:
            value.const_value = onnx_ir.ExternalTensor(
                same.location, same.offset, same.length, same.dtype, shape=same.shape, name=name, base_dir=same.base_dir
            )
        elif value.const_value.nbytes > 1024:
            own.append(value)
    if own:
        tensors = onnx_ir.external_data.convert_tensors_to_external(
            [value.const_value for value in own], base_dir=path.parent, relative_path=path.name + ".data"
        )
        for value, tensor in zip(own, tensors, strict=True):
            value.const_value = tensor
    onnx_ir.save(program, str(path))


def _digest(tensor: Any) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
