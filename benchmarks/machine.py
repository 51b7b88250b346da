"""What a run was measured on, so that a committed figure says where it comes from."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from snipkern import backends

__all__ = ["Bystanders", "available_bytes", "describe", "load_average"]

# Instruction sets that decide how fast dense products and ours run.
TELLING_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "neon", "asimd", "sve")


def describe() -> dict[str, Any]:
    """Processor, cores, instruction sets, versions, threads, date and load, as plain JSON values."""
    info = _cpu_info()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cpu_family_model_stepping": [info.get(key) for key in ("cpu family", "model", "stepping")],
        "cpu_flags": [flag for flag in TELLING_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _pages("SC_PHYS_PAGES"),
        "isa": backends.isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "snipkern": _version("snipkern"),
        "sparseprop": _version("sparseprop"),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average": load_average(),
    }


def load_average() -> list[float] | None:
    """Of 1, 5 and 15 minutes; None where the system does not say. It should be near zero before a run."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def available_bytes() -> int | None:
    """Memory that can be allocated without swapping; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _pages("SC_AVPHYS_PAGES")


class Bystanders:
    """Counts the processor time that everything but this process takes from now on."""

    def __init__(self) -> None:
        self._start = self._reading()

    def cores(self) -> float | None:
        """How many cores were busy elsewhere, on average, since the start; None where the system does not say."""
        now = self._reading()
        if self._start is None or now is None:
            return None
        busy, own, wall = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, busy - own) / max(wall, 1e-9)

    @staticmethod
    def _reading() -> tuple[float, float, float] | None:
        """Seconds that all processors were busy, that this process was, and of the clock."""
        path = Path("/proc/stat")
        if not path.exists():
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text().split(maxsplit=9)[1:9])
        ticks = user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()


def _pages(name: str) -> int | None:
    if name not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def _cpu_info() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with "+" if files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()
