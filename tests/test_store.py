"""The store: nothing half done, nothing damaged handed out, one builder at a time."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from featkd.store import Store, artefact_key

KEY = "a" * 64


def build(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "data.txt").write_text("hello")
    return {"answer": 42}


def test_made_once_then_found(tmp_path):
    store = Store(tmp_path)
    assert store.get("x", KEY) is None
    made = store.make("x", KEY, build)
    again = store.make("x", KEY, lambda folder: pytest.fail("built twice"))
    assert made == again == store.get("x", KEY)
    assert again.meta == {"answer": 42}


@pytest.mark.parametrize("damage", ["flip", "delete", "manifest", "truncate"])
def test_a_damaged_artefact_is_set_aside_and_rebuilt(tmp_path, damage):
    store = Store(tmp_path)
    folder = store.make("x", KEY, build).path
    file = folder / "sub" / "data.txt"
    if damage == "flip":
        file.write_text("hellp")
    elif damage == "delete":
        file.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{broken")
    else:
        (folder / "manifest.json").write_text("[]")
    assert store.get("x", KEY) is None
    assert store.make("x", KEY, build).path.joinpath("sub/data.txt").read_text() == "hello"


def test_a_failed_build_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def broken(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make("x", KEY, broken)
    assert store.get("x", KEY) is None
    assert list((tmp_path / "x").iterdir()) == []


def test_leftovers_of_a_killed_builder_are_swept(tmp_path):
    store = Store(tmp_path)
    leftover = store.path("x", KEY).with_name(KEY[:20] + ".partial-1-dead")
    leftover.mkdir(parents=True)
    store.make("x", KEY, build)
    assert not leftover.exists()


def test_a_sweep_removes_what_no_process_is_building(tmp_path):
    store = Store(tmp_path)
    store.make("x", KEY, build)
    dead, built = (store.path("x", key * 64).with_name(key * 20 + ".partial-1-5f") for key in "bc")
    dead.mkdir()
    built.mkdir()
    held = store.lock("x", "c" * 64)
    # as another process would hold it
    code = f"import sys; from featkd.store import Store; Store({str(tmp_path)!r}).sweep()"
    with held:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert not dead.exists() and built.exists() and store.get("x", KEY)
    store.sweep()
    assert not built.exists()


def _slow(root, results):
    def slow(folder):
        time.sleep(0.3)
        (folder / "pid").write_text(str(os.getpid()))
        return {"pid": os.getpid()}

    results.put(Store(root).make("x", KEY, slow).meta["pid"])


def test_two_processes_build_one_artefact(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_slow, args=(tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    built_by = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(built_by) == 1


def test_the_key_sees_inputs_and_sources():
    assert artefact_key({"a": 1}, ["data"]) == artefact_key({"a": 1}, ["data"])
    different = {artefact_key({"a": 1}, ["data"]), artefact_key({"a": 2}, ["data"]), artefact_key({"a": 1}, ["align"])}
    assert len(different) == 3


def test_the_manifest_lists_every_file(tmp_path):
    folder = Store(tmp_path).make("x", KEY, build).path
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema"] == "featkd.artefact/1"
    assert list(manifest["files"]) == ["sub/data.txt"]
