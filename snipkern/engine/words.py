"""How fast a layer is, in words for the report."""

from __future__ import annotations

from snipkern.engine.recurrent import RecurrentWorkload
from snipkern.engine.workload import Workload

__all__ = ["blocks", "in_words"]


def in_words(layer: Workload | RecurrentWorkload, engine: str, predicted: float | None, measured: float | None) -> str:
    """How fast the sparse engine that was looked at is."""
    assumed = "assumed " if layer.assumed else ""
    if isinstance(layer, RecurrentWorkload):
        what = f"{layer.steps} {assumed}steps of {layer.batch}"
    else:
        what = f"{layer.rows} {assumed}rows"
    before = f"{blocks(layer)}: " if isinstance(layer, Workload) and engine == "cover" else ""
    if measured is None:
        return f"{before}predicted {predicted:.1f}x dense for {what}"
    return f"{before}measured {measured:.1f}x dense for {what} (predicted {predicted:.1f}x)"


def blocks(layer: Workload) -> str:
    """Which blocks cover a layer, and how well."""
    assert layer.cover is not None
    return f"in blocks of {layer.cover[0]}x{layer.cover[1]}, {layer.kept / max(layer.stored, 1):.0%} full"
