"""The commands about decisions: which student serves, who says so, and whether it still does what it did."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from featkd import specfile
from featkd.errors import InputError
from flows import runtime, status
from flows.terminal import DONE, FAILED, NO_GO, Overrides, Root, Run, emit, home_of, say

By = Annotated[str | None, typer.Option(help="Who decides. Default: the user of this machine.")]
Reason = Annotated[str, typer.Option(help="Why; an auditor reads it.")]


def override(
    run: Run,
    candidate: Annotated[str, typer.Option(help="The student, as the report names it.")],
    reason: Reason,
    verdict: Annotated[Literal["go", "no-go"], typer.Option(help="What is decided instead.")] = "go",
    by: By = None,
    root: Root = Path("."),
) -> int:
    """Decide otherwise than the gates. It is kept in the ledger and shown in every later report."""
    from featkd.decide import ledger

    result = status.read_result(status.find_run(home_of(root), run))
    record = ledger.override(home_of(root) / ledger.FOLDER, result, candidate, verdict, reason, by)
    say(f"record {record['number']}: {record['decided_by']} says {verdict}, the gates {record['gates_said']}")
    emit(record)
    return DONE


def approve(
    run: Run,
    by: Annotated[str, typer.Option(help="Who decides.")],
    reason: Reason,
    candidate: Annotated[
        str | None, typer.Option(help="The student, as the report names it. Default: the recommended one.")
    ] = None,
    root: Root = Path("."),
) -> int:
    """Make a student the champion in MLflow's registry: one that is a go, or that was overridden to be."""
    result = status.read_result(status.find_run(home_of(root), run))
    with runtime.quiet():
        from flows import promotion

        record = promotion.approve(home_of(root), result, candidate, by, reason)
    say(
        f"record {record['number']}: {record['candidate']}, version {record['version']} of {record['poc']}, is champion"
    )
    emit(record)
    return DONE


def rollback(
    name: Annotated[str, typer.Argument(help="The name of the PoC.")],
    reason: Reason,
    by: By = None,
    to_teacher: Annotated[bool, typer.Option("--to-teacher", help="Not to the version before, but to it.")] = False,
    root: Root = Path("."),
) -> int:
    """Make the version before champion again in MLflow's registry; before the first student it is the teacher."""
    from featkd.decide import ledger

    with runtime.quiet():
        from flows import promotion

        record = promotion.roll_back(home_of(root), name, by or ledger.user(), reason, to_teacher)
    say(f"record {record['number']}: {record['candidate']}, version {record['version']} of {name}, is champion again")
    emit(record)
    return DONE


def audit(
    spec: Annotated[Path | None, typer.Argument(help="The spec of the PoC whose champion answered.")] = None,
    logs: Annotated[list[str] | None, typer.Argument(help="What it answered: JSON lines, files or globs.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Look at what is later. Default: than the last audit, or than when it became champion."),
    ] = None,
    set_: Overrides = None,
    fail_on: Annotated[Literal["alarm"] | None, typer.Option(help="Exit with status 3 at an alarm.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain of all decisions.")] = False,
    root: Root = Path("."),
) -> int:
    """Look at what the champion answered in service: still as it did? Without a spec, show all decisions."""
    if spec is None:
        return _decisions(home_of(root), verify)
    if not logs or verify:
        raise InputError("LOGS: missing" if not logs else "--verify: goes without a spec")
    specfile.load(spec, set_ or [])
    with runtime.session(home_of(root), "audit") as session:
        from flows import audit

        files = [str(file.resolve()) for file in audit.files(logs)]
        session.ready()
        outcome = audit.audit(str(spec), files, str(root), since, set_)
    emit(outcome)
    return NO_GO if fail_on and outcome["verdict"] == "alarm" else DONE


def _decisions(home: Path, verify: bool) -> int:
    from featkd.decide import ledger

    records = ledger.read(home / ledger.FOLDER)
    for record in records:
        about = record.get("verdict") or (record.get("recommendation") or {}).get("code", "")
        say(f"{record.get('number', '?'):>5} {record.get('time', ''):<26} {record.get('kind', ''):<10} "
            f"{record.get('run_id', ''):<24} {record.get('candidate', ''):<20} {about:<14} "
            f"{record.get('decided_by', '')}")  # fmt: skip
    problems = ledger.verify(records) if verify else []
    for problem in problems:
        say(problem)
    if verify and not problems:
        say(f"{len(records)} records, the chain is whole")
    emit({"records": len(records), "verified": not problems if verify else None, "problems": problems})
    return FAILED if problems else DONE
