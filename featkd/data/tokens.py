"""Text to token blocks: a byte-level BPE tokenizer for a teacher of our own, and packing for any tokenizer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from featkd.data.corpus import documents
from featkd.errors import InputError

END = "<|endoftext|>"
IGNORED = -100
ENCODE_BATCH = 1000
VALID_BLOCKS = 32


def train_tokenizer(corpus: Path, vocab_size: int, label_prompt: str, model_max_length: int, out: Path) -> None:
    """Byte-level BPE over the training part, saved in the Hugging Face format; one special token, as in GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (row["prompt"] + training_text(row, label_prompt) for row in documents(corpus, "train"))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's own tokenizer. Raises InputError when there is none; remote code is never run."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a folder without a usable tokenizer
        message = " ".join(str(error).split())[:160]
        raise InputError(f"teacher.model: {folder} has no usable tokenizer: {message}") from None
    if len(tokenizer) == 0:
        raise InputError(f"teacher.model: {folder} has no usable tokenizer: its vocabulary is empty")
    return tokenizer


def training_text(row: dict[str, Any], label_prompt: str) -> str:
    """What is learned of a document: its text and, where it has a class, the class after `label_prompt`."""
    return row["text"] + (f"{label_prompt} {row['label']}" if row["label"] else "")


def separator(tokenizer: Any) -> int | None:
    """The id between documents: the end token, else the begin token, else none."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id


def pack(corpus: Path, tokenizer: Any, label_prompt: str, block_size: int, out: Path) -> dict[str, Any]:
    """Write train.npy and valid.npy, int32 [2, blocks, block_size]: ids and labels (IGNORED on prompts).

    Documents are joined by the end token and cut into blocks; the unfinished last block is dropped.
    Raises InputError when the training part is shorter than one block.
    """
    train = _blocks(documents(corpus, "train"), tokenizer, label_prompt, block_size)
    if not train.shape[1]:
        raise InputError(
            f"data: the training part is shorter than one block; lower block_size ({block_size}) or add data"
        )
    valid = _blocks(documents(corpus, "valid"), tokenizer, label_prompt, block_size)[:, :VALID_BLOCKS]
    if not valid.shape[1]:
        raise InputError(
            f"data: the validation part is shorter than one block; lower block_size ({block_size}), "
            "raise data.held_out or add data"
        )
    np.save(out / "train.npy", train)
    np.save(out / "valid.npy", valid)
    return {
        "training_tokens": int(train[0].size),
        "training_blocks": int(train.shape[1]),
        "valid_blocks": int(valid.shape[1]),
        "learned_share": float((train[1] != IGNORED).mean()),
    }


def unigram_log_probabilities(train_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """float64 [vocab]: add-one smoothed log-probabilities, the 'chance' that a perplexity is held against."""
    counts = np.bincount(train_ids.ravel(), minlength=vocab_size).astype(np.float64) + 1
    return np.log(counts / counts.sum())


def _blocks(rows: list[dict[str, Any]], tokenizer: Any, label_prompt: str, block_size: int) -> np.ndarray:
    ids: list[int] = []
    labels: list[int] = []
    end = separator(tokenizer)
    ending = [] if end is None else [end]
    for prompt, text in _encoded(rows, tokenizer, label_prompt):
        ids += prompt + text + ending
        labels += [IGNORED] * len(prompt) + text + ending
    whole = len(ids) // block_size * block_size
    return np.array([ids[:whole], labels[:whole]], dtype=np.int32).reshape(2, -1, block_size)


def _encoded(rows: list[dict[str, Any]], tokenizer: Any, label_prompt: str) -> Iterable[tuple[list[int], list[int]]]:
    for start in range(0, len(rows), ENCODE_BATCH):
        batch = rows[start : start + ENCODE_BATCH]
        prompts = encode(tokenizer, [row["prompt"] for row in batch])
        yield from zip(prompts, encode(tokenizer, [training_text(row, label_prompt) for row in batch]), strict=True)


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
