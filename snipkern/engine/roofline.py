"""The roofline of every kernel on a GPU: its arithmetic, its bytes from device memory and from L2, and so its time.

All of this is prediction: formulas over published peaks (devices.py), fitted to nothing, as no kernel of this project
has run on a GPU yet. A kernel takes as long as the slowest of its streams, plus a launch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from snipkern.engine.devices import Gpu

__all__ = ["Kernel"]

# Seconds between two kernels of a queue that is never empty. The time of Python, which may be longer, is not in it.
LAUNCH = 3e-6
# Shares of a peak that are reached: assumptions. Device memory by streaming kernels; ordinary cores by cuBLAS; any
# arithmetic by our own kernels, beyond what mma.sync can't issue anyway, and their reads of shared memory.
HBM_SHARE, CORES_SHARE, OWN_SHARE, L1_SHARE = 0.85, 0.9, 0.6, 0.8


@dataclass(frozen=True)
class Kernel:
    """One kernel's work.

    Attributes:
        name: What it computes.
        flops: Floating-point operations, with those on padding.
        hbm: Bytes read and written in device memory.
        l2: Bytes that multiprocessors read through L2, if nothing of it is found in their L1.
        l1: Bytes that they read and write in L1 and shared memory, which are one.
        unit: ``fp64``, ``fp32``, ``tf32`` or ``half``: the peak that its arithmetic is held against.
        library: Whether it is cuBLAS's or cuDNN's.
        parts: Thread blocks that can work side by side.
        launches: Kernels that it really is.
        share: Of the library's usual speed.
    """

    name: str
    flops: float
    hbm: float
    l2: float
    l1: float
    unit: str
    library: bool = False
    parts: float = math.inf
    launches: int = 1
    share: float = 1.0

    def streams(self, gpu: Gpu) -> dict[str, float]:
        """Seconds of the arithmetic, and of the traffic with each kind of memory, if it were alone."""
        tensor = self.unit in ("tf32", "half")
        reached = (gpu.dense_share if tensor else CORES_SHARE) * self.share
        if not self.library:
            reached = OWN_SHARE * (gpu.mma_share if tensor else 1.0)
        waves = self.parts / gpu.multiprocessors
        # The last wave is seldom full; with less than one, multiprocessors have nothing to do.
        used = 1.0 if math.isinf(waves) or not waves else waves / math.ceil(waves)
        return {
            "arithmetic": self.flops / (getattr(gpu, self.unit) * reached * used),
            "L1": self.l1 / (gpu.l1 * L1_SHARE * used),
            "L2": self.l2 / (gpu.l2 * used),
            "memory": self.hbm / (gpu.hbm * HBM_SHARE),
        }

    def seconds(self, gpu: Gpu) -> float:
        """Predicted time."""
        return max(self.streams(gpu).values()) + LAUNCH * self.launches

    def bound(self, gpu: Gpu) -> str:
        """What takes longest: ``arithmetic``, ``L1``, ``L2``, ``memory`` or ``launch``."""
        found = self.streams(gpu) | {"launch": LAUNCH * self.launches}
        return max(found, key=lambda name: found[name])
