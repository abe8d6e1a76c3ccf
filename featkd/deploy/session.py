"""One exported causal LM on ONNX Runtime: logits of batches, from a past or from nothing.

    model = OnnxModel(folder, threads=2, device="cpu")
    logits = model.logits(input_ids, attention_mask)

Generation is in generate.py. Both import onnxruntime and numpy alone, so that a process that measures them starts fast
and small.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featkd.errors import InputError, RunError

FILE, GENERATING = "model.onnx", "generate.onnx"
Cache = list[np.ndarray]
PAST, PRESENT = "input.", "output."
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Description:
    """What an ONNX folder says of its model."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / FILE).is_file():
            raise InputError(f"{folder} holds no {FILE}: give a folder that featkd exported")
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.end_tokens = _end_tokens(self.folder, self.config)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model was built for, tokens; None where its config names none."""
        text = self.config.get("text_config") or self.config
        return next((text[key] for key in ("max_position_embeddings", "n_positions", "n_ctx") if text.get(key)), None)

    def check_length(self, n: int) -> None:
        """Raises InputError when a sequence of `n` tokens does not fit."""
        if self.max_positions and n > self.max_positions:
            raise InputError(f"a sequence of {n} tokens is longer than the model's {self.max_positions} positions")


class OnnxModel(Description):
    """The graph for any batch, padding and past (model.onnx), opened for inference.

    Args:
        folder: holds model.onnx, model.onnx.data and config.json.
        threads: CPU threads of one operator; always set, for ONNX Runtime counts the machine's cores, not ours.
        device: "cpu" or "cuda". There is no silent fall-back: InputError if the provider is not there.
        spin: threads wait busily for the next operator, which spares microseconds; not where others work in between.

    Raises InputError (no such folder or provider) and RunError (the file does not load).
    """

    def __init__(self, folder: Path, threads: int, device: Literal["cpu", "cuda"] = "cpu", spin: bool = True):
        super().__init__(folder)
        self.threads, self.device = threads, device
        self.session = open_session(self.folder / FILE, threads, device, spin)
        self.provider = self.session.get_providers()[0]
        inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = [value.name for value in self.session.get_outputs()]
        self._takes = set(inputs)
        self.present = [name for name in outputs if name.startswith(PRESENT)]
        self.past = [PAST + name.removeprefix(PRESENT) for name in self.present]
        self._past_shapes = {name: inputs[name].shape for name in self.past}
        self._dtypes = {name: np.float16 if "float16" in inputs[name].type else np.float32 for name in self.past}
        self.vocab_size = self.session.get_outputs()[outputs.index("logits")].shape[-1]

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray, keep: int | None = None) -> np.ndarray:
        """Logits of a padded batch.

        Args:
            input_ids: [batch, n] integers; padding may stand left or right, its ids do not matter.
            attention_mask: [batch, n], 1 for tokens, 0 for padding.
            keep: logits of the last `keep` positions only, which spares the head's work on the others.

        Returns float32 [batch, keep or n, vocab]. Rows under padding hold no meaning.
        Raises InputError when a text is longer than the model's positions.
        """
        return self._run(["logits"], input_ids, attention_mask, keep, None)[0]

    def extend(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, keep: int | None = None, past: Cache | None = None
    ) -> tuple[np.ndarray, Cache]:
        """The same from a past, for texts that share a beginning.

        Args:
            input_ids: [batch, n] new tokens.
            attention_mask: [batch, past + n].
            past: what an earlier call returned, its rows picked as wanted; None for an empty past.

        Returns (logits as above, cache: one array [batch, heads, past + n, width] per layer and kind).
        """
        logits, *present = self._run(["logits", *self.present], input_ids, attention_mask, keep, past)
        return logits, present

    def _run(
        self, outputs: list[str], input_ids: np.ndarray, mask: np.ndarray, keep: int | None, past: Cache | None
    ) -> list[np.ndarray]:
        batch, n = input_ids.shape
        self.check_length(int(mask.sum(axis=1).max()))  # padding takes no position
        feed = self.feed(input_ids, mask, n if keep is None else keep)
        if past is None:
            past = self.empty_past(batch)
        feed.update(zip(self.past, past, strict=True))
        with one_line_errors():
            logits, *rest = self.session.run(outputs, feed)
        return [logits.astype(np.float32, copy=False), *rest]

    def feed(self, input_ids: np.ndarray, attention_mask: np.ndarray, keep: int) -> dict[str, np.ndarray]:
        """What the graph takes beside its past; see `extend`."""
        n = input_ids.shape[1]
        feed = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions(attention_mask)[:, -n:],
            "logits_to_keep": np.arange(n - keep, n),
        }
        return {name: np.ascontiguousarray(value, np.int64) for name, value in feed.items() if name in self._takes}

    def empty_past(self, batch: int) -> Cache:
        return [
            np.zeros((batch, int(self._past_shapes[name][1]), 0, int(self._past_shapes[name][3])), self._dtypes[name])
            for name in self.past
        ]


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RunError(f"ONNX Runtime failed: {' '.join(str(error).split())[:300]}") from error


def _end_tokens(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    """The tokens that end a generation, by generation_config.json; without one by the model's config."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else config.get("text_config") or config
    ids = generation.get("eos_token_id")
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def positions(attention_mask: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(attention_mask, axis=1) - 1, 0)


def open_session(path: Path, threads: int, device: str, spin: bool = True) -> Any:
    import onnxruntime

    wanted = PROVIDERS.get(device)
    if wanted not in onnxruntime.get_available_providers():
        raise InputError(f"compute.device: this onnxruntime has no provider for {device!r}; write cpu")
    if device == "cuda":
        onnxruntime.preload_dlls()
    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:
        raise RunError(f"{path} does not load in ONNX Runtime: {' '.join(str(error).split())[:300]}") from error
    if session.get_providers()[0] != wanted:
        raise RunError(f"ONNX Runtime fell back to {session.get_providers()[0]}; {wanted} was asked for")
    return session
