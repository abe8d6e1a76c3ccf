"""A module that ends with the process that started it: `python -m tasks.watched MODULE ARGUMENTS...`.

Standard input is a pipe whose other end the parent holds. When that closes, also because the parent was killed with
-9, the whole process group is killed: what the module has started, too. So it must be in a group of its own.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    watched = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        while os.read(watched, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
