"""A finished run under other prices and volumes: nothing is measured again, all is judged again, from the evidence."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas

from featkd import specfile
from featkd.decide import judgement, ledger, roi
from featkd.decide.evidence import Evidence
from featkd.errors import InputError
from featkd.result import Candidate, Result
from reports.page import render

PRICES = ("cost.", "teacher.serving")
MARK = "-priced-"


def reprice(home: Path, folder: Path, result: Result, overrides: list[str]) -> tuple[Path, Result, ledger.Record]:
    """A new version of the run beside it, with a page per language and a record of its verdicts.

    overrides: key=value, of the sections that price. Raises InputError: another section, or evidence that is gone.
    """
    for override in overrides:
        if not override.startswith(PRICES):
            raise InputError(f"--set {override}: is not priced but measured or decided; write a field of cost or "
                             "teacher.serving, or start featkd run")  # fmt: skip
    poc = specfile.validate(specfile.overridden(result.spec, overrides))
    evidence = _evidence(folder, result)
    judged = judgement.judge(
        poc, [evidence[name] for name in result.candidates], _json(folder, "tasks", "manifest.json")["meta"]["chance"],
        result.adequacy, _table(folder, "overlap", "overlap"), result.data.training_tokens, evidence.get("champion"),
    )  # fmt: skip
    champion = result.champion and result.champion.model_copy(update={"comparisons": judged.beside_champion})
    run_id = _version(home, result)
    found = result.model_copy(
        update={
            "run_id": run_id,
            "priced_from": result.priced_from or result.run_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "title": poc.title,
            "spec": poc.model_dump(mode="json"),
            "spec_digest": poc.digest(),
            "candidates": judged.candidates,
            "comparisons": judged.comparisons,
            "champion": champion,
            "sizes": judged.sizes,
            "recommendation": judged.recommendation,
            "assumptions": roi.assumptions(poc.cost, poc.teacher.serving),
            "overrides": ledger.overrides(home / ledger.FOLDER, result.name),
        }
    )
    out = _written(home / "runs" / run_id, folder, found, poc.report.languages)
    return out, found, ledger.verdict(home / ledger.FOLDER, found)


def _version(home: Path, result: Result) -> str:
    measured = result.priced_from or result.run_id
    taken = len(list((home / "runs").glob(f"{measured}{MARK}*")))
    return f"{measured}{MARK}{taken + 1}"


def _written(out: Path, folder: Path, result: Result, languages: list[str]) -> Path:
    out.mkdir(parents=True)
    (out / "result.json").write_text(result.to_json(), encoding="utf-8")
    for language in languages:
        page = "report.html" if language == "en" else f"report.{language}.html"
        (out / page).write_text(render(result, language), encoding="utf-8")
    for name in ("evidence", "candidates"):
        if (folder / name).exists():
            (out / name).symlink_to(os.path.relpath((folder / name).resolve(), out), target_is_directory=True)
    return out


def _evidence(folder: Path, result: Result) -> dict[str, Evidence]:
    """What the run knew of each candidate, and of the champion if gates were against it."""
    latency = _json(folder, "latency", "latency.json") if "latency" in result.evidence else {}
    found = {name: _of(folder, name, candidate, latency.get(name)) for name, candidate in result.candidates.items()}
    if result.champion:
        known = Evidence("champion", "champion", artefact=result.champion.artefact, latency=latency.get("champion"))
        found["champion"] = _with_tables(folder, known)
    return found


def _of(folder: Path, name: str, candidate: Candidate, latency: dict[str, Any] | None) -> Evidence:
    known = Evidence(
        name, candidate.arm, candidate.size, candidate.precision, candidate.seed, candidate.training, candidate.parity,
        candidate.artefact, latency=latency, transfer=candidate.transfer, failure=candidate.failure,
        why=candidate.quality.why or candidate.latency.why or "not-run",
        guards_why=candidate.guardrails.why or "guardrails-off",
    )  # fmt: skip
    if candidate.quality.tasks:
        _with_tables(folder, known)
        for seed in candidate.quality.replicates:
            ships = seed == str(candidate.seed)
            known.replicates[seed] = (
                known.samples if ships else _table(folder, f"accuracy-{name}-seed-{seed}", "samples")
            )
    return known


def _with_tables(folder: Path, known: Evidence) -> Evidence:
    known.samples = _table(folder, f"accuracy-{known.name}", "samples")
    if (folder / f"evidence/guardrails-{known.name}").exists():
        known.guards = tuple(
            _table(folder, f"guardrails-{known.name}", table, needed=False) for table in ("samples", "generations")
        )
    known.tokens = _table(folder, f"tokens-{known.name}", "tokens", needed=False)
    return known


def _table(folder: Path, name: str, table: str, needed: bool = True) -> Any:
    file = folder / "evidence" / name / f"{table}.parquet"
    if file.is_file():
        return pandas.read_parquet(file)
    if needed:
        raise InputError(f"RUN: its evidence {file} is gone from the store; start featkd run, which makes it again")
    return None


def _json(folder: Path, name: str, file: str) -> Any:
    path = folder / "evidence" / name / file
    if not path.is_file():
        raise InputError(f"RUN: its evidence {path} is gone from the store; start featkd run, which makes it again")
    return json.loads(path.read_text(encoding="utf-8"))
