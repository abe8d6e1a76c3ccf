"""The student that serves now, measured beside this run's students where a gate is against it."""

from typing import NamedTuple

import pandas

from featkd.decide.evidence import Evidence
from featkd.errors import InputError
from featkd.store import Artefact
from flows import beside, promotion
from tasks import measure
from tasks.context import Context
from tasks.registry import TEACHER, Registry, Version
from tasks.stages import say

NAME = "champion"
OF_TIMINGS = ("latency", "memory", "roi")


class Champion(NamedTuple):
    version: Version
    onnx: Artefact
    evidence: Evidence

    def measure(self, context: Context, tasks: Artefact, suites: Artefact | None) -> beside.Kept:
        """Its accuracy, and guardrails where a gate asks; returns what is to be kept. Raises RunError, InputError."""
        accuracy = measure.accuracy(context, NAME, self.onnx, tasks)
        self.evidence.samples = pandas.read_parquet(accuracy.path / "samples.parquet")
        kept = {f"accuracy-{NAME}": accuracy}
        if suites is not None and "guardrails" in _asked(context):
            kept |= beside.guardrails(context, self.evidence, self.onnx, suites)
        return kept

    def timed(self, context: Context, teacher: Artefact) -> bool:
        """Does a gate ask for its times? Of a model with other tokens they say nothing."""
        if not _asked(context) & set(OF_TIMINGS):
            return False
        alike = _tokenizer(self.onnx) == _tokenizer(teacher)
        if not alike:
            say(f"version {self.version.number}, the champion, has another tokenizer: its times are not compared")
        return alike


def serving(context: Context) -> Champion | None:
    """None where no gate asks for it, and while the teacher serves.

    Raises InputError where its model is not here, RunError where MLflow does not answer.
    """
    if not _asked(context):
        return None
    version = Registry(context.home, context.spec.name).champion()
    if version is None or version.candidate == TEACHER:
        return None
    try:
        onnx = promotion.in_store(context.home, version.artefact, f"{version.candidate} of run {version.run_id}")
    except InputError as error:
        raise InputError(f"gates: are against version {version.number}, the champion; {error}") from None
    return Champion(version, onnx, Evidence(NAME, NAME, artefact=onnx.key))


def _asked(context: Context) -> set[str]:
    """Sections of the gates against it."""
    return {rule.metric.split(".")[0] for rule in context.spec.rules(NAME)}


def _tokenizer(onnx: Artefact) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in onnx.path.glob("tokenizer.*")}
