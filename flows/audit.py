"""A look at what the champion answered in service: still as it did? If not, it is told, and may be taken back.

audit("poc.yaml", ["logs/*.jsonl"], ".")      # a flow, so that it can be scheduled; `featkd audit` on the command line
"""

import contextlib
import glob
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas
from filelock import FileLock
from prefect import flow
from prefect.events import emit_event

from featkd import specfile
from featkd.data import logs
from featkd.decide import ledger, succession
from featkd.errors import InputError, RunError
from featkd.measure.sequential import look
from featkd.spec import Spec, digest
from flows import promotion
from tasks import audit as stages
from tasks.context import Context
from tasks.registry import TEACHER, Registry, Version
from tasks.stages import say

FEWEST = 30
LOCK = "audit.lock"
Record = ledger.Record


@flow(name="audit", validate_parameters=False, persist_result=False)
def audit(
    spec: str, logs: list[str], root: str = ".", since: str | None = None, overrides: list[str] | None = None
) -> dict[str, Any]:
    """One look. spec: the YAML file. logs: JSON lines, files or globs. since: what is not younger is left out."""
    found = specfile.load(spec, overrides or [])
    context = Context(found, Path(root).resolve())
    context.home.mkdir(parents=True, exist_ok=True)
    with FileLock(context.home / LOCK):
        outcome = _look(context, files(logs), since)
    _tell(found, outcome)
    return outcome


def files(patterns: list[str]) -> list[Path]:
    """Raises InputError for what is no file."""
    found = []
    for pattern in patterns:
        names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))
        if not names:
            raise InputError(f"LOGS: no file {pattern}; write JSON lines, each with a prompt, a response and a time")
        found += [Path(name) for name in names]
    return found


def _look(context: Context, files: list[Path], since: str | None) -> dict[str, Any]:
    home, name, asked = context.home, context.spec.name, context.spec.audit
    records = [one for one in ledger.whole(home / ledger.FOLDER) if one.get("poc") == name]
    registry = Registry(home, name)
    champion = registry.champion()
    if champion is None:
        raise InputError(f"name: {name} has no champion in MLflow's registry; featkd run and a go make one")
    if champion.candidate == TEACHER:
        say(f"the teacher itself serves as version {champion.number}: there is nothing to hold its answers against")
        return {"verdict": "teacher-serves", "model": name, "version": champion.number}
    unrecorded = _unrecorded(records, champion)
    if alarm := succession.unfinished(records, champion.artefact):
        say(f"audit {alarm['audit']} raised an alarm and took nothing back: that is done now")
        return _outcome(registry, champion, alarm, _taken_back(context, registry, champion, alarm))
    earlier = succession.audits(records, champion.artefact, stages.method(context))
    sample = logs.draw(
        files, asked, _after(records, champion, since), digest([champion.artefact, len(records)]).encode()
    )
    sound = [one for one in earlier if one["verdict"] != "alarm"]
    fewest, which = (FEWEST, "an audit") if sound else (asked.examples, "the first audit (audit.examples)")
    if len(sample.rows) < fewest:
        say(f"{len(sample.rows)} different prompts in {sample.counts}; {which} needs {fewest}: nothing is decided")
        return {"verdict": "too-few", "model": name, "version": champion.number, **_counted(sample)}
    record = _judged(context, champion, sample, sound, len(earlier) + 1, unrecorded)
    failing = record["verdict"] == "alarm" and asked.fail_safe != "none"
    return _outcome(registry, champion, record, _taken_back(context, registry, champion, record) if failing else None)


def _judged(
    context: Context, champion: Version, sample: logs.Sample, before: list[Record], number: int, unrecorded: bool
) -> Record:
    """What teacher and tests say of the sample, on record. before: audits that it is held against."""
    models = [
        promotion.in_store(context.home, artefact, f"{who} of run {champion.run_id}")
        for artefact, who in ((champion.teacher, TEACHER), (champion.artefact, champion.candidate))
    ]
    made = stages.rescore(context, sample, *models)
    tests = look(_answers(made.path), [_answers(_evidence(context, one)) for one in before], context.spec.audit)
    alarmed = any(test.alarm for test in tests)
    return ledger.append(
        context.home / ledger.FOLDER, "audit", promotion.FEATKD,
        poc=context.spec.name, **champion.told, verdict="alarm" if alarmed else "healthy" if before else "reference",
        audit=number, **_counted(sample), unrecorded=unrecorded, logs=sample.files, evidence=made.key,
        method=stages.method(context), settings=context.spec.audit.model_dump(mode="json"),
        tests=[test.model_dump(mode="json") for test in tests],
    )  # fmt: skip


def _counted(sample: logs.Sample) -> dict[str, Any]:
    return {**sample.counts, "examples": len(sample.rows), "from": sample.first, "until": sample.last}


def _taken_back(context: Context, registry: Registry, champion: Version, alarm: Record) -> Record:
    figures = ", ".join(sorted({test["figure"] for test in alarm["tests"] if test["alarm"]}))
    return promotion.roll_back(
        context.home, registry.name, promotion.FEATKD, f"audit {alarm['audit']}: {figures}",
        to_teacher=alarm["settings"]["fail_safe"] == "teacher", only=champion, audit=alarm["hash"],
    )  # fmt: skip


def _outcome(registry: Registry, champion: Version, record: Record, back: Record | None) -> dict[str, Any]:
    """What the command prints and the event carries."""
    with contextlib.suppress(RunError):  # a tag for those who look at MLflow's page
        registry.tag(champion, "audit", f"{record['verdict']}, until {record['until']}, record {record['number']}")
    told = ("verdict", "audit", *logs.COUNTS, "examples", "from", "until", "unrecorded")
    return {
        "model": registry.name,
        "version": champion.number,
        **{name: record[name] for name in told},
        "alarms": [test for test in record["tests"] if test["alarm"]],
        "champion": {name: back[name] for name in champion.told} if back else champion.told,
        "ledger": {"record": (back or record)["number"], "hash": (back or record)["hash"]},
    }


def _unrecorded(records: list[Record], champion: Version) -> bool:
    """Did something else than a decision on record make it champion?"""
    moves = [one["version"] for one in succession.moves(records)]
    if moves[-1:] == [champion.number]:
        return False
    last = f"the last decision on record made it version {moves[-1]}" if moves else "no decision is on record"
    say(f"version {champion.number} is champion in MLflow, and {last}: it was moved by hand, from elsewhere, or by a "
        "command that was killed")  # fmt: skip
    return True


def _after(records: list[Record], champion: Version, since: str | None) -> datetime:
    """When the champion began to serve, or the last audit of it ended; `since` where it is given."""
    if since:
        try:
            return logs.as_time(since)
        except ValueError:
            raise InputError(f"--since: {since!r} is no time; write e.g. 2026-11-26T08:00:00Z") from None
    times = [
        one["until"] if one["kind"] == "audit" else one["time"]
        for one in succession.service(records, champion.artefact)
        if one["kind"] in ("audit", *succession.MOVES) and one["artefact"] == champion.artefact
    ]
    if not times:
        raise InputError(f"--since: no decision on record made version {champion.number} champion; write when it was")
    return max(map(logs.as_time, times))


def _evidence(context: Context, record: Record) -> Path:
    found = context.store.get("audit", record["evidence"])
    if found is None:
        raise RunError(f"the answers of audit {record['audit']} (record {record['number']}) are not in "
                       f"{context.store.root}, or were changed: there is nothing to compare with")  # fmt: skip
    return found.path


def _answers(folder: Path) -> pandas.DataFrame:
    return pandas.read_parquet(folder / "answers.parquet")


def _tell(spec: Spec, outcome: dict[str, Any]) -> None:
    """People on stderr, automations by an event."""
    for test in outcome.get("alarms", []):
        then = f", {test['reference']:.3g} at the first audit" if test["reference"] is not None else ""
        over = f"last {test['looks']} audits" if test["looks"] > 1 else "this audit"
        say(f"  {test['figure']:<14} {test['value']:.3g}{then} ({over}, p {test['p']:.2g})")
    if outcome["verdict"] in ("alarm", "healthy", "reference"):
        served = outcome["champion"]
        say(f"audit {outcome['audit']} of {spec.name}, version {outcome['version']}: {outcome['verdict']}; champion is "
            f"version {served['version']}, {served['candidate']}")  # fmt: skip
    emit_event(
        f"featkd.audit.{outcome['verdict']}",
        resource={"prefect.resource.id": f"featkd.poc.{spec.name}", "prefect.resource.name": spec.name},
        payload=outcome,
    )
