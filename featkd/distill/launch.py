"""The training child with several processes: `python -m featkd.distill JOB` with `compute.processes: N` becomes torch's
launcher (what torchrun is a command line of) of N copies of itself, the ranks.

They meet through files beside the job and speak over loopback: torch's own TCP store would listen on every interface.
The first rank alone tells progress and result, on the child's stdout, which they all inherit; an error is told by
whichever has it. When a rank fails, the launcher ends the others, and then itself as that rank ended. All of them hold
the pipe that dies with the parent (child.py).

Ranks that another launcher has started take part as they are: on several nodes, with the job on a disk that all share,
`torchrun --nnodes 2 --nproc-per-node 4 ... -m featkd.distill JOB` with `processes: 8` in the job.
"""

import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featkd.child import serve
from featkd.errors import InputError, RunError

STORE = "FEATKD_PROCESSES_STORE"
PATIENCE_S = 1.0

Main = Callable[[dict[str, Any], Callable[..., None]], dict[str, Any] | None]


def run(module: str, main: Main) -> None:
    """What `python -m MODULE JOB` does: `serve(main)`, in as many processes as the job says."""
    job = sys.argv[1]
    processes = json.loads(Path(job).read_text(encoding="utf-8"))["compute"].get("processes", 1)
    if processes == 1:
        serve(main)
    elif "RANK" in os.environ:
        serve(_one_of_several(main))
    else:
        _launch(module, job, processes)


def _launch(module: str, job: str, processes: int) -> None:
    """Run `python -m MODULE JOB` so many times side by side. Exits as the rank that failed, if one does."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    logging.disable(logging.ERROR)  # a rank says itself what went wrong, and that should be the log's last word
    with tempfile.TemporaryDirectory(prefix="ranks-", dir=Path(job).parent) as folder:
        os.environ |= {STORE: f"{folder}/ranks", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="featkd",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/agent",
            rdzv_configs={"store_type": "file"},
            local_addr="localhost",
            max_restarts=0,
        )
        python = ["-P"] if sys.flags.safe_path else []
        try:
            launch_agent(config, sys.executable, [*python, "-m", module, job])
            return
        except ChildFailedError as error:
            codes = [failure.exitcode for failure in error.failures.values()]
    _end_as(codes)


def _end_as(codes: list[int]) -> None:
    """codes: exit statuses of the ranks that failed, a signal's number below 0. Those that the launcher ended have its
    SIGTERM's."""
    own = [code for code in codes if code != -15] or codes
    if min(own) < 0:
        os.kill(os.getpid(), -min(own))
    sys.exit(max(own))


def _one_of_several(main: Main) -> Main:
    """`main` as a rank runs it: all but the first keep progress and result to themselves."""
    first = int(os.environ["RANK"]) == 0

    def run(job: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any] | None:
        try:
            found = main(job, emit if first else lambda event, **fields: None)
        except (InputError, RunError):
            raise
        except Exception:
            time.sleep(PATIENCE_S)  # it may be no more than that another rank was killed: the launcher tells that
            raise
        return found if first else None

    return run
