"""The student that serves now, measured beside this run's students where a gate is against it."""

from typing import NamedTuple

import pandas

from featkd import result
from featkd.decide.evidence import Evidence
from featkd.errors import InputError
from featkd.result import Comparison
from featkd.store import Artefact
from flows import beside, promotion
from tasks import measure
from tasks.context import Context
from tasks.registry import TEACHER, Registry, Version
from tasks.stages import say

NAME = "champion"
OF_TIMINGS = ("latency", "memory", "roi")
OTHER_TOKENIZER = "other-tokenizer"


class Champion(NamedTuple):
    version: Version
    onnx: Artefact
    evidence: Evidence

    def measure(self, context: Context, teacher: Artefact, tasks: Artefact, suites: Artefact | None) -> beside.Kept:
        """Its accuracy, and guardrails where a gate asks; returns what is to be kept. Raises RunError, InputError."""
        accuracy = measure.accuracy(context, NAME, self.onnx, tasks)
        self.evidence.samples = pandas.read_parquet(accuracy.path / "samples.parquet")
        kept = {f"accuracy-{NAME}": accuracy}
        if _tokenizer(self.onnx) != _tokenizer(teacher):
            self.evidence.why = self.evidence.guards_why = OTHER_TOKENIZER
            if _asked(context) - {"quality", "fidelity"}:
                say(f"version {self.version.number}, the champion, has another tokenizer: prompts and times are of "
                    "tokens, so gates against it on guardrails, speed, memory and money find nothing")  # fmt: skip
        elif suites is not None and "guardrails" in _asked(context):
            kept |= beside.guardrails(context, self.evidence, self.onnx, suites)
        return kept

    def timed(self, context: Context) -> bool:
        """Does a gate ask for its times? Of a model with other tokens they say nothing."""
        return bool(_asked(context) & set(OF_TIMINGS)) and self.evidence.why != OTHER_TOKENIZER

    def told(self, comparisons: list[Comparison]) -> result.Champion:
        """For the result."""
        why = OTHER_TOKENIZER if self.evidence.why == OTHER_TOKENIZER else None
        return result.Champion(**self.version.told, comparisons=comparisons, why=why)


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
    names = ("tokenizer.*", "vocab.*", "merges.txt", "spiece.model")
    return {file.name: file.read_bytes() for name in names for file in onnx.path.glob(name)}
