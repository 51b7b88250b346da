"""The cost model: what a training step of one layer is predicted to take on a CPU, dense, masked and sparse."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from snipkern import backends
from snipkern.engine import gpu_model
from snipkern.engine.costs import AMX, COSTS
from snipkern.engine.prediction import Prediction
from snipkern.engine.workload import Workload

__all__ = ["SPARSE_ENGINES", "Cost", "Prediction", "Work", "predict"]

SPARSE_ENGINES = ("bsr", "cover", "csr")
# Kinds of layers whose block kernels have rows of their own in the table of costs.
BLOCK_KINDS = ("linear",)
# A block side from which on its kernels share loads along it.
SHARING_SIDE = 4
# Time of a convolution's three products by blocks as a share of csr's, for four 3x3 layers of 64 to 512 channels, batch
# 128, 5 % kept, on AVX-512 and a machine that others kept busy: 0.69 to 1.02 for "tall", 0.75 to 1.01 for "square".
# Only blocks of several rows share loads, and not in the input gradient.
CONV_BLOCKS = {"bsr tall": 0.86, "bsr wide": 1.02, "bsr square": 0.9}
# Channels that dense convolution kernels compute at once, whether they are there or not.
CHANNEL_BLOCK = 16
# A prediction further than this from break-even is believed, however bad the worst one of the calibration was.
LARGEST_SPREAD = 2.5


@dataclass(frozen=True)
class Cost:
    """What one layer's training step (forward and both backward products) costs on one backend.

    Attributes:
        call: Fixed cost in microseconds.
        weight: Nanoseconds for each weight that is stored: it is read, and its gradient written, once a step.
        element: Nanoseconds for each input and output element: reading, packing, writing.
        product: Nanoseconds for each row and stored weight: three multiply-adds.
        spread: The factor within which measurements lie of predictions.
    """

    call: float
    weight: float
    element: float
    product: float
    spread: float = 1.0

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
    def dense(cls, layer: Workload) -> Work:
        """Of a dense layer; dense convolutions work on whole blocks of channels."""
        products = layer.numel
        if layer.kind == "conv":
            blocks = (-(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK for channels in layer.shape[:2])
            products = math.prod(layer.shape[2:]) * math.prod(blocks)
        return cls(layer.rows, sum(layer.shape[:2]), layer.numel, products)

    @classmethod
    def guard(cls, layer: Workload) -> Work:
        """Of holding a dense layer's pruned weights at zero: its gradient and its weight are gone through."""
        return cls(0, 0, layer.numel, 0)

    @classmethod
    def sparse(cls, layer: Workload) -> Work:
        """Of a layer that computes with its kept weights only, one by one or all in blocks."""
        return cls(layer.rows, sum(layer.shape[:2]), layer.kept, layer.kept)


def row(engine: str, layer: Workload, tier: str) -> str:
    """Name of the row of the table for ``dense``, ``guard`` or a sparse engine; float64 has none of its own.

    Blocks are "square" where both sides are 4 or more, "tall" and "wide" where only the height or the width is; smaller
    ones compute like single weights.
    """
    dtype = str(layer.dtype).removeprefix("torch.").replace("float64", "float32")
    if engine == "dense":
        return f"dense {dtype} {layer.kind}"
    if engine == "guard":
        return f"guard {tier} {dtype}"
    if engine == "bsr":
        engine = form(layer) if layer.kind in BLOCK_KINDS else "csr"
    return f"{engine} {tier} {dtype} {layer.kind}"


def form(layer: Workload) -> str:
    """What blocks are like for the kernels: those of small ones compute like csr's."""
    assert layer.block is not None
    tall, wide = (side >= SHARING_SIDE for side in layer.block)
    return "bsr square" if tall and wide else "bsr tall" if tall else "bsr wide" if wide else "csr"


def cost(engine: str, layer: Workload, tier: str) -> Cost:
    """The constants of that row; float64 is taken for float32 at half the speed, a cover for blocks."""
    if engine == "cover":
        engine, layer = "bsr", _as_blocks(layer)
    found = Cost(*COSTS[row(engine, layer, tier)])
    if engine == "bsr" and layer.kind not in BLOCK_KINDS:
        found = replace(found, product=found.product * CONV_BLOCKS.get(form(layer), 1.0))
    if layer.dtype != torch.float64:
        return found
    return Cost(found.call, 2 * found.weight, 2 * found.element, 2 * found.product, found.spread)


def predict(layer: Workload, *engines: str) -> Prediction:
    """What the cost model says of a layer: on the CPU for torch's present number of threads, else for its GPU.

    Args:
        layer: Its work.
        engines: The sparse engines to choose from; none: those that suit the mask and have kernels.
    """
    if layer.device.type == "cuda":
        return gpu_model.predict(layer, engines or gpu_model.served(layer))
    tier = backends.isa()
    assert tier is not None, "predict: there must be compiled kernels"
    threads = torch.get_num_threads()
    dense_cost = cost("dense", layer, tier)
    dense = dense_cost.microseconds(Work.dense(layer), threads)
    guard = cost("guard", layer, tier).microseconds(Work.guard(layer), threads)
    possible = engines or (("bsr", "csr") if layer.block else ("csr",))
    sparse, engine = min((sparse_microseconds(name, layer, tier, threads), name) for name in possible)
    spread = min(dense_cost.spread * cost(engine, layer, tier).spread, LARGEST_SPREAD)
    if layer.channels_last or (layer.dtype in (torch.float16, torch.bfloat16) and has_amx() != AMX):
        spread = math.inf  # the table has no such layers, or is of another kind of processor
    return Prediction(dense, dense + guard, sparse, spread, engine)


def sparse_microseconds(engine: str, layer: Workload, tier: str, threads: int) -> float:
    """Of one sparse engine; single weights beside blocks are a second layer, whose output is added.

    A cover is blocks, kept or not; that values are put among them isn't counted.
    """
    if engine == "cover":
        engine, layer = "bsr", _as_blocks(layer)
    if engine != "bsr" or not layer.singles:
        return cost(engine, layer, tier).microseconds(Work.sparse(layer), threads)
    blocks, single = replace(layer, kept=layer.kept - layer.singles), replace(layer, kept=layer.singles)
    parts = (cost("bsr", blocks, tier), blocks), (cost("csr", single, tier), single)
    return sum(part.microseconds(Work.sparse(work), threads) for part, work in parts)


def _as_blocks(layer: Workload) -> Workload:
    """The layer that keeps all of its covering blocks."""
    return replace(layer, block=layer.cover, kept=layer.stored)


@functools.cache
def has_amx() -> bool:
    """Whether this processor multiplies 16-bit matrices in tiles; False also where torch doesn't tell."""
    tell = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(tell and tell())
