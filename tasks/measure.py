"""Stages accuracy, guardrails, overlap and latency: all on the exported model."""

from pathlib import Path
from typing import Any

from featkd import environment
from featkd.store import Artefact, artefact_key
from tasks.context import Context
from tasks.include import tasks_digest
from tasks.stages import obtain, stage

ROOMS = ["measure", "deploy"]


@stage("accuracy")
def accuracy(context: Context, name: str, onnx: Artefact, tasks: Artefact) -> Artefact:
    """lm-eval on the ONNX folder; per-example samples are the evidence."""
    quality = context.spec.quality
    inputs = {
        "onnx": onnx.key,
        "tasks": tasks.key,
        "quality": quality.model_dump(mode="json"),
        "include": tasks_digest(quality.include) if quality.include else None,
        "device": context.device,
    }

    def build(out: Path) -> dict[str, Any]:
        from featkd.data.tasks import point_at
        from featkd.measure.accuracy import evaluate

        with context.workdir() as workdir:
            # of two tasks with one name lm-eval takes the later: ours are last
            include = [*([Path(quality.include)] if quality.include else []), point_at(tasks.path, workdir)]
            found = evaluate(
                onnx.path, quality.tasks, include, quality.max_examples, quality.batch_size,
                context.threads, context.device, out,
            )  # fmt: skip
        return {"tasks": found}

    return obtain(
        context.log, f"accuracy {name}", context.store, "accuracy",
        artefact_key(inputs, ROOMS, ["lm-eval", *environment.onnxruntime_package()]), build, note=_scores,
    )  # fmt: skip


@stage("guardrails")
def guardrails(context: Context, name: str, onnx: Artefact, suites: Artefact) -> Artefact:
    """Bias suites through lm-eval, and continued prompts, on the ONNX folder."""
    asked = context.spec.guardrails
    include = context.spec.quality.include
    inputs = {
        "onnx": onnx.key,
        "suites": suites.key,
        "guardrails": asked.model_dump(mode="json"),
        "batch_size": context.spec.quality.batch_size,
        "include": tasks_digest(include) if include else None,
        "device": context.device,
    }

    def build(out: Path) -> dict[str, Any]:
        from featkd.data.tasks import point_at
        from featkd.measure import generations
        from featkd.measure.accuracy import evaluate
        from featkd.measure.guardrails import with_suite

        names = [*suites.meta["guards"], *asked.tasks]
        if names:
            with context.workdir() as workdir:
                folders = [*([Path(include)] if include else []), point_at(suites.path, workdir)]
                evaluate(
                    onnx.path, names, folders, asked.max_examples, context.spec.quality.batch_size,
                    context.threads, context.device, out, "guardrails.tasks",
                )  # fmt: skip
            with_suite(out, suites.path)
        prompts = suites.json("prompts.json")
        if prompts:
            generations.generate(
                onnx.path, prompts, asked.new_tokens, suites.meta["ends"], context.threads, context.device, out
            )
        return {"suites": len(names), "prompts": len(prompts)}

    return obtain(
        context.log, f"guardrails {name}", context.store, "guardrails",
        artefact_key(inputs, ROOMS, ["lm-eval", *environment.onnxruntime_package()]), build,
        note=lambda made: f"{made.meta['suites']} suites, {made.meta['prompts']} prompts continued",
    )  # fmt: skip


@stage("overlap")
def overlap(context: Context, corpus: Artefact, accuracy: Artefact) -> Artefact:
    """What of every task stands in the training text. `accuracy`: of any model, it tells the examples."""
    inputs = {"corpus": corpus.key, "examples": accuracy.key}

    def build(out: Path) -> dict[str, Any]:
        import pandas

        from featkd.data import ngrams
        from featkd.data.corpus import documents

        rows = pandas.read_parquet(accuracy.path / "samples.parquet", columns=["task", "doc_id", "text"])
        training = (f"{row['prompt']} {row['text']}" for row in documents(corpus.path, "train"))
        rows["share"] = ngrams.shares(rows.pop("text").tolist(), training)
        rows["seen"] = rows["share"] >= ngrams.SEEN
        rows.to_parquet(out / "overlap.parquet", index=False)
        return {"seen": rows.groupby("task", sort=False)["seen"].sum().to_dict()}

    return obtain(
        context.log, "overlap", context.store, "overlap", artefact_key(inputs, ["data"], ["pandas"]), build,
        note=lambda made: ", ".join(f"{task} {count} seen" for task, count in made.meta["seen"].items()),
    )  # fmt: skip


@stage("latency")
def latency(context: Context, folders: dict[str, Artefact], tasks: Artefact) -> Artefact:
    """All candidates in one artefact: they are measured in turns, so that drift of the machine hits all alike."""
    from featkd.measure import energy

    settings = context.spec.latency
    inputs = {
        "onnx": {name: onnx.key for name, onnx in folders.items()},
        "latency": settings.model_dump(mode="json"),
        "hardware": environment.hardware(),
        "threads": context.threads,
        "device": context.device,
        "energy": energy.source(energy.meter(context.device)),
    }

    def build(out: Path) -> dict[str, Any]:
        import json

        from featkd.measure.latency import measure

        prompt = _prompt(tasks.json("probe.json"), settings.prompt_tokens)
        paths = {name: onnx.path for name, onnx in folders.items()}
        raw = measure(paths, settings, prompt, context.threads, context.device)
        (out / "latency.json").write_text(json.dumps(raw))
        return {"candidates": list(raw)}

    return obtain(
        context.log, "latency", context.store, "latency",
        artefact_key(inputs, ROOMS, environment.onnxruntime_package()), build,
        note=lambda made: f"{len(folders)} models, {settings.rounds} rounds of {settings.repeats}",
    )  # fmt: skip


def _prompt(probe: list[list[int]], length: int) -> list[int]:
    ids = [token for text in probe for token in text]
    return (ids * (length // len(ids) + 1))[:length]


def _scores(made: Artefact) -> str:
    return ", ".join(f"{task} {found['value']:.4g}" for task, found in made.meta["tasks"].items())
