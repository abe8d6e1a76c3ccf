"""What every benchmark does with its figures: a dated document with hardware and versions, and a page to read.

QUICK=1 runs fewer cases and writes to a temporary folder.
"""

import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featkd import environment

QUICK = bool(os.environ.get("QUICK"))
ACCELERATOR = environment.accelerator()
DEVICE = "cuda" if ACCELERATOR else "cpu"
EVIDENCE = Path(__file__).parents[2] / "reports" / "evidence"


def write(name: str, rows: list[dict[str, Any]], summary: dict[str, Any], lead: str, only: str = "") -> None:
    """reports/evidence/NAME.json and NAME.md; the summary is the last line on stdout.

    name: that of the benchmark; on an accelerator with a suffix, head.h100. only: the part that ONLY asked for.
    """
    name += f".{ACCELERATOR.split()[1].lower()}" if ACCELERATOR else ""
    folder = Path(tempfile.mkdtemp()) if QUICK else EVIDENCE
    folder.mkdir(parents=True, exist_ok=True)
    hardware = environment.hardware()
    document = {
        "schema": "featkd.evidence/1",
        "name": name,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"{'QUICK=1 ' if QUICK else ''}make bench-{name.partition('.')[0]}{only and f' ONLY={only}'}",
        "hardware": hardware,
        "versions": environment.versions(),
        "rows": rows,
        "summary": summary,
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / f"{name}.md").write_text(_page(document, lead))
    print(f"written: {folder / name}.json and .md", file=sys.stderr)
    print(json.dumps(summary))


def _page(document: dict[str, Any], lead: str) -> str:
    shown = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in document["rows"]]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    table = [columns, ["---"] * len(columns), *([_text(row.get(key, "")) for key in columns] for row in shown)]
    hardware = document["hardware"]
    cpu = f"{hardware['cpu']} ({' '.join(hardware['instructions'])}), {hardware['cores']} cores"
    accelerator = f"{hardware['accelerator']}, " if hardware["accelerator"] else ""
    machine = f"{accelerator}{cpu}, torch {document['versions'].get('torch', '')}"
    lines = [f"# {document['name']}", "", lead, "", f"{document['date']}, {machine}. `{document['command']}`", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in table]
    lines += ["", *(f"- {key}: {_text(value)}" for key, value in document["summary"].items()), ""]
    return "\n".join(lines)


def _text(value: Any) -> str:
    """A list of two is an interval, of three a figure with its interval."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list) and len(value) == 3:
        return f"{_text(value[0])} ({_text(value[1])} to {_text(value[2])})"
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
