"""The machine that something ran on: seconds mean nothing without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import nearfar


def describe_machine(device: torch.device, threads: int | None = None) -> dict[str, str | int]:
    """Versions, processor and threads; no names of hosts, users or folders.

    Args:
        device: Where training runs.
        threads: How many of the CPU's it uses; by default as many as torch is set to.

    Example:
        >>> sorted(describe_machine(torch.device("cpu")))
        ['cores', 'device', 'nearfar', 'processor', 'python', 'system', 'threads', 'torch']
    """
    return {
        "nearfar": nearfar.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": threads or torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def usable_cores() -> int:
    """CPU cores that this process may use: less than the machine has, in a container or under taskset.

    Example:
        >>> 1 <= usable_cores() <= (os.cpu_count() or 1)
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # the share that a container is given, as microseconds in a period
        share, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(share) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        return cores


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
