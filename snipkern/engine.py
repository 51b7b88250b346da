"""Engines: how each pruned layer computes, chosen by a cost model and always with a reason.

``csr``     kept weights only, by the sparse kernels
``masked``  a dense weight whose pruned entries are held at zero: dense speed and memory
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snipkern import backends

__all__ = ["ENGINES", "Choice", "choose"]

ENGINES = ("auto", "csr", "masked")
ASSUMED_ROWS = 128


@dataclass(frozen=True)
class Cost:
    """What one layer's training step (forward and both backward products) costs on one backend.

    ``call``: fixed cost in microseconds; ``element``: nanoseconds to pack or unpack one input or output; ``product``:
    nanoseconds per multiply-add. Per element and product for one thread; only ratios between rows matter.
    """

    call: float
    element: float
    product: float


# Measured with benchmarks/layers.py on one AVX-512 server core; dense is torch's default nn.Linear and nn.Conv2d.
DENSE = {"linear": Cost(31.0, 0.0, 0.0160), "conv": Cost(60.0, 0.1, 0.0120)}
SPARSE = {
    "avx512": {"linear": Cost(111.0, 0.6, 0.060), "conv": Cost(150.0, 1.0, 0.060)},
    "avx2": {"linear": Cost(111.0, 0.8, 0.070), "conv": Cost(150.0, 1.3, 0.080)},
    "scalar": {"linear": Cost(111.0, 1.5, 0.200), "conv": Cost(150.0, 2.5, 0.250)},
}
# A guarded dense weight: two hooks a step, and zeroing weight, gradient and two moments.
GUARD = Cost(20.0, 0.0, 0.0)


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
) -> Choice:
    """The engine for one layer.

    Args:
        engine: What the user asked for: ``auto``, ``csr`` or ``masked``.
        obstacle: Why there is no sparse kernel for it, or None.
        kind: ``linear`` or ``conv``.
        inputs, outputs: Elements that each row reads and writes (channels, for a convolution).
        numel, kept: Weights, and kept weights.
        rows: Rows of the matrix product per batch as seen while scoring, or None.
        device: Where the layer is.
    """
    if obstacle:
        return Choice("masked", obstacle)
    if engine == "masked":
        return Choice("masked", "as asked")
    if engine == "csr":
        return Choice("csr", "as asked")
    tier = backends.isa() if backends.active(device) == "cpu" else None
    if tier is None:
        where = "nothing is compiled" if device.type == "cpu" else f"no {device.type} kernels yet"
        return Choice("csr", f"reference kernels ({where}): less memory, no gain in time")
    rows = rows or ASSUMED_ROWS
    sparse = _time(SPARSE[tier][kind], rows, inputs + outputs, kept)
    dense = _time(DENSE[kind], rows, inputs + outputs, numel) + GUARD.call
    ratio = f"predicted {dense / sparse:.1f}x dense for {rows} rows"
    return Choice("csr", ratio) if sparse < dense else Choice("masked", f"csr would be slower: {ratio}")


def _time(cost: Cost, rows: int, elements: int, products: int) -> float:
    """Microseconds of one training step."""
    return cost.call + 1e-3 * rows * (cost.element * elements + cost.product * products)
