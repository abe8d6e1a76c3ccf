"""lm-eval's model interface over featkd.deploy.session.OnnxModel.

Tokenises as lm-eval's HFLM and agrees with it on the same weights, but for the begin token of whole texts
(loglikelihood_rolling). Faster where requests repeat themselves: a request that was made before is not run again, the
answers of a multiple-choice question share its text, which goes through the model once; and the output head and the
softmax see continuation positions only.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    _add_special_kwargs,
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from featkd.deploy.generate import Generator
from featkd.deploy.session import OnnxModel
from featkd.errors import InputError
from featkd.measure.scoring import Scored, batches, judged_rows, left_pad, right_pad

DEFAULT_MAX_LENGTH = 2048  # as HFLM
MAX_NEW_TOKENS = 256  # as HFLM
Request = tuple[Any, list[int], list[int]]


class OnnxLM(TemplateLM):
    """An exported model for `lm_eval.simple_evaluate(model=OnnxLM(...))`.

    Args:
        model: an open OnnxModel.
        tokenizer: its tokenizer (transformers), with an end or begin token.
        batch_size: sequences per forward pass, at most; see scoring.batches.
    Raises InputError when the tokenizer has neither token.
    """

    def __init__(self, model: OnnxModel, tokenizer: Any, batch_size: int):
        super().__init__()
        from transformers import PretrainedConfig

        if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
            raise InputError("the tokenizer has no end or begin token: set eos_token in tokenizer_config.json")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        config = PretrainedConfig.from_dict(model.config)
        self.max_length = resolve_max_length(config, tokenizer, default=DEFAULT_MAX_LENGTH)
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}  # of the texts that are being asked for
        self.tokens_run = 0  # tokens that went through the model

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self.model.folder, self.model.threads, self.model.device)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @cached_property
    def prefix_token_id(self) -> int:
        return self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @cached_property
    def _prefix(self) -> str:
        return self.tokenizer.decode(self.prefix_token_id)

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids [n] of a text, with the tokenizer's own special tokens unless the text begins with one."""
        known = self._encoded.get((string, add_special_tokens))
        return self._encode([string], add_special_tokens)[0] if known is None else known

    def _encode(self, texts: list[str], add_special_tokens: bool | None) -> list[list[int]]:
        """Of all texts at once, on all threads: one by one they take as long as a small model's answers."""
        bare = [add_special_tokens is None and has_bos_prefix(text, self._prefix) for text in texts]
        special = _add_special_kwargs(add_special_tokens, None)
        found: list[list[int]] = [[] for _ in texts]
        with mock.patch.dict(os.environ, TOKENIZERS_PARALLELISM="true"):
            for without, options in ((False, special), (True, {"add_special_tokens": False})):
                chosen = [index for index, one in enumerate(bare) if one == without]
                if chosen:
                    asked = [texts[index] for index in chosen]
                    ids = self.tokenizer(asked, **options, return_attention_mask=False, verbose=False)["input_ids"]
                    for index, tokens in zip(chosen, ids, strict=True):
                        found[index] = tokens
        return found

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Scored]:
        """(log-likelihood in nats, whether every token is the greedy one) of each answer after its context."""
        pairs = [request.args for request in requests]
        after = {text for context, answer in pairs if context for text in (context + answer, context.rstrip())}
        alone = {answer for context, answer in pairs if not context}
        for texts, special in ((list(after), None), (list(alone), False)):
            self._encoded |= zip([(text, special) for text in texts], self._encode(texts, special), strict=True)
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._encoded = {}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, in disjoint windows of the model's length: [requests].

        A begin token that the tokenizer puts before the text is only the context of the first token. HFLM counts
        it as text, P(begin | begin), which no model learns: one such token can outweigh all the others.
        """
        windows, owners = [], []
        encoded = self._encode([request.args[0] for request in requests], None)
        for owner, tokens in enumerate(encoded):
            prefix = self.prefix_token_id
            if tokens[:1] == [prefix]:
                tokens = tokens[1:]
            rolling = utils.get_rolling_token_windows(tokens, prefix, self.max_length, context_len=1)
            for context, continuation in map(utils.make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (loglikelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += loglikelihood
        return totals

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[Scored]:
        """(log-likelihood in nats, whether every token is the greedy one) of each continuation after its context."""
        results: list[Scored] = [(0.0, False)] * len(requests)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        asked: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if not continuation:
                raise InputError("quality.tasks: an answer has no tokens of its own after its question")
            if asked.setdefault((tuple(context), tuple(continuation)), index) == index:
                groups[tuple(context)].append(index)
        shared, single = [], []
        for context, members in groups.items():
            longest = max(len(requests[index][2]) for index in members)
            several = len(members) > 1 and len(context) + longest - 1 <= self.max_length
            (shared.append(members) if several else single.extend(members))
        self._score_single(requests, single, results)
        self._score_shared(requests, shared, results)
        return [results[asked[tuple(context), tuple(continuation)]] for _, context, continuation in requests]

    def _score_single(self, requests: list[Request], single: list[int], results: list[Scored]) -> None:
        inputs = {}
        for index in single:
            _, context, continuation = requests[index]
            inputs[index] = (context + continuation)[-(self.max_length + 1) :][:-1]
        longest_first = sorted(single, key=lambda index: -len(inputs[index]))
        kept = {index: len(requests[index][2]) for index in single}
        for batch in self._batches(longest_first, lambda index: len(inputs[index]), kept.__getitem__):
            keep = max(len(requests[index][2]) for index in batch)
            ids, mask = left_pad([inputs[index] for index in batch])
            logits = self.model.logits(ids, mask, keep=min(keep, ids.shape[1]))
            self.tokens_run += ids.size
            for row, index in zip(judged_rows(logits), batch, strict=True):
                continuation = requests[index][2]
                results[index] = row.score(continuation, logits.shape[1] - len(continuation))

    def _score_shared(self, requests: list[Request], groups: list[list[int]], results: list[Scored]) -> None:
        """Each context once; then the continuations from its cache, all but their last token."""
        groups = sorted(groups, key=lambda members: -len(requests[members[0]][1]))
        for batch in self._batches(groups, lambda members: len(requests[members[0]][1]), lambda members: 1):
            ids, mask = left_pad([requests[members[0]][1] for members in batch])
            first, past = self.model.extend(ids, mask, keep=1)
            self.tokens_run += ids.size
            todo = []
            for row, (judged, members) in enumerate(zip(judged_rows(first), batch, strict=True)):
                for index in members:
                    continuation = requests[index][2]
                    results[index] = judged.score(continuation[:1])
                    if len(continuation) > 1:
                        todo.append((row, index))
            longest_first = sorted(todo, key=lambda item: -len(requests[item[1]][2]))
            rest = {item: len(requests[item[1]][2]) - 1 for item in todo}
            for part in self._batches(longest_first, rest.__getitem__, rest.__getitem__):
                rows = [row for row, _ in part]
                rest_ids, rest_mask = right_pad([requests[index][2][:-1] for _, index in part])
                whole_mask = np.concatenate([mask[rows], rest_mask], axis=1)
                logits, _ = self.model.extend(rest_ids, whole_mask, past=[array[rows] for array in past])
                self.tokens_run += rest_ids.size
                for judged, (_, index) in zip(judged_rows(logits), part, strict=True):
                    more, greedy = judged.score(requests[index][2][1:])
                    results[index] = (results[index][0] + more, results[index][1] and greedy)

    def _batches(
        self, items: list[Any], length: Callable[[Any], int], kept: Callable[[Any], int]
    ) -> Iterator[list[Any]]:
        return batches(items, length, kept, self.model, self.batch_size)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop string or an end token, `batch_size` side by side.

        End tokens are the tokenizer's and those of the model's generation_config. Raises InputError for sampling.
        """
        wanted = [self._wanted(*request.args) for request in requests]
        lengths: dict[int, list[int]] = defaultdict(list)  # prompt and new tokens fit together where these agree
        for index, one in enumerate(wanted):
            lengths[one.new_tokens].append(index)
        found = [""] * len(wanted)
        for indices in lengths.values():
            indices.sort(key=lambda index: -len(wanted[index].prompt))
            for start in range(0, len(indices), self.batch_size):
                batch = indices[start : start + self.batch_size]
                for index, text in zip(batch, self._continued([wanted[index] for index in batch]), strict=True):
                    found[index] = text
        return found

    def _wanted(self, context: str, gen_kwargs: dict[str, Any]) -> "_Wanted":
        kwargs = normalize_gen_kwargs(gen_kwargs, MAX_NEW_TOKENS)
        if kwargs.get("do_sample"):
            raise InputError("quality.tasks: the task samples (do_sample: true); only greedy generation is measured")
        stops = handle_stop_sequences(kwargs["until"], eos=self.tokenizer.decode(self.eot_token_id))
        new_tokens = min(kwargs["max_gen_toks"], max(1, self.max_length // 2))
        prompt = self.tok_encode(context)[-(self.max_length - new_tokens) :]
        return _Wanted(prompt, [stop for stop in stops if stop], new_tokens)

    def _continued(self, batch: list["_Wanted"]) -> list[str]:
        tokens: list[list[int]] = [[] for _ in batch]
        going = set(range(len(batch)))
        ends = self.model.end_tokens | {self.eot_token_id}
        for drawn in self._generator.batch([one.prompt for one in batch], batch[0].new_tokens):
            for row in sorted(going):
                tokens[row].append(drawn[row])
                text = self.tokenizer.decode(tokens[row][-32:])
                if drawn[row] in ends or any(stop in text for stop in batch[row].stops):
                    going.remove(row)
            if not going:
                break
        self.tokens_run += sum(map(len, tokens)) + sum(len(one.prompt) for one in batch)
        texts = (self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens)
        return [
            postprocess_generated_text(text, stop=one.stops, think_end_token=None)
            for text, one in zip(texts, batch, strict=True)
        ]


class _Wanted(NamedTuple):
    """What a request for a text comes to, in tokens; stops are the strings that end it."""

    prompt: list[int]
    stops: list[str]
    new_tokens: int
