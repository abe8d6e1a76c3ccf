"""Text from an exported model: greedy or sampled, of one prompt or several, token by token.

    generator = Generator(folder, threads=2)
    tokens = generator.generate(prompt_ids, new_tokens=64)
    for token in generator.stream(prompt_ids, 64, Sampling(temperature=0.8, top_p=0.95)): ...

It opens one graph: the one made for generation (generate.onnx, see fused.py) on the CPU, else the general one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from featkd.deploy.session import GENERATING, PAST, PRESENT, Description, OnnxModel, one_line_errors, open_session
from featkd.errors import InputError


class Sampling(NamedTuple):
    """How a token is drawn from the logits. temperature 0: the likeliest. top_k 0: all. top_p: nucleus (arXiv
    1904.09751). Rows draw from one generator, so a seed gives the same texts for the same prompts."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


class Generator(Description):
    """An ONNX folder opened for generation.

    Args: as OnnxModel. graph: which graph to open; None for the one made for generation where there is one.
    Raises InputError (no such folder or provider) and RunError (the file does not load).
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        device: Literal["cpu", "cuda"] = "cpu",
        graph: Literal["fused", "general"] | None = None,
    ):
        super().__init__(folder)
        there = device == "cpu" and (self.folder / GENERATING).is_file()
        self.graph = graph or ("fused" if there else "general")
        self.threads = threads
        self._steps = _Fused(self.folder, threads) if self.graph == "fused" else _General(self.folder, threads, device)
        self.provider = self._steps.session.get_providers()[0]
        self.cache_bytes_per_token = _cache_bytes(self._steps.session)

    def generate(self, prompt_ids: list[int], new_tokens: int) -> list[int]:
        """Greedy continuation of one prompt [new_tokens]; the end token is ignored, so every model does the same work.

        Raises InputError when prompt and new tokens do not fit into the model's positions.
        """
        return list(self.stream(prompt_ids, new_tokens))

    def stream(self, prompt_ids: list[int], new_tokens: int, sampling: Sampling = GREEDY) -> Iterator[int]:
        """The tokens of one continuation as they are made; leave the loop to stop early. Raises as `generate`."""
        return (tokens[0] for tokens in self.batch([prompt_ids], new_tokens, sampling))

    def batch(self, prompts: list[list[int]], new_tokens: int, sampling: Sampling = GREEDY) -> Iterator[list[int]]:
        """Several continuations side by side: each time the next token of every prompt. Lengths may differ."""
        if not prompts or not all(prompts) or new_tokens < 1:
            raise InputError("generation needs prompts of at least one token and new_tokens of at least 1")
        self.check_length(max(map(len, prompts)) + new_tokens - 1)
        draw = _drawer(sampling)
        tokens = draw(self._steps.start(prompts, new_tokens - 1))
        yield tokens
        for _ in range(new_tokens - 1):
            tokens = draw(self._steps.next(tokens))
            yield tokens

    def forced(self, texts: list[list[int]], firsts: list[int]) -> list[np.ndarray]:
        """Logits of given texts side by side, the first tokens of each as a prompt, the others one by one.

        Returns of each text [n - first + 1, vocab]: after the prompt and after each further token. For parity checks.
        """
        room = max(len(text) - first for text, first in zip(texts, firsts, strict=True))
        logits = [self._steps.start([text[:first] for text, first in zip(texts, firsts, strict=True)], room).copy()]
        for step in range(room):
            tokens = [(text[first:] + [0] * room)[step] for text, first in zip(texts, firsts, strict=True)]
            logits.append(self._steps.next(tokens).copy())
        return [
            np.stack([step[row] for step in logits[: len(text) - first + 1]]).astype(np.float32)
            for row, (text, first) in enumerate(zip(texts, firsts, strict=True))
        ]


class _Fused:
    """The cache is a buffer with room for all tokens, which each step reads and extends in place.

    So is the mask: ones as far as a text goes. A step of a small model takes a fifth of a millisecond, so everything
    is bound once, and no more than two numbers per row change from step to step.
    """

    def __init__(self, folder: Path, threads: int):
        self.session = open_session(folder / GENERATING, threads, "cpu")
        inputs = {value.name: value for value in self.session.get_inputs()}
        self._past = [name for name in inputs if name.startswith(PAST)]
        self._sizes = [(int(inputs[name].shape[1]), int(inputs[name].shape[3])) for name in self._past]
        outputs = {value.name: value.shape for value in self.session.get_outputs()}
        self._vocab = int(outputs["logits"][-1])

    def start(self, prompts: list[list[int]], room: int) -> np.ndarray:
        """[batch, vocab] after the prompts, with room for `room` tokens more."""
        self._lengths = [len(prompt) for prompt in prompts]
        self._limit = max(self._lengths) + room
        self._cache = [np.zeros((len(prompts), heads, self._limit, width), np.float32) for heads, width in self._sizes]
        self._logits = np.empty((len(prompts), 1, self._vocab), np.float32)
        self._mask = np.zeros((len(prompts), self._limit), np.int64)
        for row, prompt in enumerate(prompts):  # each alone: nothing is padded
            self._mask[row, : len(prompt)] = 1
            mask = np.ones((1, len(prompt)), np.int64)
            self._run(self._bound(row, row + 1, np.array([prompt], np.int64), mask, len(prompt) - 1))
        self._ids = np.zeros((len(prompts), 1), np.int64)
        self._step = self._bound(0, len(prompts), self._ids, self._mask, 0)
        self._read = self._logits[:, 0]
        return self._read

    def next(self, tokens: list[int]) -> np.ndarray:
        """[batch, vocab] after one token more of each row; the array is used again."""
        for row, token in enumerate(tokens):
            self._ids[row, 0] = token
            self._mask[row, self._lengths[row]] = 1
            self._lengths[row] += 1
        self._run(self._step)
        return self._read

    def _bound(self, first: int, last: int, ids: np.ndarray, mask: np.ndarray, keep: int) -> Any:
        """The graph bound to rows of the cache and of the logits."""
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_cpu_input("logits_to_keep", np.array([keep], np.int64))
        logits = self._logits[first:last]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for name, buffer in zip(self._past, self._cache, strict=True):
            rows = buffer[first:last]
            binding.bind_input(name, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
            present = PRESENT + name.removeprefix(PAST)
            binding.bind_output(present, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        return binding

    def _run(self, binding: Any) -> None:
        with one_line_errors():
            self.session.run_with_iobinding(binding)


class _General:
    """Prompts padded on the left; the cache grows, in ONNX Runtime's own memory on the device."""

    def __init__(self, folder: Path, threads: int, device: Literal["cpu", "cuda"]):
        import onnxruntime

        self._model = OnnxModel(folder, threads, device)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.session = self._model.session

    def start(self, prompts: list[list[int]], room: int) -> np.ndarray:
        longest = max(map(len, prompts))
        ids = np.array([[0] * (longest - len(prompt)) + prompt for prompt in prompts], np.int64)
        self._mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], np.int64)
        self._past = [self._value(array, self._model.device, 0) for array in self._model.empty_past(len(prompts))]
        return self._forward(ids)

    def next(self, tokens: list[int]) -> np.ndarray:
        self._mask = np.pad(self._mask, ((0, 0), (0, 1)), constant_values=1)
        return self._forward(np.array(tokens, np.int64)[:, None])

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        binding = self.session.io_binding()
        for name, value in self._model.feed(ids, self._mask, keep=1).items():
            binding.bind_cpu_input(name, value)
        for name, value in zip(self._model.past, self._past, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name in self._model.present:
            binding.bind_output(name, self._model.device)
        with one_line_errors():
            self.session.run_with_iobinding(binding)
        logits, *self._past = binding.get_outputs()
        return logits.numpy()[:, -1]


def _cache_bytes(session: Any) -> int:
    """What a token of one text takes in the KV cache: keys and values of all layers."""
    past = [value for value in session.get_inputs() if value.name.startswith(PAST)]
    return sum(value.shape[1] * value.shape[3] * (2 if "float16" in value.type else 4) for value in past)


def _drawer(sampling: Sampling) -> Any:
    """From logits [batch, vocab] to a token of each row."""
    if sampling.temperature == 0:
        return lambda logits: logits.argmax(-1).tolist()
    random = np.random.default_rng(sampling.seed)

    def draw(row: np.ndarray) -> int:
        order = np.argsort(-row)[: sampling.top_k or None]
        scaled = row[order].astype(np.float64) / sampling.temperature
        shares = np.exp(scaled - scaled[0])
        shares /= shares.sum()
        kept = int(np.searchsorted(shares.cumsum(), sampling.top_p)) + 1  # the fewest that make up top_p
        shares = shares[:kept] / shares[:kept].sum()
        return int(order[random.choice(len(shares), p=shares)])

    return lambda logits: [draw(row) for row in logits]
