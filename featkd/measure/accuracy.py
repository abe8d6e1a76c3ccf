"""Accuracy of an exported model on lm-eval tasks, with the evidence of every example kept.

out/samples.parquet  one row per task and example: what statistics.py and fidelity.py read, and its text
out/accuracy.json    {task: {metric, higher_is_better, value, examples, n_choices}}, and the filter if there is one
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from featkd.errors import InputError, RunError
from featkd.measure.statistics import is_perplexity

PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity")
PER_TOKEN = "token_perplexity"
CLASSES = ("class", "category", "subject")  # fields of the kind of an example
SOURCES = ("group", "passage", "article", "paragraph", "story", "context")  # fields of what examples are about
PREFERRED = ("pct_stereotype", "acc", "acc_norm", "exact_match", "f1", "token_f1", "bleu", "rouge1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def check_tasks(names: list[str], include: list[Path], field: str = "quality.tasks") -> None:
    """Are these lm-eval tasks? `include`: folders of task YAML files, looked at first. field: where they are named.

    Raises InputError that names the unknown ones. Takes seconds only when a name is not found in `include`.
    """
    _manager(names, include, field)


def evaluate(
    onnx_dir: Path,
    names: list[str],
    include: list[Path],
    limit: int | None,
    batch_size: int,
    threads: int,
    device: Literal["cpu", "cuda"],
    out: Path,
    field: str = "quality.tasks",
) -> dict[str, dict[str, Any]]:
    """Run lm-eval tasks on an exported model; write samples.parquet and accuracy.json into `out`.

    Args:
        onnx_dir: a folder that featkd.deploy.export filled, tokenizer included.
        names: lm-eval tasks; include: folders with task YAML files.
        limit: examples per task, None for all. batch_size: sequences per forward pass.
        field: of the spec, where the tasks are named; for messages.

    Returns {task: {metric, higher_is_better, value, examples, n_choices}}; `value` is recomputed from the samples:
    their mean, or exp(-nats per unit) for perplexities; n_choices is 0 where there are none. The unit is a word, a
    byte, a document, or a token where the task's documents tell their number in a field `tokens`. Of a task that
    reads its answers in several ways (lm-eval's filters; gsm8k) the first counts, named by a key `filter`.
    A group (mmlu) gives one entry per member task.
    Raises InputError (unknown task, or one that needs a download while offline) and RunError.
    """
    import pandas

    from featkd.deploy.session import OnnxModel

    with _quiet():
        from lm_eval import simple_evaluate
        from transformers import AutoTokenizer

        from featkd.measure import metrics  # noqa: F401  (registers them)
        from featkd.measure.onnx_lm import OnnxLM

        manager = _manager(names, include, field)
        tokenizer = AutoTokenizer.from_pretrained(onnx_dir, local_files_only=True)
        model = OnnxLM(OnnxModel(onnx_dir, threads, device, spin=False), tokenizer, batch_size)
        try:
            # lm-eval asks git for the working folder's commit; outside a repository git complains on the terminal
            with mock.patch("lm_eval.evaluator.get_git_commit_hash", return_value=None):
                tasks = manager.load(list(names))["tasks"]
                found = simple_evaluate(
                    model=model,
                    tasks=list(tasks.values()),
                    limit=limit,
                    bootstrap_iters=0,
                    log_samples=True,
                    task_manager=manager,
                )
        except (InputError, RunError):
            raise
        except Exception as error:
            raise _explained(error, names, field) from error
    rows, summary = [], {}
    for task, samples in found["samples"].items():
        config, samples = found["configs"][task], _first_filter(samples)
        metric = _primary(config, samples)
        up = found["higher_is_better"][task].get(metric) is not False  # None where lm-eval does not know
        mine = [
            {
                **_row(task, metric, up, config, sample),
                "group": group,
                "class": _class(sample["doc"]),
                "text": _text(tasks[task], sample),
            }  # fmt: skip
            for sample, group in zip(samples, _groups([sample["doc"] for sample in samples]), strict=True)
            if metric in sample["metrics"]
        ]
        if not mine:
            raise InputError(f"quality.tasks: {task} has no example with {metric}")
        rows += mine
        summary[task] = _summary(mine)
        if samples[0]["filter"] != "none":
            summary[task]["filter"] = samples[0]["filter"]
    out.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_parquet(out / "samples.parquet", index=False)
    (out / "accuracy.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return summary


def _manager(names: list[str], include: list[Path], field: str = "quality.tasks") -> Any:
    """The lm-eval TaskManager that knows all names. The one with lm-eval's own tasks takes about 10 s to build."""
    with _quiet():
        from lm_eval.tasks import TaskManager

        folders = [str(folder) for folder in include]
        manager = TaskManager(include_path=folders, include_defaults=False)
        if all(name in manager.all_tasks for name in names):
            return manager
        manager = TaskManager(include_path=folders)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        where = f" or a task in {', '.join(folders)}" if folders else ""
        near = _near(unknown[0], manager.all_tasks)
        raise InputError(
            f"{field}: unknown task {', '.join(unknown)}; write the name of an lm-eval task{where}"
            + (f", e.g. {near}" if near else " (`lm-eval ls tasks` lists them)")
        )
    return manager


def _near(name: str, known: list[str]) -> str:
    import difflib

    return ", ".join(difflib.get_close_matches(name, known, n=3))


def _primary(config: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    """The metric that stands for the task: its first where it lists acc_mutual_info, else by preference."""
    listed = [entry["metric"] for entry in config.get("metric_list") or [] if isinstance(entry.get("metric"), str)]
    there = [name for name in samples[0]["metrics"]] if samples else listed
    order = listed if "acc_mutual_info" in listed else [*PREFERRED, *listed]
    return next((name for name in order if name in there), there[0])


def _first_filter(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval gives one sample per document and filter: several readings of one answer are one example."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _groups(docs: list[dict[str, Any]]) -> list[str]:
    """Which examples share what they are about (SOURCES): told by a field with fewer values than there are examples."""
    for field in SOURCES:
        values = [doc.get(field) for doc in docs]
        if all(isinstance(value, str) for value in values) and 1 < len(set(values)) < len(docs):
            return [hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:16] for value in values]
    return [str(number) for number in range(len(docs))]


def _class(doc: dict[str, Any]) -> str | None:
    return next((doc[field] for field in CLASSES if isinstance(doc.get(field), str)), None)


def _row(task: str, metric: str, up: bool, config: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    row = {"task": task, "doc_id": int(sample["doc_id"]), "metric": metric, "higher_is_better": up, "weight": 1.0,
           "bytes": 0, "choice": -1, "gold": -1, "n_choices": 0, "choice_logprobs": []}  # fmt: skip
    value = sample[metric]
    if metric in PERPLEXITIES:
        return {**row, **_likelihood(metric, sample)}
    if config.get("output_type") == "multiple_choice":
        row.update(_choice(metric, config, sample))
    return {**row, "score": _number(value, task, metric)}


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


def _text(task: Any, sample: dict[str, Any]) -> str:
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


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
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


def _explained(error: Exception, names: list[str], field: str) -> Exception:
    causes, cause = [], error
    while cause is not None:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    text = " ".join(" | ".join(causes).split())
    if any(word in text for word in ("Offline", "offline", "ConnectionError", "LocalEntryNotFound", "Couldn't reach")):
        return InputError(
            f"{field}: {', '.join(names)}: a task needs data that is not on this machine, and featkd is offline; "
            "download it first, or set HF_HUB_OFFLINE=0 and HF_DATASETS_OFFLINE=0"
        )
    return RunError(f"lm-eval failed on {', '.join(names)}: {causes[0].splitlines()[0][:300]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Offline unless the environment says otherwise, and no logs, warnings or bars of lm-eval and its parts.

    The hub's libraries read these variables when they are imported: call before that, or they stay as they were.
    """
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import datasets

    disabled = logging.root.manager.disable
    datasets.disable_progress_bars()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
