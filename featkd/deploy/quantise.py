"""Smaller weights: fp16, int8 and int4 copies of an exported model, made from its float32 graphs.

fp16: weights, activations and KV cache, for accelerators: a processor computes in float32 and casts. It has no
generate.onnx, which is for processors.
int8: weights per channel and activations per tensor, quantised as they come (ONNX Runtime's dynamic quantisation).
Weights keep 7 bits: processors without VNNI add products of 8 bits with saturation (onnxruntime.ai/docs/performance/
model-optimizations/quantization.html), and a shipped model should not depend on who runs it.
int4: weights alone, in blocks of 32 with a scale each (MatMulNBits), multiplied by activations of 8 bits; embeddings
keep 8 bits, for they are looked up, not summed over.
"""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from featkd.deploy import parity
from featkd.deploy.export import WEIGHTS, load, reason
from featkd.deploy.graphs import save_beside
from featkd.deploy.session import FILE, GENERATING
from featkd.errors import RunError
from featkd.result import Parity

BLOCK = 32


def quantise(
    source: Path,
    model_dir: Path,
    out: Path,
    precision: Literal["fp16", "int8", "int4"],
    probe: list[list[int]],
    threads: int,
) -> Parity:
    """Quantise an exported folder and compare it with PyTorch.

    Args:
        source: the float32 ONNX folder; model_dir: the Hugging Face folder it was made from.
        out: folder to fill, with the same files as `source`, but for fp16 without generate.onnx.
        probe, threads: as in featkd.deploy.export.export.

    Returns result.Parity without a tolerance: it passes where its logits are numbers; what the loss means is for the
    gates to say, on tasks. Raises RunError when a graph cannot be quantised.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in Path(source).iterdir():
        if not file.name.startswith((FILE, GENERATING)):
            shutil.copyfile(file, out / file.name)
    try:
        with _quiet():
            _save_quantised(Path(source), out, precision)
    except Exception as error:
        raise RunError(f"{source} cannot be quantised to {precision}: {reason(error)}") from error
    return parity.check(load(Path(model_dir)), out, probe, None, threads)


def _save_quantised(source: Path, out: Path, precision: str) -> None:
    import onnx_ir

    make = {"fp16": _float16, "int8": _int8, "int4": _int4}[precision]
    onnx_ir.save(make(_with_constant_weights(source / FILE)), str(out / FILE), external_data=WEIGHTS)
    if precision != "fp16" and (source / GENERATING).is_file():
        save_beside(make(_with_constant_weights(source / GENERATING)), out / FILE, out / GENERATING)


def _with_constant_weights(path: Path) -> Any:
    """The onnx.ModelProto, weights that are transposed on the way (the head of tied embeddings) as constants."""
    import numpy as np
    import onnx_ir

    from featkd.deploy.graphs import constant

    program = onnx_ir.load(str(path))
    for node in [node for node in program.graph if node.op_type == "Transpose"]:
        weight = node.inputs[0].const_value
        if weight is not None:
            array = np.ascontiguousarray(weight.numpy().transpose(node.attributes.get_ints("perm")))
            node.outputs[0].replace_all_uses_with(constant(program.graph, f"{node.inputs[0].name}_transposed", array))
            program.graph.remove(node, safe=True)
    return onnx_ir.to_proto(onnx_ir.external_data.load_to_model(program))


def _float16(proto: Any) -> Any:
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return onnx_ir.from_proto(convert_float_to_float16(proto, disable_shape_infer=True))


def _int8(proto: Any) -> Any:
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            proto,
            f"{folder}/{FILE}",
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        return onnx_ir.external_data.load_to_model(onnx_ir.load(f"{folder}/{FILE}"))


def _int4(proto: Any) -> Any:
    import onnx_ir
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for bits, kinds in ((8, ("Gather",)), (4, ("MatMul",))):
        quantizer = MatMulNBitsQuantizer(
            proto, bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=4, op_types_to_quantize=kinds
        )
        quantizer.process()
        proto = quantizer.model.model
    return onnx_ir.from_proto(proto)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers log every node."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
