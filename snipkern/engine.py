"""Engines: how each pruned layer computes, chosen by a cost model that is checked by measuring, always with a reason.

``csr``     kept weights only, by the sparse kernels
``bsr``     kept blocks of weights only, by the block kernels
``masked``  a dense weight whose pruned entries are held at zero: dense speed (less the guarding) and memory
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from snipkern import backends
from snipkern.costs import AMX, COSTS
from snipkern.masks import Mask
from snipkern.measure import Times, forbidden, measure
from snipkern.workload import Workload

__all__ = ["ENGINES", "Choice", "Cost", "Prediction", "Work", "choose", "predict"]

ENGINES = ("auto", "bsr", "csr", "masked")
SPARSE_ENGINES = ("bsr", "csr")
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
# How many times as fast as dense a layer must be predicted to be where it can't be measured: predictions are off by a
# tenth as a rule.
MARGIN = 1.2
# How far two measurements of one thing differ. A sparse layer must be faster than the masked one by more, and not
# slower than plain dense by more: ties are sparse, for what they save the optimiser and memory, which isn't timed here.
NOISE = 1.03
# Where guarding takes a larger share of dense than this, masked breaks the promise of dense speed as well, and the
# faster one is taken: layers so small, or of so few rows, that going through their weights is a good part of the work.
GUARD_SHARE = 0.1
# A prediction further than this from break-even is believed, however bad the worst one of the calibration was.
LARGEST_SPREAD = 2.5
ASKED = "as asked"
NO_BLOCKS = "too small for blocks"


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
        """Of a layer that computes with its kept weights only."""
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
    """The constants of that row; float64 is taken for float32 at half the speed."""
    found = Cost(*COSTS[row(engine, layer, tier)])
    if engine == "bsr" and layer.kind not in BLOCK_KINDS:
        found = replace(found, product=found.product * CONV_BLOCKS.get(form(layer), 1.0))
    if layer.dtype != torch.float64:
        return found
    return Cost(found.call, 2 * found.weight, 2 * found.element, 2 * found.product, found.spread)


@dataclass(frozen=True)
class Prediction:
    """Predicted microseconds of one training step, and the factor within which their ratio is to be trusted.

    Attributes:
        dense, masked, sparse: Of the dense module, the guarded one, and the faster of the sparse ones.
        spread: The factor.
        engine: The faster sparse engine.
    """

    dense: float
    masked: float
    sparse: float
    spread: float
    engine: str = "csr"


def predict(layer: Workload, engine: str | None = None) -> Prediction:
    """What the cost model says of a layer on the CPU, for torch's present number of threads.

    Args:
        layer: Its work.
        engine: The sparse engine; None: the faster one.
    """
    tier = backends.isa()
    assert tier is not None, "predict: there must be compiled kernels"
    threads = torch.get_num_threads()
    dense_cost = cost("dense", layer, tier)
    dense = dense_cost.microseconds(Work.dense(layer), threads)
    guard = cost("guard", layer, tier).microseconds(Work.guard(layer), threads)
    work = Work.sparse(layer)
    possible = (engine,) if engine else SPARSE_ENGINES if layer.block else ("csr",)
    sparse, engine = min((cost(name, layer, tier).microseconds(work, threads), name) for name in possible)
    spread = min(dense_cost.spread * cost(engine, layer, tier).spread, LARGEST_SPREAD)
    if layer.channels_last or (layer.dtype in (torch.float16, torch.bfloat16) and has_amx() != AMX):
        spread = math.inf  # the table has no such layers, or is of another kind of processor
    return Prediction(dense, dense + guard, sparse, spread, engine)


@functools.cache
def has_amx() -> bool:
    """Whether this processor multiplies 16-bit matrices in tiles; False also where torch doesn't tell."""
    tell = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(tell and tell())


@dataclass(frozen=True)
class Choice:
    """One layer's engine and why.

    Attributes:
        engine: "bsr", "csr" or "masked".
        reason: In a few words.
        predicted, measured: How many times as fast as the dense module the sparse one is; None where nobody has looked.
    """

    engine: str
    reason: str
    predicted: float | None = None
    measured: float | None = None


def choose(engine: str, layer: Workload | None, mask: Mask, *, obstacle: str | None = None) -> Choice:
    """The engine for one layer.

    ``auto`` takes csr (or bsr) where it is faster than the masked layer, which would have to run instead, and not
    slower than the plain dense one (unless the guarding makes masked clearly slower than that too). It goes by the cost
    model where that is clear, and measures the layer where it is not, unless ``torch.use_deterministic_algorithms`` is
    on or there are several ranks, which must choose alike: then it has to be predicted to win by a margin. Masks never
    depend on any of this.

    Args:
        engine: What the user asked for: ``auto``, ``bsr``, ``csr`` or ``masked``.
        layer: Its work, with its block if it keeps whole ones; None for one that is not a linear or convolution layer.
        mask: Which of its weights are kept.
        obstacle: Why there is no sparse kernel for it, or None.

    Raises:
        ValueError: For a mask that keeps a part of a block.
    """
    if obstacle or layer is None:
        return Choice("masked", obstacle or "no sparse kernel")
    if engine in ("csr", "masked"):
        return Choice(engine, ASKED)
    if engine == "bsr":
        return Choice("bsr", ASKED) if layer.block else Choice("csr", NO_BLOCKS)
    missing = missing_kernels(layer.device)
    if missing:
        reason = f"reference kernels ({missing}): less memory, no gain in time"
        return Choice("bsr" if layer.block else "csr", reason)
    prediction = predict(layer)
    if clear(prediction):
        return _chosen(layer, prediction)
    reason = forbidden()
    return _chosen(layer, prediction, None if reason else measure(computing(layer, prediction.engine), mask), reason)


def computing(layer: Workload, engine: str) -> Workload:
    """The layer as one engine computes it: csr with the single weights of its blocks."""
    return layer if engine == "bsr" else replace(layer, block=None)


def missing_kernels(device: torch.device) -> str | None:
    """Why sparse layers on this device run on the reference kernels; None where they don't."""
    if backends.active(device) == "cpu":
        return None
    return "nothing is compiled" if device.type == "cpu" else f"no {device.type} kernels yet"


def clear(prediction: Prediction) -> bool:
    """Whether break-even is further away than the cost model errs."""
    alternative = min(prediction.masked, prediction.dense)
    gain = max(alternative / prediction.sparse, prediction.sparse / alternative)
    return gain > prediction.spread


def check(layer: Workload, mask: Mask, choice: Choice) -> Choice:
    """The same choice, with its layer predicted and measured on the CPU whatever was clear before."""
    prediction = predict(layer, choice.engine if choice.engine in SPARSE_ENGINES else None)
    found = _chosen(layer, prediction, measure(computing(layer, prediction.engine), mask))
    reason = found.reason
    if choice.engine != found.engine:
        ratio = _ratio(layer, found)
        reason = f"{found.engine} would be faster: {ratio}" if choice.engine == "masked" else ratio
    if choice.reason.startswith(ASKED):
        reason = f"{ASKED}; {reason}"
    return Choice(choice.engine, reason, found.predicted, found.measured)


def _chosen(
    layer: Workload, prediction: Prediction, times: Times | None = None, unmeasured: str | None = None
) -> Choice:
    predicted = prediction.dense / prediction.sparse
    if times is None:
        speedup, measured = predicted, None
        faster = predicted >= MARGIN
    else:
        speedup = measured = times.dense / times.sparse
        kept_promise = speedup * NOISE >= 1 or times.masked > (1 + GUARD_SHARE) * times.dense
        faster = kept_promise and times.masked / times.sparse >= NOISE
    choice = Choice(prediction.engine if faster else "masked", "", predicted, measured)
    reason = _ratio(layer, choice)
    if unmeasured:
        reason += f"; not measured, {unmeasured}"
    if faster and speedup * NOISE < 1:
        reason = f"masked would be slower still: {reason}"
    if not faster:
        reason = f"{prediction.engine} would be {'slower' if speedup < 1 else 'hardly faster'}: {reason}"
    return replace(choice, reason=reason)


def _ratio(layer: Workload, choice: Choice) -> str:
    rows = f"{layer.rows} {'assumed ' if layer.assumed else ''}rows"
    if choice.measured is None:
        return f"predicted {choice.predicted:.1f}x dense for {rows}"
    return f"measured {choice.measured:.1f}x dense for {rows} (predicted {choice.predicted:.1f}x)"
