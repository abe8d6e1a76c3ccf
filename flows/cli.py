"""The `featkd` command. Prefect, MLflow and torch are imported by the commands that need them, and by no other.

People read stderr, programs read the last line of stdout: one JSON document. Exit status: 0 done, 1 failed,
2 the input is wrong, 3 the gates said no and `--fail-on no-go` was given, 130 interrupted.
"""

import argparse
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featkd import specfile
from featkd.errors import InputError, RunError
from featkd.spec import Spec
from flows import decisions, runtime, status
from flows.terminal import DONE, FAILED, INTERRUPTED, NO_GO, WRONG_INPUT, Overrides, Root, Run, emit, home_of, say

SAID_NO = ("keep-teacher", "teacher-inadequate")

app = typer.Typer(
    help="Can a smaller model replace this one, what would it save, and how sure are we?",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for command in (decisions.override, decisions.approve, decisions.rollback, decisions.audit):
    app.command()(command)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="The spec, a YAML file.")],
    set_: Overrides = None,
    root: Root = Path("."),
    fail_on: Annotated[
        Literal["no-go"] | None, typer.Option(help="Exit with status 3 when no candidate may replace the teacher.")
    ] = None,
) -> int:
    """Run the whole PoC: spec in, report out. What is already done is reused."""
    poc_spec = specfile.load(spec, set_ or [])
    home = home_of(root)
    with runtime.session(home, "run", hub=runtime.needs_hub(poc_spec)) as session:
        from flows import poc

        session.ready()
        outcome = poc.run(poc_spec, root.resolve())
    emit(outcome)
    return NO_GO if fail_on and outcome["recommendation"]["code"] in SAID_NO else DONE


@app.command()
def validate(
    spec: Annotated[Path | None, typer.Argument(help="The spec, a YAML file.")] = None,
    set_: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a spec instead.")] = False,
) -> int:
    """Check a spec without running it."""
    if schema:
        emit(Spec.model_json_schema())
    elif spec is None:
        raise InputError("SPEC: missing; write featkd validate SPEC or featkd validate --schema")
    else:
        found = specfile.load(spec, set_ or [])
        names = [candidate.name for candidate in found.candidates()]
        say(f"{spec} is valid: teacher, {', '.join(names)}")
        emit({"valid": True, "name": found.name, "digest": found.digest(), "candidates": ["teacher", *names]})
    return DONE


@app.command()
def report(
    run: Run,
    lang: Annotated[Literal["en", "ja"], typer.Option(help="The language of the page.")] = "en",
    root: Root = Path("."),
) -> int:
    """Write the report page of a finished run again, from its result document and what persons decided since."""
    from featkd.decide import ledger
    from reports.page import PAGES, render

    folder = status.find_run(home_of(root), run)
    result = status.read_result(folder)
    decided = ledger.overrides(home_of(root) / ledger.FOLDER, result.name)
    result = result.model_copy(update={"overrides": decided or result.overrides})
    page = folder / PAGES[lang]
    page.write_text(render(result, lang), encoding="utf-8")
    say(f"written: {page}")
    emit({"run_id": result.run_id, "report": str(page), "lang": lang})
    return DONE


@app.command("roi")
def roi_(run: Run, set_: Overrides = None, root: Root = Path(".")) -> int:
    """Price a finished run again, with other figures of `cost` or `teacher.serving`: a new version of it, and of its
    report."""
    from flows import repricing
    from reports.page import PAGES

    home = home_of(root)
    folder = status.find_run(home, run)
    out, result, record = repricing.reprice(home, folder, status.read_result(folder), set_ or [])
    for name, candidate in result.candidates.items():
        if candidate.roi.npv:
            said, saving = candidate.verdict.verdict or "", candidate.roi.monthly_saving.value
            say(f"{name:<24} {said:<14} saves {saving:,.0f} a month, worth {candidate.roi.npv.value:,.0f}")
    emit(
        {
            "run_id": result.run_id,
            "priced_from": result.priced_from,
            "result": str(out / "result.json"),
            "report": str(out / PAGES[result.spec["report"]["languages"][0]]),
            "verdicts": {name: c.verdict.verdict for name, c in result.candidates.items() if c.arm != "teacher"},
            "recommendation": result.recommendation.model_dump(mode="json"),
            "ledger": {"record": record["number"], "hash": record["hash"]},
        }
    )
    return DONE


@app.command("list")
def list_(root: Root = Path(".")) -> int:
    """The runs of this folder, the newest first."""
    rows = status.runs(home_of(root))
    for row in rows:
        verdicts = ", ".join(f"{name} {verdict}" for name, verdict in row["verdicts"].items() if verdict)
        say(f"{row['run_id']:<24} {row['name']:<20} {row['recommendation']:<20} {verdicts}")
    if not rows:
        say("no run here yet; start one with featkd run SPEC")
    emit({"runs": rows})
    return DONE


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port, on loopback.")] = 5000,
    root: Root = Path("."),
) -> int:
    """Show the tracked runs in MLflow's own pages, on loopback, until Ctrl-C."""
    from tasks import tracking
    from tasks import ui as pages

    home = runtime.made(home_of(root))
    say(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)")
    emit({"url": f"http://127.0.0.1:{port}", "tracking_uri": tracking.tracking_uri(home)})
    with runtime.signals_raise():
        return pages.serve(home, port)


@app.command()
def doctor(root: Root = Path(".")) -> int:
    """What this machine can do, and what is wrong with it."""
    found = status.diagnose(home_of(root))
    for name, value in found.items():
        say(f"{name:<12} {_plain(value)}")
    emit(found)
    return FAILED if found["problems"] else DONE


def main() -> None:
    """Entry point: every way to end is one line and an exit status."""
    sys.exit(_guarded(sys.argv[1:]))


def _guarded(arguments: list[str]) -> int:
    try:
        code = app(arguments, prog_name="featkd", standalone_mode=False) or DONE
    except InputError as error:
        return _end(WRONG_INPUT, str(error))
    except RunError as error:
        details = _write_log(arguments, error) if getattr(error, "__notes__", None) else ""
        return _end(FAILED, f"{error}{details}")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message"):
            return _end(WRONG_INPUT, f"{error.format_message().rstrip('.')}; see featkd --help")
        return _end(FAILED, f"{type(error).__name__}: {error}{_write_log(arguments, error)}")
    if code == INTERRUPTED:  # typer turns Ctrl-C into its own status
        return _end(code, "interrupted; the same command goes on where this one stopped")
    return code


def _end(code: int, message: str) -> int:
    say("featkd: " + " ".join(message.split()))
    return code


def _write_log(arguments: list[str], error: Exception) -> str:
    """Keep the traceback where the person may read it, in the folder that the command worked in; tells where."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--root", type=Path, default=Path("."))
    root = parser.parse_known_args(arguments)[0].root
    try:
        path = runtime.log_path(home_of(root), arguments[0] if arguments[:1] and arguments[0].isalpha() else "featkd")
        with path.open("a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except (InputError, OSError):  # what went wrong is told all the same
        return ""
    return f" (details: {path})"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(part) for part in value) or "none"
    return str(value)


if __name__ == "__main__":
    main()
