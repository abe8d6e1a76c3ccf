"""Input that a run cannot work with: one line that says which field, what is wrong and what to write instead."""

import json
import re
from pathlib import Path

import pytest
import tiny_models
import yaml

from flows import cli

TINY = Path(cli.__file__).parent / "specs" / "tiny.yaml"


def spec(folder, **changes):
    path = folder / "poc.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(TINY.read_text()) | changes))
    return path


def no_tokenizer(folder):
    tiny_models.save("llama", folder / "model")
    for file in (folder / "model").glob("tokenizer*"):
        file.unlink()
    return spec(folder, teacher={"model": "model"})


def empty_corpus(folder):
    (folder / "a.jsonl").write_text('{"text": ""}\n{"text": ""}\n')
    return spec(folder, data={"files": ["a.jsonl"]}, quality={"tasks": ["heldout_perplexity"]}, gates=[])


def short_corpus(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": f"one {n} two"}) + "\n" for n in range(60)))
    data = {"files": ["a.jsonl"], "held_out": 0.4}
    return spec(folder, data=data, block_size=4096, quality={"tasks": ["heldout_perplexity"]}, gates=[])


def unknown_task(folder):
    return spec(folder, quality={"tasks": ["heldout_typo"]}, gates=[])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (no_tokenizer, "teacher.model: .* has no usable tokenizer"),
        (empty_corpus, "data: no document of at least"),
        (short_corpus, "shorter than one block; lower block_size"),
        (unknown_task, "quality.tasks: unknown task heldout_typo"),
    ],
)
def test_it_ends_with_one_clear_line(tmp_path, server, own_store, capfd, make, expected):
    code = cli._guarded(["run", str(make(tmp_path)), "--root", str(tmp_path)])
    err = capfd.readouterr().err
    told = [line for line in err.splitlines() if line.startswith("featkd:")]
    assert code == 2 and len(told) == 1 and re.search(expected, told[0]), err
    assert not list((tmp_path / ".featkd").rglob("*.partial-*"))
