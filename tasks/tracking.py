"""MLflow: one parent run per PoC, one child per candidate with the same metric keys. The only place that imports it.

A run is opened when the PoC starts (tasks/live.py), its curves grow while it trains, and it is completed at the end.
Every call names its run: MLflow's ambient active run belongs to a thread, and a stray MLFLOW_RUN_ID would move it.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from featkd.errors import RunError
from featkd.result import Candidate, Result
from reports.page import summary_markdown
from tasks.context import Context
from tasks.stages import stage
from tasks.tracked import candidate_tags, metrics, params, parent_tags

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

import mlflow  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

ATTEMPTS = 4
DIGEST_LENGTH = 32  # MLflow's column holds 36
VALUE_LENGTH = 500
TAG_LENGTH = 8000
CURVE = "training/validation_loss"


@dataclass(eq=False)
class Opened:
    """A run under way: ids of the parent and, by candidate, of the children; the points that their curves have."""

    store: mlflow.MlflowClient
    experiment: str
    run_id: str
    parent: str
    lock: FileLock
    children: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, int]] = field(default_factory=set)


@stage("mlflow")
def log(context: Context, result: Result, run_dir: Path, opened: Opened | None = None) -> dict[str, Any]:
    """Track a finished run; returns {tracking_uri, experiment_id, run_id}. `opened`: where that has begun."""
    with context.log.timed("mlflow") as entry:
        summary = summary_markdown(result, context.spec.report.languages[0])
        tracked = log_poc(result, run_dir, summary, context.home, opened)
        entry["note"] = tracked["tracking_uri"]
    return tracked


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, or SQLite in `home`, the .featkd folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(home).resolve() / 'mlflow.db'}"


def client(home: Path) -> mlflow.MlflowClient:
    """A client of a store that exists. First starts are made one after the other: they raced on migrations."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    home = Path(home).resolve()
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "mlflow.lock"):
        _make_database(home)
        found = mlflow.MlflowClient(tracking_uri=tracking_uri(home))
        found.search_experiments(max_results=1)
    return found


def _make_database(home: Path) -> None:
    """Whole or not at all: a process that is killed in MLflow's first migrations must leave nothing half-made."""
    made, partial = home / "mlflow.db", home / "mlflow.db.partial"
    if made.exists() or os.environ.get("MLFLOW_TRACKING_URI"):
        return
    partial.unlink(missing_ok=True)
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
    partial.rename(made)


def begin(home: Path, run_id: str, spec: dict[str, Any], spec_digest: str) -> Opened:
    """The run of a PoC that starts now, RUNNING. Those of this folder that were killed become FAILED."""
    home = Path(home).resolve()
    store = client(home)
    experiment = experiment_of(store, spec, home)
    held = home / "mlflow-running"
    held.mkdir(exist_ok=True)
    with FileLock(home / "mlflow.lock"):
        for other in held.glob("*.lock"):
            with contextlib.suppress(Timeout), FileLock(other).acquire(timeout=0):
                if _fail_all(store, other.stem):
                    other.unlink(missing_ok=True)
        parent = _create(store, experiment, run_id, {"featkd.run_id": run_id, "featkd.spec_digest": spec_digest})
        lock = FileLock(held / f"{parent}.lock", thread_local=False)
        lock.acquire()
    # 100 is what one request may carry
    shown = [Param(key, str(value)[:VALUE_LENGTH]) for key, value in params(spec).items()][:100]
    again(store.log_batch, parent, params=shown)
    return Opened(store, experiment, run_id, parent, lock)


def add_point(opened: Opened, name: str, tokens: int, loss: float) -> None:
    """A point of a candidate's curve."""
    again(opened.store.log_metric, _child(opened, name), CURVE, loss, step=tokens)
    opened.points.add((name, tokens))


def abandon(opened: Opened) -> None:
    """The PoC has failed: so have its runs that are under way."""
    _fail_all(opened.store, opened.parent)
    _release(opened)


def log_poc(
    result: Result, run_dir: Path, summary_markdown: str, home: Path, opened: Opened | None = None
) -> dict[str, Any]:
    """Log the run with its children. `home` is the .featkd folder; `run_dir` holds result.json and report*.html.

    Raises RunError when the store does not answer; the run folder is complete without it.
    """
    try:
        opened = opened or begin(home, result.run_id, result.spec, result.spec_digest)
        store, parent = opened.store, opened.parent
        with _completed(store, parent, parent_tags(result, summary_markdown)):
            again(store.log_inputs, parent, datasets=[_dataset(result)])
            for name, candidate in result.candidates.items():
                _log_candidate(opened, name, candidate)
            for path in [run_dir / "result.json", *sorted(run_dir.glob("report*.html"))]:
                again(store.log_artifact, parent, str(path))
        _release(opened)
    except (MlflowException, OSError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise RunError(f"MLflow at {tracking_uri(home)}: {reason}; the run itself is complete: {run_dir}") from error
    return {"tracking_uri": tracking_uri(home), "experiment_id": opened.experiment, "run_id": parent}


def again(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Try again when the store is busy or the disk hiccups; what it says about our input is final."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(*arguments, **named)
        except (MlflowException, OSError) as error:
            final = getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
            if final or attempt == ATTEMPTS:
                raise
            time.sleep(0.3 * 2**attempt)


def experiment_of(store: mlflow.MlflowClient, spec: dict[str, Any], home: Path) -> str:
    name = spec.get("tracking", {}).get("experiment") or spec["name"]
    # the lock is ours alone; on a server that is shared, another client may still be first
    with FileLock(home / "mlflow.lock"):
        if found := again(store.get_experiment_by_name, name):
            if found.lifecycle_stage == "deleted":
                raise RunError(f"MLflow experiment {name!r} was deleted; restore it or set tracking.experiment")
            return found.experiment_id
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (home / "mlartifacts").as_uri()
        try:
            # the page of training runs, not MLflow's default for agents and prompts
            return store.create_experiment(name, place, {"mlflow.experimentKind": "custom_model_development"})
        except MlflowException:
            return again(store.get_experiment_by_name, name).experiment_id


def _create(store: mlflow.MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> str:
    common = {"mlflow.source.name": "featkd", "mlflow.source.type": "LOCAL"}
    return again(store.create_run, experiment, run_name=name, tags=common | tags).info.run_id


def _child(opened: Opened, name: str) -> str:
    if name not in opened.children:
        tags = {"mlflow.parentRunId": opened.parent, "featkd.run_id": opened.run_id, "candidate": name}
        opened.children[name] = _create(opened.store, opened.experiment, name, tags)
    return opened.children[name]


def _fail_all(store: mlflow.MlflowClient, parent: str) -> bool:
    """Whether the store answered, and had them."""
    with contextlib.suppress(MlflowException, OSError):
        experiment = store.get_run(parent).info.experiment_id
        children = store.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
        for run in [*(child.info for child in children), store.get_run(parent).info]:
            if run.status == "RUNNING":
                store.set_terminated(run.run_id, "FAILED")
        return True
    return False


def _release(opened: Opened) -> None:
    opened.lock.release()
    Path(opened.lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def _completed(store: mlflow.MlflowClient, run_id: str, tags: dict[str, str]) -> Iterator[None]:
    """A run gets its tags; it is FINISHED on leaving, FAILED if that was by an exception."""
    try:
        again(store.log_batch, run_id, tags=[RunTag(key, value[:TAG_LENGTH]) for key, value in tags.items()])
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            store.set_terminated(run_id, "FAILED")
        raise
    again(store.set_terminated, run_id)


def _dataset(result: Result) -> DatasetInput:
    data = result.data
    profile = data.model_dump(exclude={"source", "labels"}) | {"labels": len(data.labels)}
    dataset = Dataset(
        name=result.name,
        digest=data.digest[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"source": data.source}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "train and evaluation")])


def _log_candidate(opened: Opened, name: str, candidate: Candidate) -> None:
    """All but the points that its curve has: those of a training that was reused, or went on from a checkpoint."""
    now = int(time.time() * 1000)
    figures = [Metric(key, value, now, 0) for key, value in metrics(candidate).items()]
    curve = candidate.training.curve if candidate.training else []
    losses = [(int(point["tokens"]), point["validation_loss"]) for point in curve]
    points = [Metric(CURVE, loss, now, at) for at, loss in losses if (name, at) not in opened.points]
    run_id = _child(opened, name)
    with _completed(opened.store, run_id, candidate_tags(candidate)):
        names = ("arm", "size", "seed", "precision")
        shown = [Param(name, str(value)) for name in names if (value := getattr(candidate, name)) is not None]
        again(opened.store.log_batch, run_id, metrics=[*figures, *points][:1000], params=shown)
