"""Stage rescore: what the teacher says of a champion's answers in service."""

from pathlib import Path
from typing import Any

from featkd import environment
from featkd.data import logs
from featkd.spec import digest
from featkd.store import Artefact, artefact_key
from tasks.context import Context
from tasks.stages import obtain, stage

FORMAT = {"prompt_field", "prompt_format"}  # how a prompt becomes tokens


ROOMS = ["measure/rescore", "measure/generations", "measure/scoring", "data/tokens", "deploy/session"]


def method(context: Context) -> str:
    """Digest of how answers become figures: those of another method cannot be compared."""
    data = context.spec.data.model_dump(mode="json", include=FORMAT)
    return artefact_key({"format": data, "device": context.device}, ROOMS)


@stage("rescore")
def rescore(context: Context, sample: logs.Sample, teacher: Artefact, champion: Artefact) -> Artefact:
    """answers.parquet of the sample; the texts stay where they are."""
    inputs = {
        "answers": digest(sample.rows),
        "teacher": teacher.key,
        "champion": champion.key,
        "method": method(context),
    }

    def build(out: Path) -> dict[str, Any]:
        from featkd.measure.rescore import rescore as score

        return score(sample.rows, teacher.path, champion.path, context.spec.data, context.threads, context.device, out)

    return obtain(
        context.log, "rescore", context.store, "audit",
        artefact_key(inputs, ROOMS, environment.onnxruntime_package()), build,
        note=lambda made: f"{made.meta['answers']} answers, {made.meta['cut']} cut to the models' length",
    )  # fmt: skip
