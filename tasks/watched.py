"""A module that ends with the process that started it: `python -m tasks.watched MODULE ARGUMENTS...`.

Standard input is a pipe whose other end the parent holds. When that closes, also because the parent was killed with
-9, the whole process group is killed: what the module has started, too. So it must be in a group of its own.
"""

import runpy
import sys

from featkd.child import die_with_parent


def main() -> None:
    die_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
