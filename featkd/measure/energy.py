"""Energy counters of the machine, read through codecarbon (`pip install featkd[energy]`).

RAPL of the processor's packages; NVML of the GPU in use. They count all that happens there, idle power included.
Where there is no counter codecarbon would go by a table of powers: that is a guess, so only its readers of
counters are used.
"""

import importlib.util
import logging
import math
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

JOULES_PER_KWH = 3.6e6
RAPL = "/sys/class/powercap/intel-rapl/subsystem"
Why = Literal["energy-extra", "energy-counter"]


class Meter(NamedTuple):
    """`joules()`: those counted since it was called last; `counter`: rapl or nvml."""

    counter: str
    joules: Callable[[], float]


def meter(device: Literal["cpu", "cuda"], rapl: str = RAPL) -> Meter | Why:
    """The counter of what computes on `device`, or the code of why there is none that can be read."""
    if importlib.util.find_spec("codecarbon") is None:
        return "energy-extra"
    logging.getLogger("codecarbon").disabled = True  # what cannot be read is told by the code
    return (_nvml() if device == "cuda" else _rapl(rapl)) or "energy-counter"


def source(found: Meter | Why) -> str:
    """rapl, nvml, or the code of why there is no meter."""
    return found.counter if isinstance(found, Meter) else found


def _rapl(folder: str) -> Meter | None:
    from codecarbon.core.cpu import IntelRAPL, is_rapl_available
    from codecarbon.core.units import Time

    if not is_rapl_available(folder):
        return None
    counters = IntelRAPL(folder)
    counters.start()
    last = time.monotonic()

    def joules() -> float:
        nonlocal last
        now = time.monotonic()
        found = counters.get_cpu_details(Time.from_seconds(now - last))
        last = now
        return JOULES_PER_KWH * sum(kwh for name, kwh in found.items() if "Power" not in name)

    return Meter("rapl", joules)


def _nvml() -> Meter | None:
    """Not `AllGPUDevices.get_delta`: where a counter fails it goes on with power times time."""
    from codecarbon.core import gpu_nvidia

    if not gpu_nvidia.PYNVML_AVAILABLE:
        return None
    import torch

    nvml = gpu_nvidia.pynvml

    def counted() -> float:
        try:
            return nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3
        except nvml.NVMLError:
            return math.nan

    try:
        device = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    except nvml.NVMLError:
        return None
    last = counted()
    if math.isnan(last):
        return None

    def joules() -> float:
        nonlocal last
        before, last = last, counted()
        return last - before

    return Meter("nvml", joules)
