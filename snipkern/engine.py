"""Engines: how each pruned layer computes, chosen by a cost model and always with a reason.

``csr``     kept weights only, by the sparse kernels
``bsr``     kept blocks of weights only, by the block kernels
``masked``  a dense weight whose pruned entries are held at zero: dense speed and memory
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from snipkern import backends

__all__ = ["ENGINES", "Choice", "choose"]

ENGINES = ("auto", "bsr", "csr", "masked")
SPARSE_ENGINES = ("bsr", "csr")
ASSUMED_ROWS = 128
# Channels that dense convolution kernels compute at once, whether they are there or not.
CHANNEL_BLOCK = 16
# How much faster than dense a layer must be predicted to be; predictions are off by a tenth as a rule (calibrate.py).
MARGIN = 1.2


@dataclass(frozen=True)
class Cost:
    """What one layer's training step (forward and both backward products) costs on one backend.

    Attributes:
        call: Fixed cost in microseconds.
        weight: Nanoseconds for each weight that is stored: it is read, and its gradient written, once a step.
        element: Nanoseconds for each input and output element: reading, packing, writing.
        product: Nanoseconds for each row and stored weight: three multiply-adds.
    """

    call: float
    weight: float
    element: float
    product: float

    def microseconds(self, layer: Work, threads: int = 1) -> float:
        """Predicted time of one step; everything but the fixed cost is shared by the threads."""
        nanoseconds = self.weight * layer.weights + layer.rows * (
            self.element * layer.elements + self.product * layer.products
        )
        return self.call + 1e-3 * nanoseconds / threads


@dataclass(frozen=True)
class Work:
    """What the cost of one layer depends on.

    Attributes:
        rows: Rows of the matrix product: samples, times output positions for a convolution.
        elements: Input and output elements of each row (channels, for a convolution).
        weights: Stored weights: all of them, or the kept ones.
        products: Weights that each row is multiplied by; more than are stored where a kernel pads its channels.
    """

    rows: int
    elements: int
    weights: int
    products: int

    @classmethod
    def dense(cls, kind: str, rows: int, inputs: int, outputs: int, numel: int) -> Work:
        """Of a dense layer; dense convolutions work on whole blocks of channels."""
        products = numel
        if kind == "conv":
            window = numel // max(inputs * outputs, 1)
            products = window * math.prod(
                -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK for channels in (inputs, outputs)
            )
        return cls(rows, inputs + outputs, numel, products)

    @classmethod
    def sparse(cls, rows: int, inputs: int, outputs: int, kept: int) -> Work:
        """Of a layer that computes with its kept weights only."""
        return cls(rows, inputs + outputs, kept, kept)


# Measured by benchmarks/calibrate.py on one thread of an AVX-512 server core at 2 GHz; only their ratios matter.
# Dense is the default of torch: nn.Linear (MKL) and nn.Conv2d (oneDNN).
DENSE = {"linear": Cost(81.0, 1.81, 0, 0.0614), "conv": Cost(408.0, 39.6, 5.53, 0.0367)}
SPARSE = {
    "avx512": {"linear": Cost(174.0, 5.62, 4.34, 0.167), "conv": Cost(184.0, 134, 3.77, 0.105)},
    "avx2": {"linear": Cost(175.0, 4.35, 3.54, 0.221), "conv": Cost(175.0, 164, 3.74, 0.142)},
    "scalar": {"linear": Cost(176.0, 4.66, 3.64, 0.382), "conv": Cost(174.0, 349, 4.08, 0.24)},
}


# The same for layers of whole blocks: "square" where both sides are 4 or more, "tall" and "wide" where only the height
# or the width is. Fitted on a machine that others kept busy (median errors of 13 to 26 %): square to 4x4, 8x8, 16x16,
# tall to 4x1, 8x1, 16x1 and 1x4 together; the last column of "wide" is csr's entry times how much longer a 4096 x 4096
# layer of blocks 1x4 took than csr.
BLOCKS = {
    "avx512": {
        "linear": {
            "tall": Cost(85.0, 0, 2.25, 0.121),
            "wide": Cost(85.0, 0, 2.25, 0.167),
            "square": Cost(85.0, 0, 1.64, 0.117),
        }
    },
    "avx2": {
        "linear": {
            "tall": Cost(96.0, 0, 2.59, 0.193),
            "wide": Cost(96.0, 0, 2.59, 0.366),
            "square": Cost(85.0, 0, 2.26, 0.173),
        }
    },
    "scalar": {
        "linear": {
            "tall": Cost(93.0, 0, 2.92, 0.432),
            "wide": Cost(93.0, 0, 2.92, 0.77),
            "square": Cost(105.0, 0, 2.03, 0.4),
        }
    },
}


# Time of a convolution's three products by blocks as a share of csr's, for four 3x3 layers of 64 to 512 channels, batch
# 128, 5 % kept, on AVX-512 and a machine that others kept busy: 0.69 to 1.02 for "tall", 0.75 to 1.01 for "square". Only
# blocks of several rows share loads, and not in the input gradient.
CONV_BLOCKS = {"tall": 0.86, "wide": 1.0, "square": 0.9}


def block_cost(tier: str, kind: str, block: tuple[int, int]) -> Cost:
    """Of a layer whose kernels compute with blocks of this height and width."""
    if max(block) < 4:
        return SPARSE[tier][kind]
    form = "square" if min(block) >= 4 else "tall" if block[0] >= 4 else "wide"
    if kind == "conv":
        single = SPARSE[tier][kind]
        return replace(single, product=single.product * CONV_BLOCKS[form])
    return BLOCKS[tier][kind][form]


@dataclass(frozen=True)
class Choice:
    """One layer's engine and why."""

    engine: str
    reason: str


def choose(
    engine: str,
    *,
    obstacle: str | None,
    kind: str,
    inputs: int,
    outputs: int,
    numel: int,
    kept: int,
    rows: int | None,
    device: torch.device,
    block: tuple[int, int] | None = None,
) -> Choice:
    """The engine for one layer.

    Args:
        engine: What the user asked for: ``auto``, ``bsr``, ``csr`` or ``masked``.
        obstacle: Why there is no sparse kernel for it, or None.
        kind: ``linear`` or ``conv``.
        inputs, outputs: Elements that each row reads and writes (channels, for a convolution).
        numel, kept: Weights, and kept weights.
        rows: Rows of the matrix product per batch as seen while scoring, or None.
        device: Where the layer is.
        block: Height and width of the blocks that are kept, or None: single weights.
    """
    if obstacle:
        return Choice("masked", obstacle)
    if engine == "masked":
        return Choice("masked", "as asked")
    if engine == "csr":
        return Choice("csr", "as asked")
    if engine == "bsr":
        return Choice("bsr", "as asked") if block else Choice("csr", "smaller than a block")
    tier = backends.isa() if backends.active(device) == "cpu" else None
    if tier is None:
        where = "nothing is compiled" if device.type == "cpu" else f"no {device.type} kernels yet"
        return Choice("bsr" if block else "csr", f"reference kernels ({where}): less memory, no gain in time")
    rows = rows or ASSUMED_ROWS
    threads = torch.get_num_threads()
    work = Work.sparse(rows, inputs, outputs, kept)
    best, sparse = "csr", SPARSE[tier][kind].microseconds(work, threads)
    if block is not None:
        by_block = block_cost(tier, kind, block).microseconds(work, threads)
        if by_block < sparse:
            best, sparse = "bsr", by_block
    dense = DENSE[kind].microseconds(Work.dense(kind, rows, inputs, outputs, numel), threads)
    speedup = dense / sparse
    ratio = f"predicted {speedup:.1f}x dense for {rows} rows"
    if speedup >= MARGIN:
        return Choice(best, ratio)
    return Choice("masked", f"{best} would be {'slower' if speedup < 1 else 'hardly faster'}: {ratio}")
