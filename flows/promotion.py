"""Which version is champion in MLflow's registry: offered by a run, approved by a person, taken back by either.

Every move of the alias is a record in the ledger; where that cannot be written, the alias is put back. After a rollback
only a person promotes.
"""

from pathlib import Path
from typing import Any

from filelock import FileLock

from featkd.decide import ledger, succession
from featkd.errors import InputError
from featkd.result import Result
from featkd.store import Artefact, Store
from tasks.context import Context
from tasks.registry import TEACHER, Registry, Version

LOCK = "registry.lock"
FEATKD = "featkd"


def offer(context: Context, result: Result, verdict: ledger.Record) -> dict[str, Any] | None:
    """The recommended student to the registry: as champion where the spec lets it and the teacher is it, or a student
    that it was held against by a blocking gate; else to wait.

    verdict: the record of what the gates said. Returns {model, version, alias}, None without a recommendation.
    """
    candidate, home = result.recommendation.candidate, context.home
    if result.recommendation.code != "replace" or candidate is None:
        return None
    registry = Registry(home, result.name)
    with context.log.timed("registry") as entry, FileLock(home / LOCK):
        records = _records(home, result.name)
        teacher, student = _registered(registry, home, result, candidate)
        champion = registry.champion()
        why = _why(result, candidate, champion)
        last = next(reversed(succession.moves(records)), None)
        free = context.spec.promotion == "automatic" and not (last and last["kind"] == "rollback")
        if champion and champion.number == student.number:
            alias, entry["note"] = "champion", f"version {student.number} is champion already"
        elif why and free:
            _promote(registry, home, student, champion or teacher, FEATKD, f"a go by record {verdict['number']}, {why}")
            alias, entry["note"] = "champion", f"version {student.number} is champion"
        else:
            registry.challenge(student)
            alias = "challenger"
            entry["note"] = f"version {student.number} waits for featkd approve {result.run_id} --by NAME --reason TEXT"
    return {"model": result.name, "version": student.number, "alias": alias}


def _why(result: Result, candidate: str, champion: Version | None) -> str | None:
    """A go may replace this champion: for what reason, if there is any."""
    if champion is None or champion.candidate == TEACHER:
        return "and no student was champion"
    rules = result.candidates[candidate].verdict.gates
    held = any(rule.against == "champion" and rule.severity == "block" for rule in rules)
    if held and result.champion and result.champion.version == champion.number:
        return f"held against version {champion.number} too"
    return None


def approve(home: Path, result: Result, candidate: str | None, by: str, reason: str) -> dict[str, Any]:
    """A person makes a student champion; returns the record.

    Raises InputError: no reason, no go of the gates nor of an override, or champion already.
    """
    _check_reason(reason)
    if not by.strip():
        raise InputError("--by: write who decides")
    name = candidate or result.recommendation.candidate
    if name is None:
        raise InputError(f"RUN: {result.run_id} recommends no student; name one that was overridden to go: --candidate")
    found = result.candidates.get(name)
    if found is None or found.arm == TEACHER:
        students = [name for name, one in result.candidates.items() if one.arm != TEACHER]
        raise InputError(f"--candidate: {name!r} is not one of {', '.join(students)}")
    _check_go(_records(home, result.name), result, name)
    registry = Registry(home, result.name)
    with FileLock(home / LOCK):
        teacher, student = _registered(registry, home, result, name)
        champion = registry.champion()
        if champion and champion.number == student.number:
            raise InputError(f"RUN: version {student.number}, {name}, is champion already")
        return _promote(registry, home, student, champion or teacher, by, reason.strip())


def roll_back(
    home: Path, name: str, by: str, reason: str, to_teacher: bool = False, only: Version | None = None, **because: Any
) -> dict[str, Any]:
    """What served before is champion again, or its own teacher; returns the record.

    only: nothing is moved unless this one still is champion. because: goes into the record.
    Raises InputError where there is nothing to go back to.
    """
    _check_reason(reason)
    registry = Registry(home, name)
    with FileLock(home / LOCK):
        records = _records(home, name)
        champion = registry.champion()
        if champion is None:
            raise InputError(f"NAME: {name!r} has no champion in MLflow's registry; see featkd ui, page Models")
        if only and only.number != champion.number:
            raise InputError(
                f"version {only.number} is no longer champion, version {champion.number} is: nothing moved"
            )
        before = None if to_teacher else succession.before(records, champion.artefact)
        to = registry.of(before["artefact"] if before else champion.teacher)
        if to is None or to.number == champion.number:
            raise InputError(f"NAME: version {champion.number} of {name} is the first: there is none to go back to")
        with registry.moved(to):
            return ledger.append(
                home / ledger.FOLDER, "rollback", by,
                poc=name, **to.told, taken_back=champion.told, reason=reason.strip(), **because,
            )  # fmt: skip


def _check_go(records: list[ledger.Record], result: Result, name: str) -> None:
    """By the ledger, not by a file that anyone may edit: what the gates said of this very model, or a person since; of
    a run that was priced again, what a person said of its measurements holds."""
    of_run = [one for one in records if one.get("run_id") in (result.run_id, result.priced_from)]
    told = (one for one in of_run if one["kind"] == "verdict" and one["run_id"] == result.run_id)
    verdict = next((one["candidates"].get(name) for one in told), None)
    if verdict is None or verdict["artefact"] != result.candidates[name].artefact:
        raise InputError(f"RUN: no verdict on {name} of {result.run_id}, as it is, is in the ledger; run it again")
    said = [one["verdict"] for one in of_run if one["kind"] == "override" and one["candidate"] == name]
    told = said[-1] if said else verdict["verdict"]
    if told != "go":
        raise InputError(f"--candidate: {name} is {told or 'not judged'}; featkd override comes first, if it has to be")


def _records(home: Path, name: str) -> list[ledger.Record]:
    """Of a PoC. Raises RunError where the chain is broken."""
    return [one for one in ledger.whole(home / ledger.FOLDER) if one.get("poc") == name]


def _promote(registry: Registry, home: Path, student: Version, before: Version, by: str, reason: str) -> dict[str, Any]:
    with registry.moved(student):
        return ledger.append(
            home / ledger.FOLDER, "promotion", by,
            poc=registry.name, **student.told, replaced=before.told, reason=reason,
        )  # fmt: skip


def _registered(registry: Registry, home: Path, result: Result, candidate: str) -> tuple[Version, Version]:
    """The teacher's version and the student's."""
    names = (TEACHER, candidate)
    teacher, student = (registry.register(result, name, exported(home, result, name)) for name in names)
    return teacher, student


def exported(home: Path, result: Result, candidate: str) -> Artefact:
    return in_store(home, result.candidates[candidate].artefact or "", f"{candidate} of run {result.run_id}")


def in_store(home: Path, artefact: str, what: str) -> Artefact:
    """An exported model, its files unchanged. Raises InputError where it is not here."""
    found = Store(home / "store").get("onnx", artefact)
    if found is None:
        raise InputError(f"--root: the exported {what} is not in {home / 'store'}; work where the PoC was run")
    return found


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise InputError("--reason: say why, in a sentence that an auditor will read")
