"""A PoC whose student serves: its spec, its commands, and logs of what it answered."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import tiny_models

from featkd import specfile
from featkd.decide import ledger
from flows import cli, promotion
from tasks.context import Context
from tasks.registry import Registry

TREE = {
    "name": "drill",
    "data": {"files": ["x.jsonl"], "prompt_field": "prompt", "response_field": "response", "prompt_format": "plain"},
    "teacher": {"model": "teacher"},
    "students": [{"name": "s", "layers": 1}],
    "training": {"tokens": 1000},
    "audit": {"examples": 60, "fail_safe": "previous"},
    "compute": {"device": "cpu", "threads": 2},
}
STUDENT = "feature-kd"


def copied(folder, out):
    shutil.copytree(folder, out, dirs_exist_ok=True)
    return {}


def offered(work, **changes):
    record = ledger.verdict(work.ledger, work.result)
    return promotion.offer(Context(specfile.validate(TREE | changes), work.root), work.result, record)


def featkd(work, capsys, *arguments):
    code = cli._guarded([*map(str, arguments), "--root", str(work.root)])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err


def champion(work):
    found = Registry(work.home, "drill").champion()
    return found and found.candidate


def written(work, name, week, answer):
    """80 records of a `week` from now on, which is five minutes here; answer: of a prompt's number."""
    start = datetime.now(UTC) + timedelta(minutes=5 * week)
    rows = [
        {"time": (start + timedelta(seconds=n)).isoformat(), "prompt": tiny_models.text(n, 6), "response": answer(n)}
        for n in range(80)
    ]
    path = work.root / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def healthy(week):
    return lambda n: tiny_models.text(1000 * week + n, 8)


def bad(n):
    return "the list of " * 8
