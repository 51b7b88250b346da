"""The roofline of every kernel on a GPU: its arithmetic, its bytes from device memory and from L2, and so its time.

All of this is prediction: formulas over published peaks (devices.py), fitted to nothing, as no kernel of this project
has run on a GPU yet. A kernel takes as long as the slowest of its three streams, plus a launch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from snipkern.engine.devices import Gpu
from snipkern.engine.workload import Workload

__all__ = ["Kernel", "kernels", "seconds", "step"]

# Seconds between two kernels of a queue that is never empty. The time of Python, which may be longer, is not in it.
LAUNCH = 3e-6
# Shares of a peak that are reached: assumptions. Device memory by streaming kernels; ordinary cores by cuBLAS; any
# arithmetic by our own kernels, beyond what mma.sync can't issue anyway; cuDNN's convolutions against cuBLAS.
HBM_SHARE, CORES_SHARE, OWN_SHARE, CONV_SHARE = 0.85, 0.9, 0.6, 0.8
# Samples that a thread block works on at once, so for which it reads an index entry or a block's values once.
SAMPLES = 64
# Sides of cuBLAS's usual tiles, and the shortest stretch of a sum that it gives to one thread block.
TILE, SPLIT = 128, 512
# Sides to which the tensor cores' instruction pads a block, and the largest side that one thread block works on.
MMA_SIDE, OWN_TILE = 16, 64
# Rows of the weight, or kept weights in the weight gradient, that one thread block of the element kernels takes.
ROWS_EACH = 8
# A write or read of one value somewhere moves a whole sector.
SECTOR = 32
INDEX_BYTES, PLACE_BYTES = 4, 8
MASK_BYTES = 1 / 8


@dataclass(frozen=True)
class Kernel:
    """One kernel's work.

    Attributes:
        name: What it computes.
        flops: Floating-point operations, with those on padding.
        hbm, l2: Bytes read and written in device memory; bytes that multiprocessors read through L2.
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
    unit: str
    library: bool = False
    parts: float = math.inf
    launches: int = 1
    share: float = 1.0

    def streams(self, gpu: Gpu) -> dict[str, float]:
        """Seconds of arithmetic, of reads through L2, and of traffic with device memory, each if it were alone."""
        tensor = self.unit in ("tf32", "half")
        reached = (gpu.dense_share if tensor else CORES_SHARE) * self.share
        if not self.library:
            reached = OWN_SHARE * (gpu.mma_share if tensor else 1.0)
        waves = self.parts / gpu.multiprocessors
        # The last wave is seldom full; with less than one, multiprocessors have nothing to do.
        used = 1.0 if math.isinf(waves) or not waves else waves / math.ceil(waves)
        return {
            "arithmetic": self.flops / (getattr(gpu, self.unit) * reached * used),
            "L2": self.l2 / (gpu.l2 * used),
            "memory": self.hbm / (gpu.hbm * HBM_SHARE),
        }

    def seconds(self, gpu: Gpu) -> float:
        """Predicted time."""
        return max(self.streams(gpu).values()) + LAUNCH * self.launches

    def bound(self, gpu: Gpu) -> str:
        """What takes longest: ``arithmetic``, ``L2``, ``memory`` or ``launch``."""
        found = self.streams(gpu) | {"launch": LAUNCH * self.launches}
        return max(found, key=lambda name: found[name])


@dataclass(frozen=True)
class _Sizes:
    """A layer's sizes: samples (rows of the product), features, bytes, and the unit that multiplies its dtype."""

    samples: int
    outs: int
    ins: int
    item: int
    x: float
    y: float
    unit: str
    cores: str

    @classmethod
    def of(cls, layer: Workload, tf32: bool) -> _Sizes:
        item = layer.dtype.itemsize
        outs, ins = layer.shape[0], math.prod(layer.shape[1:])
        units = {torch.float64: "fp64", torch.float32: "tf32" if tf32 else "fp32"}
        cores = "fp64" if layer.dtype == torch.float64 else "fp32"
        x, y = math.prod(layer.input) * item, layer.rows * outs * item
        return cls(layer.rows, outs, ins, item, x, y, units.get(layer.dtype, "half"), cores)

    @property
    def tiles(self) -> int:
        """Groups of samples that thread blocks work on."""
        return -(-self.samples // SAMPLES)


def kernels(engine: str, layer: Workload, tf32: bool = False) -> list[Kernel]:
    """The kernels of one training step: forward, input gradient where it is wanted, weight gradient.

    Args:
        engine: ``dense``, ``guard`` (what masking adds to it), ``csr``, ``bsr`` or ``cover``.
        layer: Its work.
        tf32: Whether float32 may be rounded for the tensor cores.
    """
    size = _Sizes.of(layer, tf32)
    if engine == "dense":
        found = _dense(layer, size)
    elif engine == "guard":
        return [Kernel("zero pruned", 0.0, layer.numel * (3 * size.item + 2 * MASK_BYTES), 0.0, "fp32", launches=2)]
    elif engine == "csr":
        found = _csr(layer.kept, size)
    elif engine == "cover":
        assert layer.cover is not None
        found = [*_bsr(layer.cover, layer.stored, size), *_padding(layer.kept, layer.stored, size)]
    else:
        assert engine == "bsr" and layer.block is not None
        found = _bsr(layer.block, layer.kept - layer.singles, size)
        if layer.singles:
            sums = Kernel("add outputs", 0.0, 3 * size.y + 3 * size.x, 0.0, size.cores, launches=2)
            found += [*_csr(layer.singles, size), sums]
    return found if layer.input_grad else [kernel for kernel in found if kernel.name != INPUT_GRAD]


FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input gradient", "weight gradient"


def _dense(layer: Workload, size: _Sizes) -> list[Kernel]:
    flops, weight = 2.0 * size.samples * layer.numel, layer.numel * size.item
    share = 1.0 if layer.kind == "linear" else CONV_SHARE
    sides = (FORWARD, size.samples, size.outs, size.ins), (INPUT_GRAD, size.samples, size.ins, size.outs)
    found: list[Kernel] = []
    for name, height, width, depth in (*sides, (WEIGHT_GRAD, size.outs, size.ins, size.samples)):
        tiles = -(-height // TILE) * -(-width // TILE)
        # Each tile reads its rows and columns of both factors.
        l2 = (height * depth * -(-width // TILE) + width * depth * -(-height // TILE)) * size.item
        parts = tiles * max(1, depth // SPLIT)
        hbm = size.x + size.y + weight
        found.append(Kernel(name, flops, hbm, l2, size.unit, True, parts, share=share))
    return found


def _csr(kept: int, size: _Sizes) -> list[Kernel]:
    """Element kernels: one value from L2 for each multiply-add, on ordinary cores."""
    flops, reads = 2.0 * size.samples * kept, 1.0 * size.samples * kept * size.item
    entry = 2 if max(size.outs, size.ins) <= 2**16 else INDEX_BYTES
    listed = kept * size.tiles
    values = kept * (size.item + entry)
    down, across = (-(-side // ROWS_EACH) * size.tiles for side in (size.outs, size.ins))
    return [
        # So that the samples of one feature lie side by side; the backward pass does it for both operands.
        Kernel("transposing", 0.0, 2 * (2 * size.x + 2 * size.y), 0.0, size.cores, launches=4),
        Kernel(FORWARD, flops, size.x + size.y + values, reads + listed * (size.item + entry), size.cores, parts=down),
        Kernel(
            INPUT_GRAD,
            flops,
            size.x + size.y + values + kept * INDEX_BYTES,
            # Values are in the order of rows: in that of columns each one is somewhere else.
            reads + listed * (entry + INDEX_BYTES + SECTOR),
            size.cores,
            parts=across,
        ),
        Kernel(WEIGHT_GRAD, flops, size.x + size.y + values, reads + kept * entry, size.cores, parts=kept / ROWS_EACH),
    ]


def _bsr(block: tuple[int, int], stored: int, size: _Sizes) -> list[Kernel]:
    """Block kernels: a block reads its samples' inputs through L2, so few flops for each byte if it is small."""
    blocks, padded = stored / math.prod(block), stored
    if size.unit in ("tf32", "half"):
        padded = blocks * math.prod(-(-side // MMA_SIDE) * MMA_SIDE for side in block)
    flops = 2.0 * size.samples * padded
    # What is larger than a tile of outputs is worked on by several thread blocks, each of which reads the inputs.
    height, width = (-(-side // OWN_TILE) for side in block)
    x, y = (blocks * size.samples * side * size.item for side in reversed(block))
    values = stored * size.item
    hbm, again = size.x + size.y + values + blocks * INDEX_BYTES, values * size.tiles
    down, across = (
        -(-n // side) * count * size.tiles
        for n, side, count in zip((size.outs, size.ins), block, (height, width), strict=True)
    )
    return [
        Kernel(FORWARD, flops, hbm, x * height + again, size.unit, parts=down),
        Kernel(INPUT_GRAD, flops, hbm, y * width + again, size.unit, parts=across),
        Kernel(WEIGHT_GRAD, flops, hbm, x * height + y * width, size.unit, parts=blocks * height * width),
    ]


def _padding(kept: int, stored: int, size: _Sizes) -> list[Kernel]:
    """Putting single values among a cover's, and picking their gradients."""
    placed = kept * (PLACE_BYTES + size.item + SECTOR)
    return [
        Kernel("placing values", 0.0, stored * size.item + placed, 0.0, size.cores, launches=2),
        Kernel("picking gradients", 0.0, placed, 0.0, size.cores),
    ]


def step(found: list[Kernel], gpu: Gpu) -> float:
    """Seconds of kernels one after the other."""
    return sum(kernel.seconds(gpu) for kernel in found)


def seconds(engine: str, layer: Workload, gpu: Gpu, tf32: bool = False) -> float:
    """Predicted seconds of one training step of a layer; ``masked`` is dense and the guard."""
    names = ("dense", "guard") if engine == "masked" else (engine,)
    return sum(step(kernels(name, layer, tf32), gpu) for name in names)
