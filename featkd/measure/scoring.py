"""Log-likelihoods of texts from a batch of logits, and batches of texts of unequal length."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from featkd.deploy.session import OnnxModel

LOGITS_BYTES = 512 * 2**20  # most that the logits of one forward pass may take; one row is always taken
TOKENS = 1024  # of one forward pass on a processor: with more, rows of other lengths are padded and nothing is gained
PART = 256  # positions whose softmax is taken at a time
Scored = tuple[float, bool]  # log-likelihood in nats, whether every token is the greedy one


class Judged(NamedTuple):
    """Logits of a text [n, vocab], the logarithm of what their softmax divides by [n], and the largest's token [n]."""

    logits: np.ndarray
    normalisers: np.ndarray
    largest: np.ndarray

    def score(self, tokens: list[int], first: int = 0) -> Scored:
        """Of tokens that follow each other from position `first` on."""
        at = np.arange(first, first + len(tokens))
        log_probabilities = self.logits[at, tokens] - self.normalisers[at]
        return float(log_probabilities.sum(dtype=np.float64)), bool((self.largest[at] == tokens).all())


def judged_rows(logits: np.ndarray) -> list[Judged]:
    """Of a batch [batch, n, vocab]. PyTorch's softmax, part by part, takes a fifth of the time of NumPy's functions."""
    rows, largest = logits.reshape(-1, logits.shape[-1]), logits.argmax(-1)
    best = torch.from_numpy(largest.reshape(-1, 1))
    parts = zip(torch.from_numpy(rows).split(PART), best.split(PART), strict=True)
    normalisers = torch.cat([z.gather(-1, at) - torch.softmax(z, -1).gather(-1, at).log() for z, at in parts])
    return [Judged(*row) for row in zip(logits, normalisers.reshape(largest.shape).numpy(), largest, strict=True)]


def left_pad(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = right_pad([text[::-1] for text in texts])
    return ids[:, ::-1], mask[:, ::-1]


def right_pad(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, both [texts, longest]."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask


def batches(
    items: list[Any], length: Callable[[Any], int], kept: Callable[[Any], int], model: OnnxModel, batch_size: int
) -> Iterator[list[Any]]:
    """At most `batch_size` items, their logits within LOGITS_BYTES and on a processor their tokens within TOKENS.

    length: tokens of an item; kept: its positions that get logits.
    """
    room = LOGITS_BYTES // (4 * model.vocab_size)
    most = TOKENS if model.device == "cpu" else sys.maxsize
    batch: list[Any] = []
    for item in items:
        rows = [*batch, item]
        fits = len(rows) * max(map(kept, rows)) <= room and len(rows) * max(map(length, rows)) <= most
        if batch and (len(batch) == batch_size or not fits):
            yield batch
            rows = [item]
        batch = rows
    if batch:
        yield batch
