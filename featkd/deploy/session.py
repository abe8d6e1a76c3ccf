"""One exported causal LM on ONNX Runtime: batched logits, and greedy generation with a KV cache.

    model = OnnxModel(folder, threads=2, device="cpu")
    logits = model.logits(input_ids, attention_mask)
    tokens, ttft_s, decode_s = model.generate(prompt_ids, new_tokens=64)

Imports onnxruntime and numpy alone, so that a process that measures it starts fast and small.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featkd.errors import InputError, RunError

FILE = "model.onnx"
Cache = list[np.ndarray]
PAST, PRESENT = "input.", "output."
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxModel:
    """An ONNX folder opened for inference.

    Args:
        folder: holds model.onnx, model.onnx.data and config.json.
        threads: CPU threads of one operator; always set, for ONNX Runtime counts the machine's cores, not ours.
        device: "cpu" or "cuda". There is no silent fall-back: InputError if the provider is not there.

    Raises InputError (no such folder or provider) and RunError (the file does not load).
    """

    def __init__(self, folder: Path, threads: int, device: Literal["cpu", "cuda"] = "cpu"):
        import onnxruntime

        folder = Path(folder)
        if not (folder / FILE).is_file():
            raise InputError(f"{folder} holds no {FILE}: give a folder that featkd exported")
        self._runtime = onnxruntime
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.end_tokens = _end_tokens(folder, self.config)
        self.threads, self.device = threads, device
        self.session = _open(folder / FILE, threads, device)
        self.provider = self.session.get_providers()[0]
        inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = [value.name for value in self.session.get_outputs()]
        self._takes = set(inputs)
        self._present = [name for name in outputs if name.startswith(PRESENT)]
        self._past = [PAST + name.removeprefix(PRESENT) for name in self._present]
        self._past_shapes = {name: inputs[name].shape for name in self._past}
        self._dtypes = {name: np.float16 if "float16" in inputs[name].type else np.float32 for name in self._past}
        self.vocab_size = self.session.get_outputs()[outputs.index("logits")].shape[-1]

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model was built for, tokens; None where its config names none."""
        text = self.config.get("text_config") or self.config
        return next((text[key] for key in ("max_position_embeddings", "n_positions", "n_ctx") if text.get(key)), None)

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
        logits, *present = self._run(["logits", *self._present], input_ids, attention_mask, keep, past)
        return logits, present

    def _run(
        self, outputs: list[str], input_ids: np.ndarray, mask: np.ndarray, keep: int | None, past: Cache | None
    ) -> list[np.ndarray]:
        batch, n = input_ids.shape
        self._check_length(int(mask.sum(axis=1).max()))  # padding takes no position
        feed = self._feed(input_ids, mask, _positions(mask)[:, -n:], n if keep is None else keep)
        if past is None:
            past = [self._empty(name, batch) for name in self._past]
        feed.update(zip(self._past, past, strict=True))
        with _one_line_errors():
            logits, *rest = self.session.run(outputs, feed)
        return [logits.astype(np.float32, copy=False), *rest]

    def generate(self, prompt_ids: list[int], new_tokens: int) -> tuple[list[int], float, float]:
        """Greedy continuation of one prompt; the end token is ignored, so every model does the same work.

        Returns (tokens [new_tokens], ttft_s, decode_s): seconds from the call to the first token, prompt already
        tokenised, and seconds for the other new_tokens - 1.
        Raises InputError when prompt and new tokens do not fit into the model's positions.
        """
        start = time.perf_counter()
        stream = self.stream(prompt_ids, new_tokens)
        tokens = [next(stream)]
        first = time.perf_counter()
        tokens.extend(stream)
        return tokens, first - start, time.perf_counter() - first

    def stream(self, prompt_ids: list[int], new_tokens: int) -> Iterator[int]:
        """The tokens of `generate`, one by one as they are made; leave the loop to stop early. Raises as it does."""
        if not prompt_ids or new_tokens < 1:
            raise InputError("generate needs a prompt of at least one token and new_tokens of at least 1")
        self._check_length(len(prompt_ids) + new_tokens - 1)
        mask = np.ones((1, len(prompt_ids) + new_tokens), np.int64)
        ids = np.array([prompt_ids], np.int64)
        past = [self._on_device(self._empty(name, 1)) for name in self._past]
        seen = 0
        for _ in range(new_tokens):
            n = ids.shape[1]
            positions = np.arange(seen, seen + n, dtype=np.int64)[None]
            seen += n
            logits, past = self._step(self._feed(ids, mask[:, :seen], positions, keep=1), past)
            token = int(logits[0, -1].argmax())
            ids = np.array([[token]], np.int64)
            yield token

    def step_logits(self, prompt_ids: list[int]) -> np.ndarray:
        """Logits of one sequence fed token by token through the KV cache: [n, vocab]. For the parity check."""
        past = [self._on_device(self._empty(name, 1)) for name in self._past]
        rows = []
        for index, token in enumerate(prompt_ids):
            mask = np.ones((1, index + 1), np.int64)
            feed = self._feed(np.array([[token]]), mask, np.array([[index]]), keep=1)
            logits, past = self._step(feed, past)
            rows.append(logits[0, -1])
        return np.stack(rows).astype(np.float32)

    def _step(self, feed: dict[str, np.ndarray], past: list[Any]) -> tuple[np.ndarray, list[Any]]:
        """One forward pass; the cache stays where it is, in ONNX Runtime's own memory."""
        binding = self.session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        for name, value in zip(self._past, past, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name in self._present:
            binding.bind_output(name, self.device)
        with _one_line_errors():
            self.session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        return logits.numpy(), present

    def _feed(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, keep: int
    ) -> dict[str, np.ndarray]:
        n = input_ids.shape[1]
        feed = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "logits_to_keep": np.arange(n - keep, n),
        }
        return {name: np.ascontiguousarray(value, np.int64) for name, value in feed.items() if name in self._takes}

    def _empty(self, name: str, batch: int) -> np.ndarray:
        _, heads, _, width = self._past_shapes[name]
        return np.zeros((batch, int(heads), 0, int(width)), self._dtypes[name])

    def _on_device(self, array: np.ndarray) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array, self.device, 0)

    def _check_length(self, n: int) -> None:
        if self.max_positions and n > self.max_positions:
            raise InputError(f"a sequence of {n} tokens is longer than the model's {self.max_positions} positions")


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
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


def _positions(attention_mask: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(attention_mask, axis=1) - 1, 0)


def _open(path: Path, threads: int, device: str) -> Any:
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
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:
        raise RunError(f"{path} does not load in ONNX Runtime: {' '.join(str(error).split())[:300]}") from error
    if session.get_providers()[0] != wanted:
        raise RunError(f"ONNX Runtime fell back to {session.get_providers()[0]}; {wanted} was asked for")
    return session
