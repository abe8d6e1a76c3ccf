"""A look at what the champion answered in service: still as it did? If not, it is told, and may be taken back.

audit("poc.yaml", ["logs/*.jsonl"], ".")      # a flow, so that it can be scheduled; `featkd audit` on the command line
"""

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
from featkd.decide import ledger
from featkd.errors import InputError, RunError
from featkd.measure.sequential import Tested, look
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
    home, name = context.home, context.spec.name
    records = [one for one in ledger.whole(home / ledger.FOLDER) if one.get("poc") == name]
    registry = Registry(home, name)
    champion, teacher = registry.champion(), registry.teacher()
    if champion is None or teacher is None:
        raise InputError(f"name: {name} has no champion in MLflow's registry; featkd run and a go make one")
    if champion.candidate == TEACHER:
        say(f"the teacher itself serves as version {champion.number}: there is nothing to hold its answers against")
        return {"verdict": "teacher-serves", "model": name, "version": champion.number}
    earlier = [one for one in records if one["kind"] == "audit" and one["version"] == champion.number]
    after = _after(records, champion, since)
    sample = logs.draw(files, context.spec.audit, after, key=digest([name, champion.number, len(earlier)]).encode())
    counted = {"records": sample.records, "earlier": sample.earlier, "without_prompt": sample.without_prompt,
               "examples": len(sample.rows), "from": sample.first, "until": sample.last}  # fmt: skip
    if len(sample.rows) < FEWEST:
        say(f"{len(sample.rows)} different prompts in {sample.records} records, {sample.earlier} of them not after "
            f"{after}; an audit needs {FEWEST}: nothing is decided")  # fmt: skip
        return {"verdict": "too-few", "model": name, "version": champion.number, **counted}
    made = stages.rescore(
        context,
        sample,
        *(
            promotion.in_store(home, one.artefact, f"{one.candidate} of run {one.run_id}")
            for one in (teacher, champion)
        ),
    )
    tests = look(_answers(made.path), [_answers(_evidence(context, one)) for one in earlier], context.spec.audit)
    return _decided(context, registry, champion, made.key, tests, counted, sample.files, len(earlier) + 1)


def _decided(
    context: Context,
    registry: Registry,
    champion: Version,
    evidence: str,
    tests: list[Tested],
    counted: dict[str, Any],
    files: list[dict[str, Any]],
    number: int,
) -> dict[str, Any]:
    """What was found goes into the ledger; at an alarm the champion is taken back where the spec says so."""
    alarms = [test for test in tests if test.alarm]
    verdict = "alarm" if alarms else "healthy" if number > 1 else "reference"
    record = ledger.append(
        context.home / ledger.FOLDER, "audit", promotion.FEATKD,
        poc=registry.name, **champion.told, verdict=verdict, audit=number, **counted, logs=files, evidence=evidence,
        settings=context.spec.audit.model_dump(mode="json"), tests=[test.model_dump(mode="json") for test in tests],
    )  # fmt: skip
    registry.tag(champion, "audit", f"{verdict}, {counted['until']}, record {record['number']}")
    fail_safe, back = context.spec.audit.fail_safe, None
    if alarms and fail_safe != "none":
        why = f"audit {number}: {', '.join(sorted({test.figure for test in alarms}))}"
        back = promotion.roll_back(
            context.home, registry.name, promotion.FEATKD, why, to_teacher=fail_safe == "teacher", only=champion,
            audit=record["hash"],
        )  # fmt: skip
    return {
        "verdict": verdict,
        "model": registry.name,
        "version": champion.number,
        "audit": number,
        **counted,
        "alarms": [test.model_dump(mode="json") for test in alarms],
        "champion": {name: back[name] for name in champion.told} if back else champion.told,
        "ledger": {"record": (back or record)["number"], "hash": (back or record)["hash"]},
    }


def _after(records: list[Record], champion: Version, since: str | None) -> datetime | None:
    """When the champion began to serve, or the last audit of it ended; `since` where it is given."""
    if since:
        try:
            return logs.as_time(since)
        except ValueError:
            raise InputError(f"--since: {since!r} is no time; write e.g. 2026-11-26T08:00:00Z") from None
    times = [
        one["until"] if one["kind"] == "audit" else one["time"]
        for one in records
        if one["kind"] in ("promotion", "rollback", "audit") and one["version"] == champion.number
    ]
    return max(map(logs.as_time, times), default=None)


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
        say(f"  {test['figure']:<14} {test['value']:.3g}{then} (p {test['p']:.2g}, {test['looks']} audits together)")
    if outcome["verdict"] in ("alarm", "healthy", "reference"):
        served = outcome["champion"]
        say(f"audit {outcome['audit']} of {spec.name}, version {outcome['version']}: {outcome['verdict']}; champion is "
            f"version {served['version']}, {served['candidate']}")  # fmt: skip
    emit_event(
        f"featkd.audit.{outcome['verdict']}",
        resource={"prefect.resource.id": f"featkd.poc.{spec.name}", "prefect.resource.name": spec.name},
        payload=outcome,
    )
