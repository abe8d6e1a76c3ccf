"""A finished run under other prices and volumes: nothing is measured again, all is judged again, from the evidence."""

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas

from featkd import specfile
from featkd.decide import judgement, ledger, roi
from featkd.decide.evidence import Evidence
from featkd.errors import InputError
from featkd.result import Candidate, Result
from featkd.store import Store
from reports.page import PAGES, render

PRICES = ("cost.", "teacher.serving")
MARK = "-priced-"


def reprice(home: Path, folder: Path, result: Result, overrides: list[str]) -> tuple[Path, Result, ledger.Record]:
    """A new version of the run beside it, with a page per language and a record of its verdicts.

    overrides: key=value, of the sections that price. Raises InputError: another section, a result that is not the one
    on record, or evidence that is gone; RunError: the ledger's chain is broken.
    """
    for override in overrides:
        if not override.startswith(PRICES):
            raise InputError(f"--set {override}: is not priced but measured or decided; write a field of cost or "
                             "teacher.serving, or start featkd run")  # fmt: skip
    poc = specfile.validate(specfile.overridden(result.spec, overrides))
    records = ledger.whole(home / ledger.FOLDER)
    _check(folder, result, records)
    kept = Kept(home, result)
    evidence = kept.evidence()
    judged = judgement.judge(
        poc, [evidence[name] for name in result.candidates], kept.folder("tasks").meta["chance"],
        kept.table("overlap", "overlap"), result.data.training_tokens, evidence.get("champion"),
    )  # fmt: skip
    found = result.model_copy(
        update={
            "run_id": _version(home, result, records),
            "priced_from": result.priced_from or result.run_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "spec": poc.model_dump(mode="json"),
            "spec_digest": poc.digest(),
            "candidates": judged.candidates,
            "comparisons": judged.comparisons,
            "champion": result.champion and result.champion.model_copy(update={"comparisons": judged.beside_champion}),
            "sizes": judged.sizes,
            "recommendation": judged.recommendation,
            "assumptions": roi.assumptions(poc.cost, poc.teacher.serving),
            "overrides": ledger.overrides(home / ledger.FOLDER, result.name),
        }
    )
    out = home / "runs" / found.run_id
    partial = _written(out.with_name(f"{out.name}.partial-{os.getpid()}"), folder, found, poc.report.languages)
    try:
        record = ledger.verdict(home / ledger.FOLDER, found)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out, found, record


def _check(folder: Path, result: Result, records: list[ledger.Record]) -> None:
    """Is the result the one whose verdicts are on record, to the letter?"""
    read = hashlib.sha256((folder / "result.json").read_bytes()).hexdigest()
    of_run = [one for one in records if one["kind"] == "verdict" and one["run_id"] == result.run_id]
    if not any(one.get("result_sha256") == read for one in of_run):
        raise InputError(f"RUN: {folder / 'result.json'} is not what the ledger has of it; start featkd run again")


def _version(home: Path, result: Result, records: list[ledger.Record]) -> str:
    start = (result.priced_from or result.run_id) + MARK
    known = [path.name for path in (home / "runs").glob(f"{start}*")] + [one.get("run_id") or "" for one in records]
    taken = [int(name.removeprefix(start)) for name in known if name.startswith(start) and name[len(start) :].isdigit()]
    return f"{start}{max(taken, default=0) + 1}"


def _written(out: Path, folder: Path, result: Result, languages: list[str]) -> Path:
    out.mkdir(parents=True)
    (out / "result.json").write_text(result.to_json(), encoding="utf-8")
    for language in languages:
        (out / PAGES[language]).write_text(render(result, language), encoding="utf-8")
    for name in ("evidence", "candidates"):
        if (folder / name).exists():
            (out / name).symlink_to(os.path.relpath((folder / name).resolve(), out), target_is_directory=True)
    return out


class Kept:
    """The evidence of a run, from the store by its digests: each file as it was, or not at all."""

    def __init__(self, home: Path, result: Result):
        self.store, self.result = Store(home / "store"), result

    def folder(self, name: str) -> Any:
        key = self.result.evidence[name]
        kinds = [path.parent.name for path in self.store.root.glob(f"*/{key[:20]}")]
        found = next((made for kind in kinds if (made := self.store.get(kind, key))), None)
        if found is None:
            raise InputError(f"RUN: its evidence {name} is gone from {self.store.root}; start featkd run again")
        return found

    def table(self, name: str, table: str) -> Any:
        """None where the artefact has no such table, as one without generations."""
        file = self.folder(name).path / f"{table}.parquet"
        return pandas.read_parquet(file) if file.is_file() else None

    def evidence(self) -> dict[str, Evidence]:
        """What the run knew of each candidate, and of the champion if gates were against it."""
        timed = json.loads((self.folder("latency").path / "latency.json").read_text()) if self.has("latency") else {}
        found = {name: self._of(name, candidate) for name, candidate in self.result.candidates.items()}
        if champion := self.result.champion:
            known = Evidence("champion", "champion", artefact=champion.artefact, guards_why=champion.why or "not-run")
            found["champion"] = self._with_tables(known)
        for name, known in found.items():
            known.latency = timed.get(name)
        return found

    def has(self, name: str) -> bool:
        return name in self.result.evidence

    def _of(self, name: str, candidate: Candidate) -> Evidence:
        known = Evidence(
            name, candidate.arm, candidate.size, candidate.precision, candidate.seed, candidate.training,
            candidate.parity, candidate.artefact, transfer=candidate.transfer, failure=candidate.failure,
            why=candidate.quality.why or candidate.latency.why or "not-run",
            guards_why=candidate.guardrails.why or "guardrails-off",
        )  # fmt: skip
        if not candidate.quality.tasks:
            return known
        self._with_tables(known)
        for seed in candidate.quality.replicates:
            ships = seed == str(candidate.seed)
            known.replicates[seed] = known.samples if ships else self.table(f"accuracy-{name}-seed-{seed}", "samples")
        return known

    def _with_tables(self, known: Evidence) -> Evidence:
        known.samples = self.table(f"accuracy-{known.name}", "samples")
        if self.has(guards := f"guardrails-{known.name}"):
            known.guards = (self.table(guards, "samples"), self.table(guards, "generations"))
        if self.has(tokens := f"tokens-{known.name}"):
            known.tokens = self.table(tokens, "tokens")
        return known
