"""Where and in which arithmetic training runs."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from featkd import spec
from featkd.align.products import FAST_BF16, exact_one_dnn
from featkd.distill.parallel import ALONE, Processes, join


@dataclass
class Runtime:
    device: str
    bf16: bool
    processes: Processes = ALONE

    def autocast(self) -> Any:
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def clock(self) -> float:
        """Seconds, once the accelerator has done what was asked of it: so each model pays for its own work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def runtime(compute: spec.Compute) -> Runtime:
    """As the spec wants it. Sets, for the whole process, the number of CPU threads and who multiplies float32.

    One of several processes waits for the others here, and takes its share of the threads.
    """
    torch.set_num_threads(max(1, (compute.threads or torch.get_num_threads()) // compute.processes))
    if exact_one_dnn():
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # no such arithmetic takes place: see exact_one_dnn
    device = compute.device if compute.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = compute.precision == "bf16" or (compute.precision == "auto" and fast_bf16(device))
    return Runtime(device, bf16, join(compute, device) if compute.processes > 1 else ALONE)


def fast_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return FAST_BF16
