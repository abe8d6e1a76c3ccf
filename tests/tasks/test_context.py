"""Scratch folders: gone with the run, or swept by the next one when it was killed."""

import os
import signal
import subprocess
import sys

from featkd.store import Store
from tasks.context import Context

HOLD = """
import sys, time
from pathlib import Path
from tasks.context import Context
with Context(None, Path(sys.argv[1])).workdir() as folder:
    (folder / "big").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_scratch_folder_ends_with_its_use(tmp_path):
    with Context(None, tmp_path).workdir() as folder:
        (folder / "file").touch()
    assert not folder.exists()


def test_a_killed_run_s_folders_are_swept_and_no_other_s(tmp_path):
    holding = [subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) for _ in range(2)]
    dead, alive = (process.stdout.readline().decode().strip() for process in holding)
    holding[0].kill()
    holding[0].wait()
    partial = Store(tmp_path / ".featkd" / "store").path("x", "a" * 64).with_suffix(".partial-1-5f")
    partial.mkdir(parents=True)
    Context(None, tmp_path).sweep()
    assert not os.path.exists(dead) and not partial.exists()
    assert os.path.exists(alive + "/big")
    holding[1].send_signal(signal.SIGKILL)
    holding[1].communicate()
