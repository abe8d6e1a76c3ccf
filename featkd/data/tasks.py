"""Quality tasks made of the held-out documents, as real lm-eval tasks: YAML and Parquet in one folder.

heldout_perplexity     log-likelihood of whole documents, or of responses given their prompts
heldout_continuation   the true next passage among four; the others come from other documents with the same label
heldout_routing        which class (library) does the document belong to
heldout_exact_match, heldout_f1, heldout_choice: of prompt and response data, see answers.py

Texts are cut to a number of tokens, between words where a passage is to go on, and never inside a character.
"""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featkd import spec
from featkd.data import answers
from featkd.data.corpus import documents
from featkd.data.tokens import context_and_text, encode, encode_pairs, fitted, head, tail
from featkd.errors import InputError

PREFIX = "heldout_"
CHOICES = 4
MIN_EXAMPLES = 8
TEXTS, TEXT_TOKENS = 400, 16_384
PREFIX_ROOM = 1  # the token before the first one that is scored
REMEDY = {
    "heldout_continuation": "few are long enough; lower quality.continuation_tokens (and, for plain text, "
    "quality.context_tokens), or leave it out of quality.tasks",
    "heldout_exact_match": "few responses are short enough; raise quality.answer_tokens or add data",
    "heldout_f1": "few responses are short enough; raise quality.answer_tokens or add data",
    "heldout_choice": "in few rows the response is one of the answers in data.choices_field; add data",
}


def build(
    corpus: Path, tokenizer: Any, unigram: np.ndarray, data: spec.Data, quality: spec.Quality, window: int, out: Path
) -> dict[str, Any]:
    """Write the tasks that `quality.tasks` names with the prefix heldout_. `window`: the models' positions.

    Returns {"chance": {task: value}, "examples": {task: n}, "rows": held-out documents}. Also writes probe.json: token
    ids for the parity check; and texts.json: token ids {before, text, group} of held-out documents.
    Raises InputError when the held-out documents do not give enough examples.
    """
    rows = held_out(corpus, tokenizer, data)
    makers = {
        "heldout_perplexity": lambda: _perplexity(rows, tokenizer, unigram, quality, window),
        "heldout_continuation": lambda: _continuation(rows, tokenizer, quality, window),
        "heldout_routing": lambda: _routing(rows, tokenizer, data, quality, window),
        "heldout_exact_match": lambda: answers.generated("exact_match", rows, tokenizer, data, quality, window),
        "heldout_f1": lambda: answers.generated("token_f1", rows, tokenizer, data, quality, window),
        "heldout_choice": lambda: answers.chosen(rows, tokenizer, data, quality, window, corpus),
    }
    meta: dict[str, Any] = {"chance": {}, "examples": {}, "rows": len(rows)}
    for name in quality.tasks:
        if not name.startswith(PREFIX):
            continue
        if name not in makers:
            raise InputError(f"quality.tasks: unknown task {name}; made from your data are {', '.join(makers)}")
        config, examples, chance = makers[name]()
        if len(examples) < MIN_EXAMPLES:
            raise InputError(
                f"quality.tasks: {name} has {len(examples)} examples from {len(rows)} held-out documents, "
                f"{MIN_EXAMPLES} are needed: {REMEDY.get(name, 'add data or raise data.held_out')}"
            )
        write(name, config, examples, out)
        meta["chance"][name] = chance
        meta["examples"][name] = len(examples)
    (out / "probe.json").write_text(json.dumps(_probe(rows, tokenizer, window)))
    (out / "texts.json").write_text(json.dumps(_texts(rows, tokenizer, window)))
    return meta


def held_out(corpus: Path, tokenizer: Any, data: spec.Data) -> list[dict]:
    """The held-out documents in an order of chance, parted into `context` (a prompt, or nothing) and `text`."""
    rows = documents(corpus, "test")
    for row in rows:
        row["response"] = row["text"]
        row["context"], row["text"] = context_and_text(tokenizer, row, data)
    random.Random(0).shuffle(rows)
    return rows


def point_at(folder: Path, workdir: Path) -> Path:
    """Copies of the task YAMLs with absolute data paths, for lm-eval resolves them against the working folder."""
    for file in sorted(folder.glob("*.yaml")):
        config = yaml.safe_load(file.read_text())
        name = config["dataset_kwargs"]["data_files"]["test"]
        config["dataset_kwargs"] = {"data_files": {"test": str(folder / name)}, "cache_dir": str(workdir / "cache")}
        (workdir / file.name).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return workdir


def _perplexity(rows: list[dict], tokenizer: Any, unigram: np.ndarray, quality: spec.Quality, window: int) -> tuple:
    """Each example tells its number of tokens: perplexity per token is comparable where the tokenizer is the same.

    A prompt's end and its response's beginning share the window, half of it at least for the response.
    """
    examples, loss, tokens = [], 0.0, 0
    for row in rows[: quality.max_examples]:
        context = tail(tokenizer, row["context"], (window - PREFIX_ROOM) // 2)
        room = window - PREFIX_ROOM - len(encode(tokenizer, [context])[0])
        text = head(tokenizer, row["text"], room)
        ((_, ids),) = encode_pairs(tokenizer, [(context, text)])
        if not ids:
            continue
        examples.append({"context": context, "text": text, "tokens": len(ids), **answers.about(row)})
        loss -= float(unigram[np.array(ids)].sum())
        tokens += len(ids)
    if any(row["context"] for row in rows):
        scored = {"output_type": "loglikelihood", "doc_to_text": "context", "metric_list": [{"metric": "perplexity"}]}
    else:
        metrics = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
        scored = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "metric_list": [{"metric": metric} for metric in metrics],
        }
    return {**scored, "doc_to_target": "text"}, examples, float(np.exp(loss / max(tokens, 1)))


def _continuation(rows: list[dict], tokenizer: Any, quality: spec.Quality, window: int) -> tuple:
    length = quality.continuation_tokens
    need = min(quality.context_tokens, window - length)
    pool: list[tuple[dict, str, str]] = []
    for row in rows:
        if row["context"]:
            context, rest = tail(tokenizer, row["context"], need), row["text"]
        else:
            context = _whole_words(head(tokenizer, row["text"], need), row["text"])
            rest = row["text"][len(context) :]
        if context and len(encode(tokenizer, [rest])[0]) >= length:
            pool.append((row, context, head(tokenizer, rest, length)))
        if len(pool) == max(quality.max_examples, 4 * CHOICES):
            break
    rng, examples = random.Random(1), []
    for row, context, true in pool:
        others = [rest for other, _, rest in pool if other["label"] == row["label"] and rest != true]
        if len(others) < CHOICES - 1:
            others = [rest for _, _, rest in pool if rest != true]
        if len(others) < CHOICES - 1:
            break
        choices = [true, *rng.sample(others, CHOICES - 1)]
        order = rng.sample(range(CHOICES), CHOICES)
        shuffled = {"choices": [choices[n] for n in order], "gold": order.index(0)}
        examples.append({"context": context, **shuffled, **answers.about(row)})
    config = {
        **answers.AMONG_CHOICES,
        # how much more likely the context makes a passage: its bare likelihood mostly tells common words from rare
        # ones (arXiv 2104.08315)
        "metric_list": [{"metric": "acc_mutual_info"}, {"metric": "acc"}],
    }
    return config, examples[: quality.max_examples], 1 / CHOICES


def _whole_words(beginning: str, text: str) -> str:
    """The beginning without its last word if that was cut; as it is where words are not parted by spaces."""
    if text[len(beginning) : len(beginning) + 1].isspace():
        return beginning.rstrip()
    cut = max(beginning.rfind(" "), beginning.rfind("\n"))
    return (beginning[:cut] if cut > len(beginning) // 2 else beginning).rstrip()


def _routing(rows: list[dict], tokenizer: Any, data: spec.Data, quality: spec.Quality, window: int) -> tuple:
    rows = answers.balanced([row for row in rows if row["label"]], "label", quality.max_examples)
    labels = sorted({row["label"] for row in rows})
    if len(labels) < 2:
        raise InputError("quality.tasks: heldout_routing needs at least two classes in data.label_field")
    room = window - max(map(len, encode(tokenizer, [data.label_prompt + " " + label for label in labels]))) - 1
    examples = []
    for row in rows:
        text = head(tokenizer, row["context"] + row["text"], room)
        gold = labels.index(row["label"])
        examples.append({"text": text + data.label_prompt, "gold": gold, **answers.about(row)})
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": labels,
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    }
    counts = Counter(row["label"] for row in rows)
    return config, examples, max(counts.values()) / len(rows)


def write(name: str, config: dict[str, Any], examples: list[dict], out: Path) -> None:
    """The examples as Parquet: of JSON `datasets` would guess types, and take answers like 2026-01-31 for times."""
    import pandas

    pandas.DataFrame(examples).to_parquet(out / f"{name}.parquet", index=False)
    task = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": f"{name}.parquet"}},
        "test_split": "test",
        **config,
        "metadata": {"version": 1},
    }
    (out / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True))


def _texts(rows: list[dict], tokenizer: Any, window: int) -> list[dict[str, Any]]:
    """At most TEXTS documents and about TEXT_TOKENS tokens of them, on which representations are compared."""
    found, tokens = [], 0
    for row in rows[:TEXTS]:
        if tokens >= TEXT_TOKENS:
            break
        made = fitted(tokenizer, row["context"], row["text"], window)
        if made.before or len(made.text) > 1:
            found.append({"before": made.before, "text": made.text, "group": row["group"]})
            tokens += len(made.text)
    return found


def _probe(rows: list[dict], tokenizer: Any, window: int) -> list[list[int]]:
    """Token ids of a few held-out documents of unequal length, for the parity check and the latency prompt."""
    encoded = encode(tokenizer, [row["context"] + row["text"] for row in rows[:200]])
    longest = sorted(encoded, key=len, reverse=True)
    lengths = [window // 2, window // 3, window // 4, window // 8]
    return [ids[: max(length, 4)] for ids, length in zip(longest, lengths, strict=False) if len(ids) >= 4]
