"""What this machine is: the hardware and versions that results depend on. Needs no torch."""

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from featkd.spec import Compute

VERSIONS = (
    "featkd", "torch", "transformers", "tokenizers", "datasets", "lm-eval", "onnx", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "numpy", "scipy", "pandas", "prefect", "mlflow",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


def hardware() -> dict[str, Any]:
    """CPU with the instruction sets that matter, cores this process may use, memory and accelerator."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in INSTRUCTIONS if flag in (_cpuinfo("flags") or "").split()],
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "accelerator": accelerator(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe(compute: Compute, source: Path) -> dict[str, Any]:
    """Hardware, the resolved device and threads, versions, and the git commit of `source` if it is a checkout."""
    return {
        "hardware": hardware(),
        "device": device(compute),
        "threads": threads(compute),
        "python": platform.python_version(),
        "versions": versions(),
        "git": _git_commit(source),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device(compute: Compute) -> str:
    """'cpu' or 'cuda'; auto takes an accelerator where the driver shows one."""
    return compute.device if compute.device != "auto" else ("cuda" if accelerator() else "cpu")


def onnxruntime_package() -> list[str]:
    """The package that brings onnxruntime here, if any."""
    return [name for name in ("onnxruntime-gpu", "onnxruntime") if name in versions()][:1]


def threads(compute: Compute) -> int:
    return compute.threads or usable_cores()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes(device: str) -> int:
    """What a process may still take on 'cpu' or 'cuda', within the limit of the container it runs in."""
    if device == "cuda":
        return round(float(_nvidia_smi("memory.free").partition(" ")[0]) * 2**20)
    import psutil

    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    try:
        most = int((group / "memory.max").read_text())
        return min(free, most - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no cgroups of version 2, or no limit
        return free


@functools.cache
def accelerator() -> str | None:
    """The first GPU's name by nvidia-smi, None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    return _nvidia_smi("name") or None


def _nvidia_smi(field: str) -> str:
    """Of the first GPU; empty where it says nothing."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    lines = found.stdout.strip().splitlines()
    return lines[0] if found.returncode == 0 and lines else ""


@functools.cache
def _cpuinfo(field: str) -> str | None:
    """Of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), None)


def _git_commit(source: Path) -> str | None:
    """'<commit>' or '<commit>-dirty'."""
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
