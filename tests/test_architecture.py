"""The arrows of the house hold (.importlinter), and so does what it cannot say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_import_contracts():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_prefect_and_mlflow_have_their_places():
    importing = re.compile(r"^\s*(?:import|from)\s+(prefect|mlflow)\b", re.MULTILINE)
    places = {"prefect": set(), "mlflow": set()}
    for package in ("featkd", "reports", "tasks", "flows"):
        for file in (ROOT / package).rglob("*.py"):
            for library in importing.findall(file.read_text(encoding="utf-8")):
                places[library].add(file.relative_to(ROOT).as_posix())
    assert places["mlflow"] <= {"tasks/tracking.py", "tasks/registry.py", "tasks/pyfunc.py"}
    assert all(file.startswith(("tasks/", "flows/")) for file in places["prefect"])


def test_light_commands_import_nothing_heavy():
    heavy = "torch transformers prefect mlflow onnxruntime pandas".split()
    code = f"import sys, flows.cli; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
