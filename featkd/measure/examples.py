"""From lm-eval's samples to a row per example: its score, what was answered, and where it is from."""

import hashlib
import math
from typing import Any

import numpy as np

from featkd.errors import InputError
from featkd.measure.statistics import is_perplexity

PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity")
PER_TOKEN = "token_perplexity"
CLASSES = ("class", "category", "subject")  # fields of the kind of an example
SOURCES = ("group", "passage", "article", "paragraph", "story", "context")  # fields of what examples are about
PREFERRED = ("pct_stereotype", "acc", "acc_norm", "exact_match", "f1", "token_f1", "bleu", "rouge1")


def primary(config: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    """The metric that stands for the task: its first where it lists acc_mutual_info, else by preference."""
    listed = [entry["metric"] for entry in config.get("metric_list") or [] if isinstance(entry.get("metric"), str)]
    there = [name for name in samples[0]["metrics"]] if samples else listed
    order = listed if "acc_mutual_info" in listed else [*PREFERRED, *listed]
    return next((name for name in order if name in there), there[0])


def first_filter(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval gives one sample per document and filter: several readings of one answer are one example."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def groups(docs: list[dict[str, Any]]) -> list[str]:
    """Which examples share what they are about (SOURCES): told by a field with fewer values than there are examples."""
    for field in SOURCES:
        values = [doc.get(field) for doc in docs]
        if all(isinstance(value, str) for value in values) and 1 < len(set(values)) < len(docs):
            return [hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:16] for value in values]
    return [str(number) for number in range(len(docs))]


def class_of(doc: dict[str, Any]) -> str | None:
    return next((doc[field] for field in CLASSES if isinstance(doc.get(field), str)), None)


def row(task: str, metric: str, up: bool, config: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    told = {"task": task, "doc_id": int(sample["doc_id"]), "metric": metric, "higher_is_better": up, "weight": 1.0,
           "bytes": 0, "choice": -1, "gold": -1, "n_choices": 0, "choice_logprobs": []}  # fmt: skip
    value = sample[metric]
    if metric in PERPLEXITIES:
        return {**told, **_likelihood(metric, sample)}
    if config.get("output_type") == "multiple_choice":
        told.update(_choice(metric, config, sample))
    return {**told, "score": _number(value, task, metric)}


def _likelihood(metric: str, sample: dict[str, Any]) -> dict[str, Any]:
    """score: log-likelihood in nats; weight: the units it is spread over. bits_per_byte is told as a perplexity."""
    value = sample[metric]
    nats, weight = value if isinstance(value, tuple | list) else (value, 1)
    name = "byte_perplexity" if metric == "bits_per_byte" else metric
    if tokens := sample["doc"].get("tokens"):
        name, weight = PER_TOKEN, tokens
    sizes = sample.get("byte_perplexity") or sample.get("bits_per_byte") or (nats, 0)
    return {"metric": name, "higher_is_better": False, "score": float(nats), "weight": float(weight),
            "bytes": int(sizes[1])}  # fmt: skip


def _choice(metric: str, config: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    """The answer taken under the task's metric, the right one, and the log-probability of each, nats."""
    logprobs = [float(response[0]) for response in sample["filtered_resps"]]
    answers = [argument[1] for argument in sample["arguments"]]
    listed = [entry.get("metric") for entry in config.get("metric_list") or []]
    if "acc_mutual_info" in listed and len(logprobs) % 2 == 0:
        half = len(logprobs) // 2
        free, logprobs, answers = logprobs[half:], logprobs[:half], answers[:half]
        if metric == "acc_mutual_info":
            logprobs = [given - alone for given, alone in zip(logprobs, free, strict=True)]
    judged = np.array(logprobs)
    if metric in ("acc_norm", "acc_bytes"):
        delimiter = len(config.get("target_delimiter") or "")
        texts = [answer[delimiter:] for answer in answers]
        judged = judged / [max(1, len(text if metric == "acc_norm" else text.encode())) for text in texts]
    return {
        "choice": int(judged.argmax()),
        "gold": _gold(sample["target"], answers),
        "n_choices": len(logprobs),
        "choice_logprobs": logprobs,
    }


def _gold(target: Any, answers: list[str]) -> int:
    """The number of the right answer; -1 where the task does not tell."""
    if isinstance(target, str):
        stripped = [answer.strip() for answer in answers]
        return int(target) if target.isdigit() else stripped.index(target.strip()) if target.strip() in stripped else -1
    if isinstance(target, list):
        target = target[0] if target and isinstance(target[0], int) else -1
    return int(target)


def text(task: Any, sample: dict[str, Any]) -> str:
    """What an example asks and its right answer, without examples shown before it; for the overlap with training."""
    asked, target = task.doc_to_text(sample["doc"]), sample["target"]
    if task.OUTPUT_TYPE == "multiple_choice":
        gold = _gold(target, [argument[1] for argument in sample["arguments"]])
        context, target = sample["arguments"][max(gold, 0)]
        return f"{asked if isinstance(asked, str) else context}{target}"
    if isinstance(target, list):
        target = target[0] if target else ""
    return f"{asked} {target}"


def _number(value: Any, task: str, metric: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"quality.tasks: {task} has no figure per example (its {metric} is over the whole corpus): choose another"
        ) from None


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    scores, weights = np.array([row["score"] for row in rows]), np.array([row["weight"] for row in rows])
    metric = rows[0]["metric"]
    if is_perplexity(metric):
        value = math.exp(min(-scores.sum() / max(weights.sum(), 1), 700))
    else:
        value = float(scores.mean())
    return {
        "metric": metric,
        "higher_is_better": rows[0]["higher_is_better"],
        "value": value,
        "examples": len(rows),
        "n_choices": max((row["n_choices"] for row in rows), default=0),
    }
