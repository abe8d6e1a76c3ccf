"""A user's own lm-eval tasks: what they are made of, and that they do not take the place of ours."""

from types import SimpleNamespace

import pytest
import tiny_models
import yaml

from featkd import specfile
from featkd.store import Artefact
from tasks import measure
from tasks.context import Context
from tasks.include import tasks_digest


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of tasks, beside it a template and data that they name from the working folder."""
    work = tmp_path / "work"
    for folder in ("mine", "data/deep", "shared"):
        (work / folder).mkdir(parents=True)
    for name in ("a", "b", "deep/c", "deep/d", "unused"):
        (work / "data" / f"{name}.jsonl").write_text("{}")
    (work / "mine" / "one.yaml").write_text(
        "include: ../shared/_template\ntask: one\ndoc_to_text: !function utils.text\n"
        "dataset_kwargs: {data_files: {test: data/a.jsonl}}\n"
    )
    (work / "shared" / "_template").write_text(
        "include: ../shared/_template\ndataset_kwargs: {data_files: [data/deep/*.jsonl]}\n"
    )
    group = {"group": "g", "task": [{"task": "two", "dataset_kwargs": {"data_dir": "data", "data_files": "b.jsonl"}}]}
    (work / "mine" / "group.yaml").write_text(yaml.safe_dump(group))
    (work / "mine" / "broken.yaml").write_text("a: [1")
    (work / "mine" / "utils.py").write_text("x = 1")
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize(
    "file",
    ["mine/one.yaml", "mine/utils.py", "mine/broken.yaml", "shared/_template", "data/a.jsonl", "data/b.jsonl",
     "data/deep/d.jsonl"],
)  # fmt: skip
def test_every_file_that_a_task_is_made_of_counts(tasks, file):
    before = tasks_digest(tasks / "mine")
    assert tasks_digest("mine") == before
    (tasks / file).write_text((tasks / file).read_text() + " ")
    assert tasks_digest(tasks / "mine") != before


def test_other_files_do_not_count(tasks):
    before = tasks_digest(tasks / "mine")
    (tasks / "data" / "unused.jsonl").write_text("changed")
    for hidden in (".git", ".featkd/store", "__pycache__"):
        (tasks / "mine" / hidden).mkdir(parents=True)
        (tasks / "mine" / hidden / "x.yaml").write_text("task: x")
    assert tasks_digest(tasks / "mine") == before


def test_our_tasks_win_over_the_user_s_of_the_same_name(tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    made, own = (tiny_models.write_tasks(tmp_path / name, examples=2) for name in ("made", "own"))
    tree = {
        "name": "x",
        "data": {"files": ["a.txt"]},
        "teacher": {"model": "folder"},
        "students": [{"name": "s", "layers": 1}],
        "training": {"tokens": 1000},
        "quality": {"tasks": ["tiny_labels"], "include": str(own)},
    }
    given = {}

    def evaluate(folder, names, include, *rest):
        entry = TaskManager(include_path=[str(path) for path in include], include_defaults=False).task_index[names[0]]
        given["data"] = entry.cfg["dataset_kwargs"]["data_files"]["test"]
        (rest[-1] / "file").touch()
        return {}

    monkeypatch.setattr("featkd.measure.accuracy.evaluate", evaluate)
    context = Context(specfile.validate(tree), tmp_path)
    tasks = Artefact("tasks", "t" * 64, made, {})
    measure.accuracy.fn(context, "x", SimpleNamespace(key="o" * 64, path=tmp_path), tasks)
    assert given["data"] == str(made / "tiny_labels.jsonl")
