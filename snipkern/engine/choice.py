"""Engines: how each pruned layer computes, chosen by a cost model that is checked by measuring, always with a reason.

``csr``     kept weights only, by the sparse kernels
``bsr``     kept blocks of weights only, by the block kernels, and single weights beside them by csr's
``cover``   kept single weights by the block kernels, in blocks that hold any, with zeros where they are pruned
``masked``  a dense weight whose pruned entries are held at zero: dense speed (less the guarding) and memory
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from snipkern import backends
from snipkern.engine import gpu_model
from snipkern.engine.cost_model import BLOCK_KINDS as BLOCK_KINDS
from snipkern.engine.cost_model import SPARSE_ENGINES, Cost, Work, predict
from snipkern.engine.cost_model import has_amx as has_amx
from snipkern.engine.cost_model import row as row
from snipkern.engine.covers import BLOCKS, covered
from snipkern.engine.measure import Times, forbidden, measure
from snipkern.engine.prediction import Prediction
from snipkern.engine.recurrent import RecurrentWorkload, predict_recurrent, shortened
from snipkern.engine.words import blocks, in_words
from snipkern.engine.workload import Workload
from snipkern.layout import Layout, has_room
from snipkern.masks import Mask

__all__ = ["ENGINES", "Choice", "Cost", "Prediction", "Work", "choose", "predict"]

ENGINES = ("auto", "bsr", "cover", "csr", "masked")
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
# What auto advises on a GPU for single weights that have to be computed with densely.
ADVISED_BLOCK = (32, 32)


@dataclass(frozen=True)
class Choice:
    """One layer's engine and why.

    Attributes:
        engine: "bsr", "cover", "csr" or "masked".
        reason: In a few words.
        predicted, measured: How many times as fast as the dense module the sparse one is; None where nobody has looked.
        cover: The grid of the covering blocks, for "cover".
        stored: Weights that those blocks have, kept or not.
    """

    engine: str
    reason: str
    predicted: float | None = None
    measured: float | None = None
    cover: Layout | None = None
    stored: int = 0


def choose(
    engine: str,
    layer: Workload | RecurrentWorkload | None,
    mask: Mask | Mapping[str, Mask],
    *,
    obstacle: str | None = None,
    layout: Layout | None = None,
) -> Choice:
    """The engine for one layer, or for all weights of a recurrent module.

    ``auto`` takes csr (or bsr) where it is faster than the masked layer, which would have to run instead, and not
    slower than the plain dense one (unless the guarding makes masked clearly slower than that too). It goes by the cost
    model where that is clear, and measures the layer where it is not, unless ``torch.use_deterministic_algorithms`` is
    on or there are several ranks, which must choose alike: then it has to be predicted to win by a margin. Masks never
    depend on any of this. On a GPU it may also cover single weights by blocks; where nothing sparse is worth it, but
    blocks would be, the reason says so.

    Args:
        engine: What the user asked for: ``auto``, ``bsr``, ``cover``, ``csr`` or ``masked``.
        layer: Its work, with its block if it keeps whole ones; None for one that has no sparse kernel.
        mask: Which of its weights are kept; of a recurrent module one for each weight, by name.
        layout: The grid that the layer's block is of; None: the plain one.
        obstacle: Why there is no sparse kernel for it, or None.

    Raises:
        ValueError: For a mask that keeps a part of a block.
    """
    if obstacle or layer is None:
        return Choice("masked", obstacle or "no sparse kernel")
    if isinstance(layer, RecurrentWorkload):
        assert not isinstance(mask, Mask)
        return _recurrent(engine, layer, mask)
    assert isinstance(mask, Mask)
    if engine in ("csr", "masked"):
        return Choice(engine, ASKED)
    if engine == "bsr" or (engine == "cover" and layer.block):
        return Choice("bsr", ASKED) if layer.block else Choice("csr", "too small for blocks")
    if engine == "cover":
        return _cover_asked(layer, mask)
    missing = missing_kernels(layer.device)
    if missing:
        return _on_reference(layer, missing)
    grid = None
    if layer.device.type == "cuda":
        layer, grid = _with_cover(layer, mask)
        if not gpu_model.served(layer):
            return Choice("masked", f"nothing sparse for it in {backends.active(layer.device)} kernels{_advice(layer)}")
    prediction = predict(layer)
    return _settled(layer, prediction, lambda: _measured(layer, prediction.engine, mask, layout, grid), grid)


def _settled(
    layer: Workload | RecurrentWorkload,
    prediction: Prediction,
    measured: Callable[[], Times],
    cover: Layout | None = None,
) -> Choice:
    """By the prediction where that is clear, else by measuring, if that is allowed."""
    if clear(prediction):
        return _chosen(layer, prediction, cover=cover)
    reason, times = forbidden(), None
    if reason is None:
        try:
            times = measured()
        except torch.OutOfMemoryError:
            reason = "the device's memory is full"
    return _chosen(layer, prediction, times, reason, cover)


def _recurrent(engine: str, layer: RecurrentWorkload, masks: Mapping[str, Mask]) -> Choice:
    """The engine of a recurrent module, timed on a part of its sequence; its kernels are for single weights only."""
    if engine == "masked":
        return Choice(engine, ASKED)
    if engine != "auto":
        return Choice("csr", ASKED if engine == "csr" else "recurrent kernels are for single weights")
    missing = missing_kernels(layer.device)
    if missing:
        return _on_reference(layer, missing)
    return _settled(layer, predict_recurrent(layer), lambda: measure(shortened(layer), masks))


def _cover_asked(layer: Workload, mask: Mask) -> Choice:
    """The cover that somebody insists on: for a GPU the one predicted to be fastest, else of the smallest blocks."""
    on_gpu = layer.device.type == "cuda"
    found = covered(layer, mask, (lambda work: gpu_model.seconds_here("cover", work)) if on_gpu else None)
    assert found is not None
    layer, grid = found
    return Choice("cover", f"{ASKED}; {blocks(layer)}", cover=grid, stored=layer.stored)


def _with_cover(layer: Workload, mask: Mask) -> tuple[Workload, Layout | None]:
    """The layer with its best cover, and that one; as it is and None where none can be faster than dense and csr."""
    if layer.block or "cover" not in gpu_model.served(replace(layer, cover=BLOCKS[0])):
        return layer, None
    limit = min(gpu_model.seconds_here(name, layer) for name in ("dense", *gpu_model.served(layer)))
    return covered(layer, mask, lambda work: gpu_model.seconds_here("cover", work), limit) or (layer, None)


def _on_reference(layer: Workload | RecurrentWorkload, missing: str) -> Choice:
    """A GPU's dense products are too fast to give up for memory alone."""
    if layer.device.type == "cuda":
        return Choice("masked", f"no sparse kernels on this GPU ({missing})")
    reason = f"reference kernels ({missing}): less memory, no gain in time"
    return Choice("bsr" if isinstance(layer, Workload) and layer.block else "csr", reason)


def _measured(layer: Workload, engine: str, mask: Mask, layout: Layout | None, cover: Layout | None = None) -> Times:
    """Times of the layer as one engine computes it: csr with the single weights of its blocks."""
    if engine == "bsr":
        return measure(layer, mask, layout)
    if engine == "cover":
        return measure(layer, mask, None, cover)
    return measure(replace(layer, block=None, singles=0, ordered=False, cover=None, stored=0), mask)


def missing_kernels(device: torch.device) -> str | None:
    """Why sparse layers on this device run on the reference kernels; None where they don't."""
    if backends.active(device) != "reference":
        return None
    if device.type == "cpu":
        return "nothing is compiled"
    return backends.missing_kernels(device) or f"{device.type} kernels are switched off"


def clear(prediction: Prediction) -> bool:
    """Whether break-even is further away than the cost model errs."""
    alternative = min(prediction.masked, prediction.dense)
    gain = max(alternative / prediction.sparse, prediction.sparse / alternative)
    return gain > prediction.spread


def check(
    layer: Workload | RecurrentWorkload,
    mask: Mask | Mapping[str, Mask],
    choice: Choice,
    layout: Layout | None = None,
) -> Choice:
    """The same choice, with its layer predicted and measured on its device whatever was clear before."""
    if isinstance(layer, RecurrentWorkload):
        assert not isinstance(mask, Mask)
        found = _chosen(layer, predict_recurrent(layer), measure(shortened(layer), mask))
        return _compared(layer, choice, found, "csr")
    assert isinstance(mask, Mask)
    if choice.cover is not None:
        layer = replace(layer, cover=choice.cover.block, stored=choice.stored, ordered=choice.cover.ordered)
    if layer.device.type == "cuda" and choice.engine == "masked" and not gpu_model.served(layer):
        return choice
    prediction = predict(layer, *((choice.engine,) if choice.engine in SPARSE_ENGINES else ()))
    times = _measured(layer, prediction.engine, mask, layout, choice.cover)
    found = _chosen(layer, prediction, times, cover=choice.cover)
    return _compared(layer, choice, found, prediction.engine)


def _compared(layer: Workload | RecurrentWorkload, choice: Choice, found: Choice, engine: str) -> Choice:
    """The choice, with the figures of one that was measured, and what that one would have been."""
    reason = found.reason
    if choice.engine != found.engine:
        ratio = in_words(layer, engine, found.predicted, found.measured)
        reason = f"{found.engine} would be faster: {ratio}" if choice.engine == "masked" else ratio
    if choice.reason.startswith(ASKED):
        reason = f"{ASKED}; {reason}"
    return replace(choice, reason=reason, predicted=found.predicted, measured=found.measured)


def _chosen(
    layer: Workload | RecurrentWorkload,
    prediction: Prediction,
    times: Times | None = None,
    unmeasured: str | None = None,
    cover: Layout | None = None,
) -> Choice:
    predicted = prediction.dense / prediction.sparse
    if times is None:
        speedup, measured = predicted, None
        # A model that was never fitted to such layers has to be sure.
        fitted = isinstance(layer, Workload) and layer.device.type != "cuda"
        faster = predicted >= (MARGIN if fitted else prediction.spread)
    else:
        speedup = measured = times.dense / times.sparse
        kept_promise = speedup * NOISE >= 1 or times.masked > (1 + GUARD_SHARE) * times.dense
        faster = kept_promise and times.masked / times.sparse >= NOISE
    choice = Choice(prediction.engine if faster else "masked", "", predicted, measured)
    reason = in_words(layer, prediction.engine, predicted, measured)
    if unmeasured:
        reason += f"; not measured, {unmeasured}"
    if faster and speedup * NOISE < 1:
        reason = f"masked would be slower still: {reason}"
    if not faster:
        unsure = measured is None and speedup >= MARGIN
        compared = "not surely faster" if unsure else "slower" if speedup < 1 else "hardly faster"
        reason = f"{prediction.engine} would be {compared}: {reason}{_advice(layer)}"
    used = cover if choice.engine == "cover" else None
    return replace(
        choice,
        reason=reason,
        cover=used,
        stored=layer.stored if used is not None and isinstance(layer, Workload) else 0,
    )


def _advice(layer: Workload | RecurrentWorkload) -> str:
    """What would be fast on a GPU, if anything would."""
    height, width = ADVISED_BLOCK
    if (
        isinstance(layer, RecurrentWorkload)
        or layer.device.type != "cuda"
        or layer.block
        or not has_room(layer.shape, (4 * height, 4 * width))
    ):
        return ""
    linear = layer.kind == "linear"
    # Blocks of linear layers come with orders, which cost passes over inputs and outputs, unless told otherwise.
    for ordered in (True, False) if linear else (False,):
        work = replace(layer, block=ADVISED_BLOCK, ordered=ordered, cover=None, stored=0)
        if "bsr" not in gpu_model.served(work):
            return ""
        found = predict(work, "bsr")
        if clear(found) and found.sparse < found.dense:
            plainly = ", order=False" if linear and not ordered else ""
            return f"; pass block={ADVISED_BLOCK}{plainly} for speed on this GPU"
    return ""
