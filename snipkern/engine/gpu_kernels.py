"""Every kernel of a layer's training step on a GPU as formulas of its operations and bytes.

The formulas follow csrc/cuda: what a thread block reads for its tile of outputs, and how large these tiles are.
roofline.py makes time of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from snipkern.engine.devices import Gpu
from snipkern.engine.roofline import Kernel
from snipkern.engine.workload import Workload

__all__ = ["kernels", "seconds"]

FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input gradient", "weight gradient"
# Assumptions: what cuBLAS can cut small products into so that many thread blocks share them, a side and a stretch of
# the sum; and cuDNN's speed as a share of cuBLAS's.
PART, SPLIT, CONV_SHARE = 32, 256, 0.8
# csr_product.cuh: bytes of samples that an entry reads at once, and what its index and value cost in shared memory;
# rows of a thread block.
LINE, STAGED, CSR_ROWS = 128, 64, 32
# bsr_tile.cuh: samples of a thread block, and kept columns of one in the weight gradient.
SAMPLES, COLUMNS = 128, 64
# bsr_dispatch.cuh: rows (or columns) of a block that a thread block takes, by the unit that multiplies: the smallest of
# these that holds the block's side, else the largest, several times.
NARROW = {"half": (16, 32, 64), "tf32": (32, 64), "fp32": (16, 32), "fp64": (16,)}
# A read or write of one value somewhere moves a whole sector.
SECTOR = 32
INDEX, NARROW_INDEX, PLACE, MASK = 4, 2, 8, 1 / 8


@dataclass(frozen=True)
class _Sizes:
    """A layer's sizes: samples (rows of the product), features, bytes, and what multiplies its dtype.

    Attributes:
        samples, outs, ins: Of the product's rows and of the weight seen as a matrix.
        item: Bytes of an element.
        x, y: Bytes of input and output.
        unit, cores: What blocks, and single weights, are multiplied with.
        conv: Whether it is a convolution.
    """

    samples: int
    outs: int
    ins: int
    item: int
    x: float
    y: float
    unit: str
    cores: str
    conv: bool

    @classmethod
    def of(cls, layer: Workload, tf32: bool) -> _Sizes:
        item = layer.dtype.itemsize
        outs, ins = layer.shape[0], math.prod(layer.shape[1:])
        units = {torch.float64: "fp64", torch.float32: "tf32" if tf32 else "fp32"}
        cores = "fp64" if layer.dtype == torch.float64 else "fp32"
        x, y = math.prod(layer.input) * item, layer.rows * outs * item
        return cls(layer.rows, outs, ins, item, x, y, units.get(layer.dtype, "half"), cores, layer.kind == "conv")


def kernels(engine: str, layer: Workload, tf32: bool = False) -> list[Kernel]:
    """The kernels of one training step: forward, input gradient where it is wanted, weight gradient.

    Args:
        engine: ``dense``, ``guard`` (what masking adds to it), ``csr``, ``bsr`` or ``cover``.
        layer: Its work.
        tf32: Whether float32 may be rounded for the tensor cores.
    """
    size = _Sizes.of(layer, tf32)
    if engine == "dense":
        found = _dense(layer.numel, size)
    elif engine == "guard":
        # Gradient: read and written; weight: read, and written only where it isn't zero as it should be.
        bytes_moved = layer.numel * (3 * size.item + 2 * MASK)
        found = [Kernel("zero pruned", 0.0, bytes_moved, 0.0, 0.0, "fp32", launches=2)]
    elif engine == "csr":
        found = _csr(layer.kept, size)
    elif engine == "cover":
        assert layer.cover is not None
        found = [*_bsr(layer.cover, layer.stored, layer.ordered, size), *_padding(layer.kept, layer.stored, size)]
    else:
        assert engine == "bsr" and layer.block is not None
        found = _bsr(layer.block, layer.kept - layer.singles, layer.ordered, size)
        if layer.singles:
            added = Kernel("adding outputs", 0.0, 3 * (size.x + size.y), 0.0, 0.0, size.cores, launches=2)
            found += [*_csr(layer.singles, size), added]
    return found if layer.input_grad else [kernel for kernel in found if kernel.name != INPUT_GRAD]


def _dense(numel: int, size: _Sizes) -> list[Kernel]:
    """cuBLAS or cuDNN, whose tiles are so large that caches hold nothing up; what they read there isn't known."""
    flops, hbm = 2.0 * size.samples * numel, size.x + size.y + numel * size.item
    share = CONV_SHARE if size.conv else 1.0
    products = (
        (FORWARD, size.samples, size.outs, size.ins),
        (INPUT_GRAD, size.samples, size.ins, size.outs),
        (WEIGHT_GRAD, size.outs, size.ins, size.samples),
    )
    found: list[Kernel] = []
    for name, height, width, depth in products:
        parts = -(-height // PART) * -(-width // PART) * max(1, depth // SPLIT)
        found.append(Kernel(name, flops, hbm, 0.0, 0.0, size.unit, library=True, parts=parts, share=share))
    return found


def _csr(kept: int, size: _Sizes) -> list[Kernel]:
    """Element kernels: each multiply-add reads one value of the input, on ordinary cores."""
    flops, reads = 2.0 * size.samples * kept, 1.0 * size.samples * kept * size.item
    index = NARROW_INDEX if max(size.outs, size.ins) <= 2**16 else INDEX
    tiles = -(-size.samples * size.item // LINE)
    hbm, listed = size.x + size.y + kept * (size.item + index), kept * tiles * (size.item + index)
    l1 = reads + kept * tiles * STAGED
    down, across = (-(-side // CSR_ROWS) * tiles for side in (size.outs, size.ins))
    # Linear layers: x for the forward pass, x and the output's gradient for the backward one.
    turned = (
        [] if size.conv else [Kernel("transposing", 0.0, 4 * size.x + 2 * size.y, 0.0, 0.0, size.cores, launches=3)]
    )
    ordering = Kernel("ordering values", 0.0, kept * (INDEX + SECTOR + size.item), 0.0, 0.0, size.cores)
    return [
        *turned,
        Kernel(FORWARD, flops, hbm, reads + listed, l1, size.cores, parts=down),
        ordering,
        Kernel(INPUT_GRAD, flops, hbm, reads + listed, l1, size.cores, parts=across),
        # Split over samples until all multiprocessors are busy, and joined.
        Kernel(WEIGHT_GRAD, flops, hbm, reads + listed, l1, size.cores, launches=2),
    ]


def _bsr(block: tuple[int, int], stored: int, ordered: bool, size: _Sizes) -> list[Kernel]:
    """Block kernels: a thread block reads its samples' inputs for a block's rows, few if the block is small."""
    tensor, item = size.unit in ("tf32", "half"), size.item
    values = stored * item
    hbm = size.x + size.y + values + stored / math.prod(block) * INDEX
    reads = float(size.samples) * stored * item

    def product(name: str, side: int, outputs: int) -> Kernel:
        narrow = _narrow(side, size.unit)
        pieces = -(-side // narrow)
        padded = pieces * narrow / side
        wide = COLUMNS if name == WEIGHT_GRAD else SAMPLES
        again = reads / COLUMNS if name == WEIGHT_GRAD else values * -(-size.samples // SAMPLES)
        # Tensor cores: four warps share the wide tile, and each reads all of the narrow one; both are written once.
        # Other cores: a thread reads an eighth of the narrow tile and eight places of the wide one for each step.
        shared = 2 / narrow + 5 / wide if tensor else 8 / narrow + 1 / 8 + 1 / narrow + 1 / wide
        return Kernel(
            name,
            2.0 * size.samples * stored * padded,
            hbm,
            reads * pieces / side + again,
            reads * padded * shared,
            size.unit,
            parts=math.inf if name == WEIGHT_GRAD else -(-outputs // side) * pieces * -(-size.samples // SAMPLES),
            launches=2 if name == WEIGHT_GRAD else 1,
        )

    found = [
        product(FORWARD, block[0], size.outs),
        product(INPUT_GRAD, block[1], size.ins),
        product(WEIGHT_GRAD, block[0], size.outs),
    ]
    if ordered:
        # Forward: x and y; backward: the gradients of both, and x; and the orders are inverted.
        found.append(Kernel("reordering", 0.0, 6 * size.x + 4 * size.y, 0.0, 0.0, size.cores, launches=9))
    return found


def _narrow(side: int, unit: str) -> int:
    """Rows (or columns) of a block that one thread block works on."""
    return next((tile for tile in NARROW[unit] if side <= tile), NARROW[unit][-1])


def _padding(kept: int, stored: int, size: _Sizes) -> list[Kernel]:
    """Putting single values among a cover's, and picking their gradients."""
    moved = kept * (PLACE + size.item + SECTOR)
    return [
        Kernel("placing values", 0.0, stored * size.item + moved, 0.0, 0.0, size.cores, launches=2),
        Kernel("picking gradients", 0.0, moved, 0.0, 0.0, size.cores),
    ]


def seconds(engine: str, layer: Workload, gpu: Gpu, tf32: bool = False) -> float:
    """Predicted seconds of one training step of a layer; ``masked`` is dense and the guard."""
    names = ("dense", "guard") if engine == "masked" else (engine,)
    return sum(kernel.seconds(gpu) for name in names for kernel in kernels(name, layer, tf32))
