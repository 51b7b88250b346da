"""A CUDA device as the benchmark sees it: what it is, its clock, its memory, and whether float32 may become TF32."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import torch

from snipkern import backends

__all__ = ["Cuda", "missing", "rounded", "tf32"]

# Where torch does not tell how large the L2 cache is: more than any device has.
LARGE_L2 = 128 << 20
QUERIED = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu",
    "clocks_event_reasons.active",
)  # fmt: skip


def missing() -> str:
    """Why there is no device to measure on, empty where there is."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return "" if torch.cuda.device_count() else "no CUDA device is visible"


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products and convolutions of float32 may be of TF32."""
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = allowed
        yield
    finally:
        for kind, was in zip(kinds, before, strict=True):
            kind.allow_tf32 = was


def rounded(step: Callable[[], Any]) -> Callable[[], Any]:
    """A step with TF32 allowed."""

    def run() -> Any:
        with tf32(True):
            return step()

    return run


class Cuda:
    """The device with the lowest number that is visible."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        self._flushed: torch.Tensor | None = None

    def describe(self) -> dict[str, Any]:
        """Name, size, versions and clocks, as plain JSON values."""
        found = torch.cuda.get_device_properties(self.device)
        return {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": found.total_memory,
            "l2_bytes": self.l2_bytes(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": _triton(),
            "backends": {row.name: row.detail for row in backends.status()},
            "now": self.clocks(),
        }

    def clocks(self) -> dict[str, str]:
        """What nvidia-smi says of clocks, power and heat; empty where it says nothing."""
        if shutil.which("nvidia-smi") is None:
            return {}
        uuid = getattr(torch.cuda.get_device_properties(self.device), "uuid", None)
        which = [] if uuid is None else [f"--id=GPU-{uuid}"]
        command = ["nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader", *which]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        values = done.stdout.splitlines()[0].split(", ") if done.returncode == 0 and done.stdout else []
        return dict(zip(QUERIED, values, strict=False))

    def l2_bytes(self) -> int:
        return int(getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0)) or LARGE_L2

    def cold(self, function: Callable[[], object], calls: int) -> float:
        """Seconds per call, each from an L2 cache that holds nothing of it.

        The device takes longer to fill that cache than the host to launch what follows: so launches are hidden, as
        they are where a host runs ahead of its device.
        """
        if self._flushed is None:
            self._flushed = torch.empty(2 * self.l2_bytes(), dtype=torch.uint8, device=self.device)
        pairs = [(self._event(), self._event()) for _ in range(calls)]
        for begin, end in pairs:
            self._flushed.zero_()
            begin.record()
            function()
            end.record()
        self.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in pairs) / calls / 1e3

    def running(self, function: Callable[[], object], calls: int) -> float:
        """Seconds per call, one after the other, from an idle device: the host's share shows where it is the slower."""
        begin, end = self._event(), self._event()
        self.synchronize()
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        self.synchronize()
        return begin.elapsed_time(end) / calls / 1e3

    def memory(self, action: Callable[[], object]) -> dict[str, int]:
        """Bytes that an action leaves allocated, and holds at most meanwhile, beyond those before it."""
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        action()
        self.synchronize()
        held, peak = torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        return {"held": held - before, "peak": peak - before}

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def _event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)
