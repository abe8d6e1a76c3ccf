"""MLflow: one parent run per PoC, one child per candidate with the same metric keys. The only place that imports it.

Every call names its run: MLflow's ambient active run belongs to a thread, and a stray MLFLOW_RUN_ID would move it.
"""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from featkd.errors import InputError, RunError
from featkd.result import Candidate, Interval, Result
from reports.page import summary_markdown
from tasks.context import Context
from tasks.stages import stage

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

import mlflow  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

ATTEMPTS = 4
STOP_TIMEOUT_S = 10
DIGEST_LENGTH = 32  # MLflow's column holds 36
VALUE_LENGTH = 500
NOT_PARAMETERS = ("gates", "students")


@stage("mlflow")
def log(context: Context, result: Result, run_dir: Path) -> dict[str, Any]:
    """Track a finished run; returns {tracking_uri, experiment_id, run_id}."""
    with context.log.timed("mlflow") as entry:
        tracked = log_poc(result, run_dir, summary_markdown(result, context.spec.report.languages[0]), context.home)
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
        found = mlflow.MlflowClient(tracking_uri=tracking_uri(home))
        found.search_experiments(max_results=1)
    return found


def log_poc(result: Result, run_dir: Path, summary_markdown: str, home: Path) -> dict[str, Any]:
    """Log the run with its children. `home` is the .featkd folder; `run_dir` holds result.json and report*.html.

    Raises RunError when the store does not answer; the run folder is complete without it.
    """
    try:
        store = client(home)
        experiment = _experiment(store, result, Path(home).resolve())
        with _run(store, experiment, result.run_id, _parent_tags(result, summary_markdown)) as parent:
            _again(store.log_batch, parent, params=_params(result))
            _again(store.log_inputs, parent, datasets=[_dataset(result)])
            for name, candidate in result.candidates.items():
                _log_candidate(store, experiment, parent, name, candidate, result)
            for path in [run_dir / "result.json", *sorted(run_dir.glob("report*.html"))]:
                _again(store.log_artifact, parent, str(path))
    except (MlflowException, OSError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise RunError(f"MLflow at {tracking_uri(home)}: {reason}; the run itself is complete: {run_dir}") from error
    return {"tracking_uri": tracking_uri(home), "experiment_id": experiment, "run_id": parent}


def _again(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Try again when the store is busy or the disk hiccups; what it says about our input is final."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(*arguments, **named)
        except (MlflowException, OSError) as error:
            final = getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
            if final or attempt == ATTEMPTS:
                raise
            time.sleep(0.3 * 2**attempt)


def _experiment(store: mlflow.MlflowClient, result: Result, home: Path) -> str:
    name = result.spec.get("tracking", {}).get("experiment") or result.name
    # the lock is ours alone; on a server that is shared, another client may still be first
    with FileLock(home / "mlflow.lock"):
        if found := _again(store.get_experiment_by_name, name):
            if found.lifecycle_stage == "deleted":
                raise RunError(f"MLflow experiment {name!r} was deleted; restore it or set tracking.experiment")
            return found.experiment_id
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (home / "mlartifacts").as_uri()
        try:
            # the page of training runs, not MLflow's default for agents and prompts
            return store.create_experiment(name, place, {"mlflow.experimentKind": "custom_model_development"})
        except MlflowException:
            return _again(store.get_experiment_by_name, name).experiment_id


@contextlib.contextmanager
def _run(store: mlflow.MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> Iterator[str]:
    """A run's id; the run is FINISHED on leaving, FAILED if that was by an exception."""
    common = {"mlflow.source.name": "featkd", "mlflow.source.type": "LOCAL"}
    run_id = _again(store.create_run, experiment, run_name=name, tags=common | tags).info.run_id
    try:
        yield run_id
    except BaseException:
        with contextlib.suppress(Exception):
            store.set_terminated(run_id, "FAILED")
        raise
    _again(store.set_terminated, run_id)


def _parent_tags(result: Result, description: str) -> dict[str, str]:
    recommendation = result.recommendation
    verdicts = {name: found.verdict.verdict for name, found in result.candidates.items() if found.verdict.verdict}
    return {
        "mlflow.note.content": description,
        "featkd.run_id": result.run_id,
        "featkd.spec_digest": result.spec_digest,
        "featkd.recommendation": recommendation.code,
        "featkd.recommended_candidate": recommendation.candidate or "none",
        "featkd.teacher_adequate": str(result.adequacy.adequate).lower(),
        **{f"verdict.{name}": verdict for name, verdict in verdicts.items()},
    }


def _params(result: Result) -> list[Param]:
    """The spec, flat: data.held_out, training.tokens, ... An assumption {value, source} is its value."""
    flat = dict(_flat({name: part for name, part in result.spec.items() if name not in NOT_PARAMETERS}))
    flat["students"] = ", ".join(student["name"] for student in result.spec.get("students", []))
    flat["gates"] = len(result.spec.get("gates", []))
    # 100 is what one request may carry
    return [Param(key, str(value)[:VALUE_LENGTH]) for key, value in flat.items()][:100]


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and set(value) == {"value", "source"}:
            value = value["value"]
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            yield prefix + name, json.dumps(value) if isinstance(value, list) else value


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


def _log_candidate(
    store: mlflow.MlflowClient, experiment: str, parent: str, name: str, candidate: Candidate, result: Result
) -> None:
    tags = {
        "mlflow.parentRunId": parent,
        "featkd.run_id": result.run_id,
        "candidate": name,
        "arm": candidate.arm,
        "size": candidate.size or "",
        "seed": "" if candidate.seed is None else str(candidate.seed),
        "precision": candidate.precision,
        "verdict": candidate.verdict.verdict or candidate.verdict.why or "",
        "artefact": candidate.artefact or "",
    }
    now = int(time.time() * 1000)
    figures = [Metric(key, value, now, 0) for key, value in metrics(candidate).items()]
    curve = candidate.training.curve if candidate.training else []
    losses = [(int(point["tokens"]), point["validation_loss"]) for point in curve]
    points = [Metric("training/validation_loss", loss, now, tokens) for tokens, loss in losses]
    with _run(store, experiment, name, tags) as run_id:
        shown = {"arm": candidate.arm, "size": candidate.size, "seed": candidate.seed, "precision": candidate.precision}
        params = [Param(key, str(value)) for key, value in shown.items() if value is not None]
        _again(store.log_batch, run_id, metrics=[*figures, *points][:1000], params=params)


def metrics(candidate: Candidate) -> dict[str, float]:
    """What was measured of a candidate, under the keys that all candidates share."""
    latency, memory, money, training = candidate.latency, candidate.memory, candidate.roi, candidate.training
    found: dict[str, float | None] = {}
    for task, score in candidate.quality.tasks.items():
        found[f"quality/{task}"] = score.estimate.value
        found[f"quality/{task}_retained"] = _value(score.retained)
    for task, agreement in candidate.fidelity.tasks.items():
        found[f"fidelity/{task}_agreement"] = agreement.agreement.value
    found |= {
        "latency/ttft_ms_p50": latency.ttft_ms_quantiles.get("p50", _value(latency.ttft_ms)),
        "latency/decode_tokens_per_s": _value(latency.decode_tokens_per_s),
        "latency/decode_speedup": _value(latency.decode_speedup),
        "memory/peak_rss_mb": _mega(_value(memory.peak_rss_bytes)),
        "memory/file_mb": _mega(memory.file_bytes),
        "cost/usd_per_1m_input_tokens": _value(money.usd_per_million_input_tokens),
        "cost/usd_per_1m_output_tokens": _value(money.usd_per_million_output_tokens),
        "roi/monthly_saving_usd": _value(money.monthly_saving_usd),
        "roi/npv_usd": money.npv_usd,
    }
    if training:
        found |= {
            "training/seconds": training.seconds,
            "training/tokens": training.tokens,
            "training/parameters": training.parameters,
        }
    return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}


def _value(interval: Interval | None) -> float | None:
    return interval.value if interval else None


def _mega(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


def serve_ui(home: Path, port: int) -> int:
    """MLflow's own pages on loopback until interrupted, however we end. Raises InputError when the port is taken."""
    uri = tracking_uri(home)
    if uri.startswith(("http://", "https://")):
        raise InputError(f"MLFLOW_TRACKING_URI: {uri} has pages of its own; open them in a browser")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(f"--port {port}: in use; write another one") from None
    client(home)
    places = ["--backend-store-uri", uri, "--artifacts-destination", str(home / "mlartifacts")]
    command = [sys.executable, "-P", "-m", "tasks.watched", "mlflow", "server", *places]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        cwd=home,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(STOP_TIMEOUT_S)
        process.stdin.close()
