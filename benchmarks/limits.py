"""What this processor can do at best, in the instruction set that the kernels use: arithmetic, and reads by level."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch

from snipkern import backends

__all__ = ["ARITHMETIC", "LEVELS", "build", "thread_counts"]

ARITHMETIC = "multiply-adds"
LEVELS = ("L1", "L2", "memory")
SAMPLES, SECONDS = 11, 2e-3
QUICK_SAMPLES, QUICK_SECONDS = 3, 1e-5
# Where the system tells no cache sizes.
ASSUMED_BYTES = {"L1": 32 << 10, "L2": 512 << 10, "L3": 32 << 20}
Probe = Callable[[int], tuple[float, float]]


def build(quick: bool) -> dict[str, Any]:
    """Rates per second with one thread and with all of torch's: ``{threads: {limit: {median, lower, upper}}}``.

    Multiply-adds count as two operations; reads are in bytes, from a buffer of half the cache for each thread, or of
    twice the last cache ("memory").
    """
    extension = importlib.import_module("snipkern._C")
    before = torch.get_num_threads()
    found: dict[str, Any] = {}
    try:
        for threads in sorted({1, before}):
            torch.set_num_threads(threads)
            rates = {ARITHMETIC: _rate(extension.probe_multiply_adds, quick)}
            for level, size in _buffers(threads, quick).items():
                rates[level] = _rate(lambda passes, size=size: extension.probe_reads(size, passes), quick)
            found[str(threads)] = rates
    finally:
        torch.set_num_threads(before)
    return {"isa": backends.isa(), "rates": found}


def thread_counts() -> list[int]:
    """1, 2, 4, ... up to torch's threads."""
    most = torch.get_num_threads()
    return sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})


def _rate(probe: Probe, quick: bool) -> dict[str, float]:
    """Median and quartiles of work per second, from samples that are long enough."""
    samples, wanted = (QUICK_SAMPLES, QUICK_SECONDS) if quick else (SAMPLES, SECONDS)
    passes = 1
    while probe(passes)[1] < wanted:
        passes *= 2
    found = [work / max(seconds, 1e-9) for work, seconds in (probe(passes) for _ in range(samples))]
    lower, median, upper = statistics.quantiles(found, n=4, method="inclusive")
    return {"median": median, "lower": lower, "upper": upper}


def _buffers(threads: int, quick: bool) -> dict[str, int]:
    """Bytes for each thread to read."""
    caches = {**ASSUMED_BYTES, **_cache_bytes()}
    sizes = {"L1": caches["L1"] // 2, "L2": caches["L2"] // 2}
    memory = 2 * caches.get("L3", caches["L2"]) // threads
    available = machine.available_bytes()
    if available is not None:
        memory = min(memory, available // (4 * threads))
    return {**sizes, "memory": 1 << 16 if quick else memory}


def _cache_bytes() -> dict[str, int]:
    """Sizes of the first processor's caches that hold data; empty where the system does not say."""
    sizes: dict[str, int] = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) << 10
    return sizes
