"""The graph of a model depends on its shape, not on its weights: trace a shape once, fill it for each model.

A template is made with random weights, so that every parameter can be recognised by its values in the graph the
exporter leaves (it transposes some, and projections are packed), and no optimisation depends on a value such as a
norm's weight of one.
Whatever cannot be recognised whole is traced with its own weights instead; parity is checked either way.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featkd.spec import digest


def program(model: Any, trace: Callable[[Any], Any], graphs: Path | None, kind: str) -> Any:
    """The onnx_ir.Model of `model` with its weights, from the template of its shape in `graphs`, made if absent.

    kind: tells traces apart. Without a folder the model is traced as it is.
    """
    import onnx_ir

    if graphs is None:
        return trace(model)
    folder = graphs / _shape_digest(model, kind)
    if not (folder / "weights.json").is_file():
        _make(model, trace, folder)
    places = json.loads((folder / "weights.json").read_text())
    if not places:
        return trace(model)
    filled = onnx_ir.load(str(folder / "graph.onnx"))
    state = {name: value.detach().numpy() for name, value in model.named_parameters()}
    for name, parts in places.items():
        arrays = [state[parameter].T if transposed else state[parameter] for parameter, transposed in parts]
        array = np.ascontiguousarray(np.concatenate(arrays, axis=-1))
        filled.graph.initializers[name].const_value = onnx_ir.tensor(array, name=name)
    return filled


def _shape_digest(model: Any, kind: str) -> str:
    """Digest of what decides the graph: config (names and versions apart), parameter shapes, ties, library versions."""
    import onnxscript
    import torch
    import transformers

    config = {key: value for key, value in model.config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    source = "".join(file.read_text() for file in sorted(Path(__file__).parent.glob("*.py")))
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    versions = [torch.__version__, transformers.__version__, onnxscript.__version__]
    plain = json.loads(json.dumps(config, default=str))
    return digest([plain, type(model).__name__, shapes, versions, source, kind])[:20]


def _make(model: Any, trace: Callable[[Any], Any], folder: Path) -> None:
    """Trace with random weights and save graph and map; an empty map if it is not whole."""
    import onnx_ir
    import torch

    parameters = dict(model.named_parameters())
    if any(value.is_floating_point() for name, value in model.state_dict().items() if _is_buffer(model, name)):
        return _write_map({}, folder)
    own = {name: value.detach().clone() for name, value in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for value in parameters.values():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
            graph = trace(model)
            places = _places(graph, parameters)
    finally:
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(own[name])
    if {parameter for parts in places.values() for parameter, _ in parts} != set(parameters):
        return _write_map({}, folder)
    for name in places:  # the graph is kept without weights
        initializer = graph.graph.initializers[name]
        dtype, shape = initializer.dtype, initializer.shape
        initializer.const_value = onnx_ir.tensor(np.zeros(0, np.float32), name=name)
        initializer.dtype, initializer.shape = dtype, shape
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"graph.{os.getpid()}.onnx"
    onnx_ir.save(graph, str(aside))
    aside.replace(folder / "graph.onnx")
    _write_map(places, folder)


def _write_map(places: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"weights.{os.getpid()}.json"
    aside.write_text(json.dumps(places))
    aside.replace(folder / "weights.json")


def _is_buffer(model: Any, name: str) -> bool:
    return any(name == buffer for buffer, _ in model.named_buffers())


Part = tuple[str, bool]  # parameter, transposed


def _places(graph: Any, parameters: dict[str, Any]) -> dict[str, list[Part]]:
    """Initializer name to the parameters it is made of, side by side (q, k and v are packed into one matrix)."""
    known: dict[bytes, list[tuple[np.ndarray, Part]]] = {}
    for name, value in parameters.items():
        array = value.detach().numpy()
        for part in [(name, False), (name, True)] if array.ndim == 2 else [(name, False)]:
            turned = array.T if part[1] else array
            known.setdefault(_edge(turned, 0), []).append((turned, part))
    found = {}
    for name, initializer in graph.graph.initializers.items():
        if initializer.const_value is not None and initializer.const_value.size > 1:
            if parts := _parts(initializer.const_value.numpy(), known):
                found[name] = parts
    return found


def _parts(array: np.ndarray, known: dict[bytes, list[tuple[np.ndarray, Part]]]) -> list[Part]:
    """The parameters whose concatenation along the last axis is `array`; empty if there are none."""
    parts, column = [], 0
    while column < array.shape[-1]:
        for candidate, part in known.get(_edge(array, column), []):
            end = column + candidate.shape[-1]
            if np.array_equal(candidate, array[..., column:end]):
                parts.append(part)
                column = end
                break
        else:
            return []
    return parts


def _edge(array: np.ndarray, column: int) -> bytes:
    """What a parameter is looked up by: its first column."""
    return np.ascontiguousarray(array[..., column]).tobytes()
