"""Accuracy of an exported model on lm-eval tasks, with the evidence of every example kept.

out/samples.parquet  one row per task and example: what statistics.py and fidelity.py read, and its text
out/accuracy.json    {task: {metric, higher_is_better, value, examples, n_choices}}, and the filter if there is one
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from featkd.errors import InputError, RunError
from featkd.measure import examples

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
        config, samples = found["configs"][task], examples.first_filter(samples)
        metric = examples.primary(config, samples)
        up = found["higher_is_better"][task].get(metric) is not False  # None where lm-eval does not know
        mine = [
            {
                **examples.row(task, metric, up, config, sample),
                "group": group,
                "class": examples.class_of(sample["doc"]),
                "text": examples.text(tasks[task], sample),
            }  # fmt: skip
            for sample, group in zip(samples, examples.groups([sample["doc"] for sample in samples]), strict=True)
            if metric in sample["metrics"]
        ]
        if not mine:
            raise InputError(f"quality.tasks: {task} has no example with {metric}")
        rows += mine
        summary[task] = examples.summary_of(mine)
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
