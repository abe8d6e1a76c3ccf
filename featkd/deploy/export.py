"""A Hugging Face folder in, an ONNX folder out that opens with plain onnxruntime.

Two graphs on one copy of the weights. model.onnx takes any batch, padding and past: accuracy is measured with it, and
it generates where the other cannot. generate.onnx (fused.py) is several times faster from token to token. Inputs of
both: input_ids, attention_mask, logits_to_keep (which positions get logits: a prompt needs one, and the head is a
large part of a small model), and the KV cache, `input.past_key_values.layers.N.keys` and `.values`, whose successors
are the outputs `output.past_...`; model.onnx also takes position_ids.

The only file that knows `transformers.exporters`, which is experimental and changes between versions.
"""

import contextlib
import functools
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featkd.deploy import fused, parity, template
from featkd.deploy.graphs import kept_logits, pack_projections, save_beside
from featkd.deploy.session import FILE, GENERATING, PAST, PRESENT
from featkd.errors import InputError, RunError
from featkd.result import Parity

WEIGHTS = FILE + ".data"
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
          "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
          "chat_template.jinja")  # fmt: skip


def export(
    model_dir: Path, out: Path, probe: list[list[int]], tolerance: float, threads: int, graphs: Path | None = None
) -> Parity:
    """Export a causal LM in float32 and compare it with PyTorch (featkd.deploy.parity.check).

    Args:
        model_dir: a folder with config.json, safetensors and the tokenizer.
        out: folder to fill: model.onnx, model.onnx.data, config and tokenizer files.
        probe: token ids of held-out texts, one list per text.
        tolerance: largest |logit difference| that passes.
        threads: CPU threads of the parity check.
        graphs: a folder that keeps the graph of each shape met. Tracing takes seconds per model, filling a known
            graph with other weights milliseconds; sizes and arms of a PoC share a few shapes.

    Returns result.Parity; a failed one is returned, not raised. It tells which graph generates: the fused one is left
    out, with the reason, where it cannot be made or differs from PyTorch.
    Raises InputError (no model there) and RunError (it does not load, the exporter cannot do it), one line each.
    """
    model = load(Path(model_dir))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet():
            program = template.program(model, _trace, graphs, "general")
            _save(program, out)
    except Exception as error:
        raise RunError(f"{model_dir} cannot be exported to ONNX: {reason(error)}") from error
    for name in COPIED:
        if (Path(model_dir) / name).is_file():
            shutil.copyfile(Path(model_dir) / name, out / name)
    why = _fused(model, out, probe, tolerance, threads, graphs)
    return parity.check(model, out, probe, tolerance, threads).model_copy(update={"general_why": why})


def _fused(
    model: Any, out: Path, probe: list[list[int]], tolerance: float, threads: int, graphs: Path | None
) -> str | None:
    """Write generate.onnx; return why not. Rotated by the op if that is right, else by the model's own nodes."""
    import onnx_ir

    general = onnx_ir.load(str(out / FILE)).graph
    past = {value.name: tuple(map(_size, value.shape)) for value in general.inputs if value.name.startswith(PAST)}
    why = ""
    for inside in (True, False):
        _remove(out)  # what another attempt left
        trace = functools.partial(fused.trace, past={n: (s[1], s[3]) for n, s in past.items()}, rotary_inside=inside)
        try:
            with _quiet():
                program = template.program(model, trace, graphs, f"fused, rotary inside: {inside}")
                save_beside(program, out / FILE, out / GENERATING)
            worst = max(parity.generation(model, out, probe, threads).values())
        except Exception as error:
            why = why or reason(error)
            continue
        if worst <= tolerance:
            return None
        why = why or f"its logits differ by {worst:.1e}"
    _remove(out)
    return why


def _remove(out: Path) -> None:
    for file in out.glob(f"{GENERATING}*"):
        file.unlink()


def _size(dimension: Any) -> int:
    """Of a cache's axis; -1 for those that grow. The exporter writes known sizes as numbers or as text."""
    return int(str(dimension)) if str(dimension).isdigit() else -1


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json: give a folder with a causal LM")
    try:
        with _quiet():
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except Exception as error:
        raise RunError(f"{folder} does not load: {reason(error)}") from error


def _trace(model: Any) -> Any:
    """The onnx_ir.Model of a transformers causal LM, weights included."""
    import torch
    from transformers import GenerationConfig
    from transformers.exporters import OnnxConfig, OnnxExporter
    from transformers.exporters.exporter_dynamo import get_auto_dynamic_shapes
    from transformers.exporters.utils import decompose_for_generation

    # padding in the sample: without it attention_mask is pruned from the graph
    sample = {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    sample["attention_mask"][0, :3] = 0
    greedy = GenerationConfig(do_sample=False, pad_token_id=0, use_cache=True)
    # `export_for_generation` would trace the redundant prefill graph as well, at the same price
    stages = decompose_for_generation(model, sample, generation_config=greedy, multi_token_decode=True)
    module, inputs = stages["decode"]
    inputs["logits_to_keep"] = torch.tensor([0, 1])
    auto = torch.export.Dim.AUTO
    shapes = get_auto_dynamic_shapes({key: value for key, value in inputs.items() if not isinstance(value, bool)})
    shapes["past_key_values"] = [{axis: auto for axis in (0, 2) if axis in leaf} for leaf in shapes["past_key_values"]]
    # no ort_fusions: ONNX Runtime fuses a plain graph as well when it loads it (same speed within 2 % on a 7M Llama
    # shape), the trace takes a third less time, and the file stays portable
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
    with kept_logits(module):
        exported = OnnxExporter().export(module, inputs, config)
    _freeze_window(exported.program.graph, inputs["past_key_values"])
    pack_projections(exported.program)
    names = [value.name for value in exported.program.graph.inputs]
    missing = {"input_ids", "attention_mask", "logits_to_keep"} - set(names)
    if missing or not any("past_key_values" in name for name in names):
        raise RunError(f"the exported graph lost its inputs {', '.join(sorted(missing)) or 'past_key_values'}")
    return exported.program


def _freeze_window(graph: Any, cache: Any) -> None:
    """The caches of sliding-window models hold the window's length as a tensor: a constant, not a state to pass on."""
    import onnx_ir

    for value in [value for value in graph.inputs if value.name.startswith(PAST) and not value.shape]:
        path = value.name.removeprefix(PAST)
        layer, attribute = path.removeprefix("past_key_values.layers.").split(".", 1)
        if attribute != "_sliding_window_tensor":
            raise RunError(f"the model keeps a state beside keys and values: {path}")
        graph.outputs.remove(next(output for output in graph.outputs if output.name == PRESENT + path))
        graph.inputs.remove(value)
        window = getattr(cache.layers[int(layer)], attribute)
        value.const_value = onnx_ir.tensor(window.numpy(), name=value.name)
        graph.register_initializer(value)


def _save(program: Any, out: Path) -> None:
    import onnx_ir

    onnx_ir.save(program, str(out / FILE), external_data=WEIGHTS)


def reason(error: BaseException) -> str:
    """The innermost cause's first line: the exporter wraps what went wrong several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter, torch.onnx and onnxscript print progress, warn and log at length; errors are raised anyway."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    disabled = logging.root.manager.disable
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
