"""What is measured of a model beside its accuracy. Each adds to what is known of it, and returns what is to be kept by
name; without it the rest goes on, and what hangs on it is missing."""

from typing import Any

import pandas

from featkd.decide.evidence import Evidence
from featkd.errors import InputError, RunError
from featkd.measure.transfer import told
from featkd.result import Transfer
from featkd.store import Artefact
from tasks import measure, plan, transfer
from tasks.context import Context
from tasks.stages import say
from tasks.train import Model

Kept = dict[str, Artefact]


def guardrails(context: Context, found: Evidence, onnx: Artefact, suites: Artefact) -> Kept:
    """Bias suites and generated texts."""
    try:
        made = measure.guardrails(context, found.name, onnx, suites)
    except (InputError, RunError) as error:
        _told("guardrails", found.name, error)
        found.guards_why, found.failure = "guardrails-failed", str(error)
        return {}
    found.guards = (_table(made, "samples"), _table(made, "generations"))
    return {f"guardrails-{found.name}": made}


def tokens(context: Context, found: Evidence, teacher: Artefact, onnx: Artefact, tasks: Artefact) -> Kept:
    """Next tokens of held-out text, beside the teacher's."""
    try:
        made = transfer.tokens(context, found.name, teacher, onnx, tasks)
    except (InputError, RunError) as error:
        _told("tokens", found.name, error)
        return {}
    found.tokens = _table(made, "tokens")
    return {f"tokens-{found.name}": made}


def layers(context: Context, found: Evidence, teacher: Model, model: Model, blocks: Artefact, tasks: Artefact) -> Kept:
    """Representations of the trained model, whatever precision it is exported in."""
    size = next(size for size in context.spec.students if size.name == found.size)
    name = plan.student_name(found.arm, size.name, found.seed)
    try:
        made = transfer.layers(context, name, teacher, model, size, found.seed, blocks, tasks)
    except Exception as error:  # whatever a family of models raises that has no such states
        _told("layers", name, error)
        found.transfer = Transfer(why="transfer-failed")
        return {}
    found.transfer = told(made.path)
    return {f"layers-{name}": made}


def _told(stage: str, name: str, error: Exception) -> None:
    say(f"{stage} {name}: {' '.join(str(error).split())[:200]}; the rest goes on")


def _table(made: Artefact, name: str) -> Any:
    file = made.path / f"{name}.parquet"
    return pandas.read_parquet(file) if file.is_file() else None
