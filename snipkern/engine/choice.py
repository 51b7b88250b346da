"""Engines: how each pruned layer computes, chosen by a cost model that is checked by measuring, always with a reason.

``csr``     kept weights only, by the sparse kernels
``bsr``     kept blocks of weights only, by the block kernels, and single weights beside them by csr's
``masked``  a dense weight whose pruned entries are held at zero: dense speed (less the guarding) and memory
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from snipkern import backends
from snipkern.engine.cost_model import BLOCK_KINDS as BLOCK_KINDS
from snipkern.engine.cost_model import SPARSE_ENGINES, Cost, Prediction, Work, predict
from snipkern.engine.cost_model import has_amx as has_amx
from snipkern.engine.cost_model import row as row
from snipkern.engine.measure import Times, forbidden, measure
from snipkern.engine.workload import Workload
from snipkern.layout import Layout
from snipkern.masks import Mask

__all__ = ["ENGINES", "Choice", "Cost", "Prediction", "Work", "choose", "predict"]

ENGINES = ("auto", "bsr", "csr", "masked")
# How many times as fast as dense a layer must be predicted to be where it can't be measured: predictions are off by a
# tenth as a rule.
MARGIN = 1.2
# How far two measurements of one thing differ. A sparse layer must be faster than the masked one by more, and not
# slower than plain dense by more: ties are sparse, for what they save the optimiser and memory, which isn't timed here.
NOISE = 1.03
# Where guarding takes a larger share of dense than this, masked breaks the promise of dense speed as well, and the
# faster one is taken: layers so small, or of so few rows, that going through their weights is a good part of the work.
GUARD_SHARE = 0.1
ASKED = "as asked"


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


def choose(
    engine: str, layer: Workload | None, mask: Mask, *, obstacle: str | None = None, layout: Layout | None = None
) -> Choice:
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
        layout: The grid that the layer's block is of; None: the plain one.
        obstacle: Why there is no sparse kernel for it, or None.

    Raises:
        ValueError: For a mask that keeps a part of a block.
    """
    if obstacle or layer is None:
        return Choice("masked", obstacle or "no sparse kernel")
    if engine in ("csr", "masked"):
        return Choice(engine, ASKED)
    if engine == "bsr":
        return Choice("bsr", ASKED) if layer.block else Choice("csr", "too small for blocks")
    missing = missing_kernels(layer.device)
    if missing:
        reason = f"reference kernels ({missing}): less memory, no gain in time"
        return Choice("bsr" if layer.block else "csr", reason)
    prediction = predict(layer)
    if clear(prediction):
        return _chosen(layer, prediction)
    reason = forbidden()
    times = None if reason else _measured(layer, prediction.engine, mask, layout)
    return _chosen(layer, prediction, times, reason)


def _measured(layer: Workload, engine: str, mask: Mask, layout: Layout | None) -> Times:
    """Times of the layer as one engine computes it: csr with the single weights of its blocks."""
    if engine == "bsr":
        return measure(layer, mask, layout)
    return measure(replace(layer, block=None, singles=0, ordered=False), mask)


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


def check(layer: Workload, mask: Mask, choice: Choice, layout: Layout | None = None) -> Choice:
    """The same choice, with its layer predicted and measured on the CPU whatever was clear before."""
    prediction = predict(layer, choice.engine if choice.engine in SPARSE_ENGINES else None)
    found = _chosen(layer, prediction, _measured(layer, prediction.engine, mask, layout))
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
