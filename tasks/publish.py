"""Stage report: the result document, the pages and the folder of the run."""

import os
from pathlib import Path

from featkd.result import Result
from featkd.store import Artefact
from reports.page import PAGES, render
from tasks.context import Context
from tasks.stages import stage
from tasks.train import Model


@stage("report")
def report(context: Context, result: Result, run_dir: Path) -> None:
    """result.json and one page per language, each written whole or not at all."""
    with context.log.timed("report") as entry:
        run_dir.mkdir(parents=True, exist_ok=True)
        _write(run_dir / "result.json", result.to_json())
        for language in context.spec.report.languages:
            _write(run_dir / PAGES[language], render(result, language))
        entry["note"] = str(run_dir)


def link_candidates(run_dir: Path, models: dict[tuple[str, str, int], Model], onnx: dict[str, Artefact]) -> None:
    """candidates/<arm>-<size>/seed-<n>/{hf, onnx/<precision>}: links into the store. `onnx`: by these places."""
    for (arm, size, seed), model in models.items():
        place = f"{arm}-{size}/seed-{seed}"
        _link(run_dir / "candidates" / place / "hf", model.folder)
        for name, artefact in onnx.items():
            if name.startswith(f"{place}/"):
                _link(run_dir / "candidates" / name, artefact.path)


def link_evidence(run_dir: Path, evidence: dict[str, Artefact]) -> None:
    for name, artefact in evidence.items():
        _link(run_dir / "evidence" / name, artefact.path)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
