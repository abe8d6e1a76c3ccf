"""Stages data, tokenizer, tokens and tasks: from the spec's source to token blocks and lm-eval tasks."""

import glob
from pathlib import Path
from typing import Any

from featkd.child import run_child
from featkd.data.guards import OCCUPATIONS
from featkd.judging import SUITES
from featkd.spec import digest
from featkd.store import Artefact, artefact_key, file_sha256
from tasks.context import Context
from tasks.stages import obtain, stage

ROOMS = ["data"]
MODEL_FILES = ("*.safetensors", "*.model", "*.jinja", "*config.json", "*tokens*.json", "tokenizer*.json",
               "*.index.json", "vocab.*", "merges.txt")  # fmt: skip
FORMAT = {"label_prompt", "prompt_format", "attention"}  # applied after reading: how a document becomes tokens


@stage("data")
def corpus(context: Context) -> Artefact:
    from featkd.data import load

    data = context.spec.data
    source = load.source_identity(data)
    inputs = {"data": data.model_dump(mode="json", exclude={"files", *FORMAT}), "source": source}
    key = artefact_key(inputs, ROOMS, ["pandas"])

    def build(out: Path) -> dict[str, Any]:
        seen = data.model_dump(mode="json") | {"revision": source.get("revision")}
        with context.workdir() as workdir:
            job = {"data": seen, "processes": context.threads, "out": str(out), "scratch": str(workdir)}
            return run_child("featkd.data", job, workdir)

    return obtain(
        context.log, "data", context.store, "corpus", key, build,
        note=lambda made: f"{made.meta['documents']:,} documents, {made.meta['characters'] / 1e6:.1f} MB",
    )  # fmt: skip


@stage("tokenizer")
def tokenizer(context: Context, corpus: Artefact) -> Artefact:
    from featkd.data import tokens

    spec = context.spec
    vocab_size = spec.teacher.train.vocab_size
    inputs = {
        "corpus": corpus.meta["digest"],
        "vocab_size": vocab_size,
        "label_prompt": spec.data.label_prompt,
        "block_size": spec.block_size,
    }

    def build(out: Path) -> dict[str, Any]:
        tokens.train_tokenizer(corpus.path, vocab_size, spec.data.label_prompt, spec.block_size, out)
        return {}

    return obtain(
        context.log, "tokenizer", context.store, "tokenizer", artefact_key(inputs, ROOMS, ["tokenizers"]), build
    )


@stage("tokens")
def blocks(context: Context, corpus: Artefact, tokenizer: str, identity: str) -> Artefact:
    """`tokenizer`: a folder; `identity`: its digest."""
    from featkd.data import tokens

    spec = context.spec
    inputs = {
        "corpus": corpus.meta["digest"],
        "tokenizer": identity,
        "block_size": spec.block_size,
        "format": spec.data.model_dump(mode="json", include=FORMAT),
    }
    return obtain(
        context.log, "tokens", context.store, "tokens", artefact_key(inputs, ROOMS, ["tokenizers"]),
        lambda out: tokens.pack(corpus.path, tokens.load_tokenizer(tokenizer), spec.data, spec.block_size, out),
        note=lambda made: f"{made.meta['training_tokens']:,} training tokens",
    )  # fmt: skip


@stage("tasks")
def quality_tasks(context: Context, corpus: Artefact, blocks: Artefact, tokenizer: str, window: int) -> Artefact:
    """`window`: the longest sequence that every candidate takes, in tokens."""
    from featkd.data import tasks, tokens

    spec = context.spec
    asked = spec.quality.model_dump(
        mode="json", include={"max_examples", "context_tokens", "continuation_tokens", "answer_tokens"}
    )
    names = [name for name in spec.quality.tasks if name.startswith("heldout_")]
    inputs = {"tokens": blocks.key, "window": window, "tasks": names, **asked}

    def build(out: Path) -> dict[str, Any]:
        import numpy as np

        made = tokens.load_tokenizer(tokenizer)
        unigram = tokens.unigram_log_probabilities(np.load(blocks.path / "train.npy")[0], len(made))
        return tasks.build(corpus.path, made, unigram, spec.data, spec.quality, window, out)

    return obtain(
        context.log, "tasks", context.store, "tasks", artefact_key(inputs, ROOMS, ["tokenizers"]), build,
        note=lambda made: ", ".join(f"{name} {n} of {made.meta['rows']}" for name, n in made.meta["examples"].items()),
    )  # fmt: skip


@stage("suites")
def suites(context: Context, corpus: Artefact, blocks: Artefact, tokenizer: str, window: int) -> Artefact:
    """Bias suites as lm-eval tasks, and prompts to be continued."""
    from featkd.data import guards, tokens

    spec, most = context.spec, context.spec.quality.context_tokens
    files = {name: _suite_digests(getattr(spec.guardrails, name)) for name in SUITES}
    asked = spec.guardrails.model_dump(mode="json", exclude={"tasks"})
    inputs = {"tokens": blocks.key, "window": window, "context_tokens": most, **asked, **files}

    def build(out: Path) -> dict[str, Any]:
        made = tokens.load_tokenizer(tokenizer)
        return guards.build(corpus.path, made, spec.data, spec.guardrails, most, window, out)

    return obtain(
        context.log, "suites", context.store, "suites", artefact_key(inputs, ROOMS, ["tokenizers"]), build,
        note=lambda made: ", ".join(f"{name} {n}" for name, n in made.meta["guards"].items()),
    )  # fmt: skip


def _suite_digests(patterns: list[str]) -> list[str]:
    """Of the files of a bias suite; those beside them, for winogender's table of occupations is one."""
    files = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern))]
    beside = [file.with_name(OCCUPATIONS) for file in files]
    return [file_sha256(file) for file in [*files, *(file for file in beside if file.is_file())]]


def folder_digest(folder: str | Path) -> str:
    """Digest of the files that make a tokenizer or a model, by name and content; a licence may change."""
    files = sorted({file for pattern in MODEL_FILES for file in Path(folder).glob(pattern)})
    return digest({file.name: file_sha256(file) for file in files})
