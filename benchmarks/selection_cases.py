"""Selection: the exact global top-kappa of |w * g|, against one read of both and against sorting a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from torch import Tensor

import snipkern as sk
from snipkern.selection import topk

__all__ = ["DATA", "SUBJECT", "Choice", "build"]

SUBJECT = "snipkern"
KEEP = 0.05
# torch.topk holds the scores, and pairs of value and index: with weights and gradients some 28 bytes a weight.
BYTES_PER_WEIGHT = 32
# Above these, a sorted copy takes minutes: its cost for smaller ones tells enough.
TOPK_MOST = 1 << 29
NUMPY_MOST = 1 << 29
CHUNK = 1 << 22
PASSES = ("saliency_partition", "saliency_histogram", "saliency_mask")


@dataclass(frozen=True)
class Choice:
    """What to select from, and how much of it."""

    weights: int
    dtype: torch.dtype = torch.float32
    gradient_dtype: torch.dtype | None = None
    keep: float = KEEP
    data: str = "normal"

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        return self.dtype, self.gradient_dtype or self.dtype

    @property
    def name(self) -> str:
        dtypes = "/".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in self.dtypes))
        kept = "" if self.keep == KEEP else f", keep {self.keep:g}"
        return f"{self.weights:,} {dtypes}{kept}{'' if self.data == 'normal' else f', {self.data}'}"

    @property
    def settings(self) -> dict[str, Any]:
        dtypes = [str(dtype).removeprefix("torch.") for dtype in self.dtypes]
        return {
            "weights": self.weights,
            "dtype": dtypes[0],
            "gradient_dtype": dtypes[1],
            "keep": self.keep,
            "data": self.data,
        }

    @property
    def bytes(self) -> int:
        return sum(dtype.itemsize for dtype in self.dtypes) * self.weights


def _outlier(tensor: Tensor) -> Tensor:
    tensor[tensor.numel() // 3] = 1e4
    return tensor


#: What is done to normal numbers, by name.
DATA: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda tensor: tensor,
    "8 values": lambda tensor: tensor.mul_(2).round_().clamp_(-3, 4),
    "all equal": lambda tensor: tensor.fill_(0.5),
    "all zero": lambda tensor: tensor.zero_(),
    "sorted": lambda tensor: tensor.copy_(tensor.sort().values),
    "one outlier": _outlier,
    "denormal": lambda tensor: tensor.mul_(1e-20),
}


def tensors(choice: Choice) -> tuple[Tensor, Tensor]:
    """Weight and gradient: random numbers, that repeat in other pairings from one chunk to the next."""
    made: list[Tensor] = []
    for turn, dtype in enumerate(choice.dtypes):
        tensor = torch.empty(choice.weights, dtype=dtype)
        base = torch.randn(min(CHUNK, choice.weights)).to(dtype)
        for i, part in enumerate(tensor.split(CHUNK)):
            part.copy_(base.roll(i * turn * 4099)[: part.numel()])
        made.append(DATA[choice.data](tensor))
    return made[0], made[1]


@contextmanager
def counted() -> Iterator[list[str]]:
    """The passes over all weights that selections make inside the block."""
    passes: list[str] = []
    before = topk.ops

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name in PASSES:
                passes.append(name)
            return getattr(before, name)

    topk.ops = Counting()
    try:
        yield passes
    finally:
        topk.ops = before


def peak_growth(function: Callable[[], Any]) -> int | None:
    """Bytes by which the process grows at most while it runs a function; None where the system does not tell."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")  # the peak starts anew
        before = _status(status, "VmRSS:")
        function()
        return _status(status, "VmHWM:") - before
    except (OSError, AttributeError, LookupError):
        return None


def _status(path: Path, key: str) -> int:
    lines = {line.split()[0]: line.split() for line in path.read_text().splitlines() if line.strip()}
    return int(lines[key][1]) * 1024


def is_exact(weight: Tensor, gradient: Tensor, mask: sk.Mask, kept: int) -> bool:
    """Whether the mask holds the ``kept`` first by score, then by index; a chunk at a time."""
    least, most = torch.inf, -torch.inf
    for scores, chosen in _chunks(weight, gradient, mask):
        least = min(least, float(scores.masked_fill(~chosen, torch.inf).min()))
        most = max(most, float(scores.masked_fill(chosen, -1).max()))
    dropped_tie, right = False, mask.count() == kept and most <= least
    for scores, chosen in _chunks(weight, gradient, mask) if most == least else ():
        dropped = torch.nonzero((scores == least) & ~chosen)
        taken = torch.nonzero((scores == least) & chosen)
        right &= not (dropped_tie and taken.numel())
        right &= not (dropped.numel() and taken.numel()) or bool(taken[-1] < dropped[0])
        dropped_tie |= dropped.numel() > 0
    return right


def _chunks(weight: Tensor, gradient: Tensor, mask: sk.Mask) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores, and which are kept."""
    for i, (w, g) in enumerate(zip(weight.split(CHUNK), gradient.split(CHUNK), strict=True)):
        words = mask.words[i * CHUNK // 64 : (i + 1) * CHUNK // 64].numpy()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: w.numel()]
        yield (w.float() * g.float()).abs_(), torch.from_numpy(bits).bool()


def build(choice: Choice) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]:
    """Contenders for one choice."""
    weights, rivals = choice.weights, choice.weights <= TOPK_MOST and choice.data == "normal"
    needed = BYTES_PER_WEIGHT * weights if rivals else choice.bytes * 11 // 10
    available = machine.available_bytes()
    if available is not None and available < needed:
        return {}, {}, [f"skipped: {weights:,} weights need {needed / 1e9:.0f} GB of memory"]
    w, g = tensors(choice)
    kept = round(choice.keep * weights)

    def scores() -> Tensor:
        return (w.float() * g.float()).abs_()

    def partition() -> Any:
        copy = scores().numpy()
        return copy >= np.partition(copy, weights - kept)[weights - kept]

    def read() -> Any:
        # The same bytes whatever the dtypes: pairs of 16-bit numbers are read as one float32.
        words = [tensor.view(torch.float32) for tensor in (w, g)]
        if w.dtype == g.dtype:
            return torch.dot(*words)
        return [torch.dot(half, other) for half, other in (word.chunk(2) for word in words)]

    contenders: dict[str, Callable[[], Any]] = {
        SUBJECT: lambda: sk.select({"w": (w, g)}, kept),
        "read": read,
    }
    if rivals:
        contenders["topk"] = lambda: torch.topk(scores(), kept, sorted=False)
    if rivals and weights <= NUMPY_MOST:
        contenders["numpy"] = partition
    with counted() as passes:
        mask = sk.select({"w": (w, g)}, kept)["w"]
    moved = len(passes) * choice.bytes + mask.words.nbytes
    facts = {
        "kept": kept,
        "bytes_read": choice.bytes,
        "reads": len(passes),
        "bytes_per_weight": moved / weights,
        "extra_bytes": peak_growth(lambda: sk.select({"w": (w, g)}, kept)),
    }
    right = is_exact(w, g, mask, kept)
    return contenders, facts, [] if right else ["WRONG: the mask does not hold the largest scores"]
