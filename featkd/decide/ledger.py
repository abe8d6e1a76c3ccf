"""Every decision, one immutable file each, chained by hash: who or what decided what, on which grounds.

    .featkd/ledger/00000007-5f0c6b2a91de.json    number, and the beginning of its hash

A record holds the hash of the one before it, so none can be changed, left out or put in between without breaking the
chain. That the newest ones were cut off is seen only by who kept the last hash: every run prints its own. Files are
written beside their place and renamed into it, under a lock, and never opened again for writing.
"""

import getpass
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from featkd.errors import InputError, RunError
from featkd.result import Override, Result

SCHEMA = "featkd.decision/1"
FIRST = "0" * 64
FOLDER = "ledger"  # in .featkd
Kind = Literal["verdict", "override", "promotion", "rollback", "audit"]
Record = dict[str, Any]


def append(folder: Path, kind: Kind, decided_by: str, **told: Any) -> Record:
    """Write the next record and return it. `decided_by`: a person, or "featkd". told: plain JSON values.

    Raises RunError where the chain is broken: nothing is added to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        known = whole(folder)
        record = {
            "schema": SCHEMA,
            "number": len(known) + 1,
            "previous": known[-1]["hash"] if known else FIRST,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "kind": kind,
            "decided_by": decided_by,
            **told,
        }
        record["hash"] = _hash(record)
        name = f"{record['number']:08d}-{record['hash'][:12]}.json"
        partial = folder / f".{name}.{os.getpid()}"
        with partial.open("x", encoding="utf-8") as file:
            json.dump(record, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / name)
    return record


def read(folder: Path) -> list[Record]:
    """The records in the order of their numbers; what cannot be read is a record that says so."""
    return [_read(file) for file in sorted(folder.glob("[0-9]*.json"))]


def whole(folder: Path) -> list[Record]:
    """As `read`. Raises RunError where the chain is broken."""
    records = read(folder)
    if problems := verify(records):
        raise RunError(f"the ledger {folder} is broken, nothing is done: {problems[0]}; see featkd audit --verify, "
                       "move it away to begin another")  # fmt: skip
    return records


def verify(records: list[Record]) -> list[str]:
    """What is wrong with the chain, in words; nothing if it is whole."""
    problems, previous = [], FIRST
    for number, record in enumerate(records, start=1):
        if record.get("unreadable"):
            problems.append(f"record {number}: {record['unreadable']}")
        elif record.get("number") != number:
            problems.append(f"record {number} is missing: the next one is {record.get('number')}")
        elif record.get("hash") != _hash(record):
            problems.append(f"record {number} was changed: its hash is not that of what it says")
        elif record.get("previous") != previous:
            problems.append(f"record {number} does not follow record {number - 1}: it was written after another one")
        if problems:
            return problems  # what comes after hangs on it
        previous = record["hash"]
    return problems


def verdict(folder: Path, result: Result) -> Record:
    """What the gates said of a run: candidates with thresholds and figures, and the recommendation."""
    return append(
        folder,
        "verdict",
        "featkd",
        poc=result.name,
        run_id=result.run_id,
        priced_from=result.priced_from,
        result_sha256=hashlib.sha256(result.to_json().encode()).hexdigest(),
        spec_digest=result.spec_digest,
        data_digest=result.data.digest,
        recommendation=result.recommendation.model_dump(mode="json"),
        champion=result.champion and result.champion.model_dump(mode="json", exclude={"comparisons"}),
        candidates={
            name: {
                "artefact": found.artefact,
                "weights_sha256": found.training and found.training.weights_sha256,
                **found.verdict.model_dump(mode="json"),
            }
            for name, found in result.candidates.items()
        },
        evidence=result.evidence,
        versions=result.environment.get("versions"),
        commit=result.environment.get("git_commit"),
    )


def override(folder: Path, result: Result, candidate: str, verdict: str, reason: str, by: str | None) -> Record:
    """A person decides otherwise than the gates. Raises InputError: no such candidate, no reason, the same verdict."""
    students = {name: found for name, found in result.candidates.items() if found.arm != "teacher"}
    if candidate not in students:
        raise InputError(f"--candidate: {candidate!r} is not one of {', '.join(students)}")
    if not reason.strip():
        raise InputError("--reason: say why, in a sentence that an auditor will read")
    said = students[candidate].verdict.verdict
    of = (result.run_id, candidate)
    earlier = [one for one in overrides(folder, result.name) if (one.run_id, one.candidate) == of]
    if verdict == (earlier[-1].verdict if earlier else said):
        who = earlier[-1].decided_by if earlier else "the gates"
        raise InputError(f"--verdict: {verdict} is what {who} said of {candidate}: there is nothing to override")
    return append(
        folder,
        "override",
        by or user(),
        poc=result.name,
        run_id=result.run_id,
        candidate=candidate,
        artefact=students[candidate].artefact,
        gates_said=said,
        verdict=verdict,
        reason=reason.strip(),
    )


def user() -> str:
    """Who runs this command. Raises InputError where that is not known."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError("--by: this machine has no name for its user; write who decides") from None


def overrides(folder: Path, poc: str) -> list[Override]:
    """Of a PoC, the oldest first: every later report shows them."""
    fields = Override.model_fields.keys()
    records = [one for one in read(folder) if one.get("kind") == "override" and one.get("poc") == poc]
    return [Override(**{field: one[field] for field in fields}) for one in records if fields <= one.keys()]


def _read(file: Path) -> Record:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {"unreadable": f"{file.name} cannot be read: {error}"}
    return record if isinstance(record, dict) else {"unreadable": f"{file.name} is no record"}


def _hash(record: Record) -> str:
    told = {name: value for name, value in record.items() if name != "hash"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
