"""Text to token blocks: a byte-level BPE tokenizer for a teacher of our own, and packing for any tokenizer."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from featkd import spec
from featkd.data.corpus import documents
from featkd.errors import InputError

END = "<|endoftext|>"
IGNORED = -100
CHAT_DATE = datetime(2024, 7, 26)
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
    texts = (f"{row['prompt']}\n{_learned(row, label_prompt)}".strip() for row in documents(corpus, "train"))
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


def load_tokenizer(folder: str | Path, field: str = "teacher.model") -> Any:
    """The folder's own tokenizer. Raises InputError when there is none; remote code is never run."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a folder without a usable tokenizer
        message = " ".join(str(error).split())[:160]
        raise InputError(f"{field}: {folder} has no usable tokenizer: {message}") from None
    if len(tokenizer) == 0:
        raise InputError(f"{field}: {folder} has no usable tokenizer: its vocabulary is empty")
    return tokenizer


def context_and_text(tokenizer: Any, row: dict[str, Any], data: spec.Data) -> tuple[str, str]:
    """What is read of a document and what is learned: its prompt (empty for plain text) and its text.

    White space between them belongs to the text, where lm-eval moves it too: what is trained is what is scored.
    Raises InputError when a chat template is asked for and the tokenizer has none, or when it fails.
    """
    if not row["prompt"]:
        return "", row["text"]
    prompt = row["prompt"] + "\n"
    if _in_chat(tokenizer, data):
        prompt = _chat(tokenizer, [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True)
    context = prompt.rstrip()
    return context, prompt[len(context) :] + row["text"]


def _in_chat(tokenizer: Any, data: spec.Data) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if data.prompt_format == "chat" and not has_template:
        raise InputError("data.prompt_format: the tokenizer has no chat template; write plain")
    return has_template and data.prompt_format != "plain"


def _chat(tokenizer: Any, turns: list[dict[str, str]], **options: Any) -> str:
    """The turns in the tokenizer's template. Some write today's date: it is fixed, so that a run can be repeated."""
    clock = mock.Mock(now=lambda: CHAT_DATE)
    try:
        with mock.patch("transformers.utils.chat_template_utils.datetime", clock):
            return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # whatever a template raises: jinja's errors, ValueError, TypeError
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"data.prompt_format: the chat template fails ({reason}); write plain") from None


def turn_end(tokenizer: Any, data: spec.Data) -> str:
    """What the chat template writes after an answer: the model has to learn to end its turn."""
    if not (data.prompt_field and _in_chat(tokenizer, data)):
        return ""
    answer = "featkd-answer"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    return _chat(tokenizer, turns).rpartition(answer)[2].rstrip()


def _learned(row: dict[str, Any], label_prompt: str) -> str:
    """A document's text and, where it has a class, the class after `label_prompt`."""
    return row["text"] + (f"{label_prompt} {row['label']}" if row["label"] else "")


def head(tokenizer: Any, text: str, most: int) -> str:
    """The longest beginning of a text that has at most `most` tokens. Cut between characters, never inside one."""
    return text[: _longest(tokenizer, lambda length: text[:length], len(text), most)]


def tail(tokenizer: Any, text: str, most: int) -> str:
    """The longest end of a text that has at most `most` tokens."""
    return text[len(text) - _longest(tokenizer, lambda length: text[len(text) - length :], len(text), most) :]


def _longest(tokenizer: Any, part: Callable[[int], str], size: int, most: int) -> int:
    """The largest length up to `size` whose `part` has at most `most` tokens, found by doubling and halving."""

    def fits(length: int) -> bool:
        return len(encode(tokenizer, [part(length)])[0]) <= most

    low, high = 0, min(size, max(most, 1))
    while fits(high):
        if high == size:
            return size
        low, high = high, min(size, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class Fitted(NamedTuple):
    """Ids of what stands before a text, and of the text; cut: the text was longer."""

    before: list[int]
    text: list[int]
    cut: bool


def fitted(tokenizer: Any, context: str, text: str, window: int) -> Fitted:
    """What models of `window` positions take of a text: the end of its context, half of the window at most, and the
    beginning of itself. The text's last token is not given to them, only asked for."""
    shown = tail(tokenizer, context, window // 2)
    before = encode(tokenizer, [shown])[0]
    before = beginning(tokenizer, before) + before
    room = window + 1 - len(before)
    kept = head(tokenizer, text, room)
    ((_, ids),) = encode_pairs(tokenizer, [(shown, kept)])
    return Fitted(before, ids[:room], len(kept) < len(text))


def separator(tokenizer: Any) -> int | None:
    """The id between documents: the end token, else the begin token, else none."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id


def beginning(tokenizer: Any, context: list[int]) -> list[int]:
    """What stands before a document: the tokens that lm-eval puts there when it scores one.

    Before a context those that the tokenizer adds by itself, before plain text the begin token, if it has one that is
    not its end token: that one stands between documents anyway.
    """
    begin = tokenizer.bos_token_id
    if not context:
        return [] if begin in (None, tokenizer.eos_token_id) else [begin]
    return [begin] if tokenizer("")["input_ids"] == [begin] and context[0] != begin else []


def pack(corpus: Path, tokenizer: Any, data: spec.Data, block_size: int, out: Path) -> dict[str, Any]:
    """Write train.npy and valid.npy, int32 [3, blocks, block_size]: ids, labels (IGNORED on prompts) and positions.

    Documents begin with the begin token if the tokenizer sets one, end with the end token, and are cut into blocks;
    the unfinished last block is dropped. Positions count from the beginning of the document, or of the block where that
    is later: a token attends to those that are counted with it. With `data.attention: block` they count from the
    beginning of the block alone.
    Raises InputError when a part is shorter than one block.
    """
    train = _blocks(documents(corpus, "train"), tokenizer, data, block_size)
    if not train.shape[1]:
        raise InputError(
            f"data: the training part is shorter than one block; lower block_size ({block_size}) or add data"
        )
    valid = _blocks(documents(corpus, "valid"), tokenizer, data, block_size)[:, :VALID_BLOCKS]
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


def _blocks(rows: list[dict[str, Any]], tokenizer: Any, data: spec.Data, block_size: int) -> np.ndarray:
    ids: list[int] = []
    labels: list[int] = []
    starts: list[int] = []
    end, alone = separator(tokenizer), data.attention == "document"
    for context, text in _encoded(rows, tokenizer, data):
        read = beginning(tokenizer, context) + context
        learned = text if end is None or text[-1:] == [end] else [*text, end]
        # lm-eval puts the end token before plain text where there is no begin token: it ends one document, of which it
        # is learned, and begins the next
        shared = not read and ids[-1:] == [end]
        starts.append(len(ids) - shared)
        ids += read + learned
        labels += [IGNORED] * len(read) + learned
        if alone and not (read or shared):
            labels[starts[-1]] = IGNORED  # nothing of its own document comes before it
    whole = len(ids) // block_size * block_size
    positions = _positions(starts if alone else [], whole, block_size)
    return np.array([ids[:whole], labels[:whole], positions], dtype=np.int32).reshape(3, -1, block_size)


def _positions(starts: list[int], size: int, block_size: int) -> np.ndarray:
    """[size]: how far each token is from the last of `starts`, or from the beginning of its block if that is later."""
    places = np.arange(size)
    begun = places // block_size * block_size
    inside = [start for start in starts if start < size]
    begun[inside] = inside
    return places - np.maximum.accumulate(begun)


def _encoded(rows: list[dict[str, Any]], tokenizer: Any, data: spec.Data) -> Iterator[tuple[list[int], list[int]]]:
    closing = turn_end(tokenizer, data)
    for start in range(0, len(rows), ENCODE_BATCH):
        pairs = []
        for row in rows[start : start + ENCODE_BATCH]:
            learned = _learned(row, data.label_prompt) + (closing if row["prompt"] else "")
            pairs.append(context_and_text(tokenizer, {**row, "text": learned}, data))
        yield from encode_pairs(tokenizer, pairs)


def encode_pairs(tokenizer: Any, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """(ids of the context, ids of the text after it): encoded in one piece and cut, as lm-eval does.

    Some tokenizers put a space before whatever they are given, so a text alone has other tokens than after a context.
    """
    contexts = encode(tokenizer, [context for context, _ in pairs])
    wholes = encode(tokenizer, [context + text for context, text in pairs])
    return [(context, whole[len(context) :]) for context, whole in zip(contexts, wholes, strict=True)]


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
