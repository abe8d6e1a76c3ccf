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


@stage("rescore")
def rescore(context: Context, sample: logs.Sample, teacher: Artefact, champion: Artefact) -> Artefact:
    """answers.parquet of the sample; the texts stay where they are."""
    inputs = {
        "answers": digest(sample.rows),
        "teacher": teacher.key,
        "champion": champion.key,
        "format": context.spec.data.model_dump(mode="json", include=FORMAT),
        "device": context.device,
    }

    def build(out: Path) -> dict[str, Any]:
        from featkd.measure.rescore import rescore as score

        return score(sample.rows, teacher.path, champion.path, context.spec.data, context.threads, context.device, out)

    return obtain(
        context.log, "rescore", context.store, "audit",
        artefact_key(inputs, ["measure", "deploy", "data"], environment.onnxruntime_package()), build,
        note=lambda made: f"{made.meta['answers']} answers, {made.meta['cut']} cut to the models' length",
    )  # fmt: skip
