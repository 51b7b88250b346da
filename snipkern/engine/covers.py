"""The blocks that an element mask is to be covered with, if that can pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from snipkern.engine.workload import Workload
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.topology.cover import covering, fullest_first, stored_weights

__all__ = ["BLOCKS", "covered"]

# Sides that block kernels for tensor cores are good at, the one for which the grid is ordered last. An order that is
# good for large blocks is nearly as good for small ones: 16x16 blocks are filled to 4.66 % instead of 4.75 % in a
# layer of 4096 x 4096 of which 0.94 % are kept.
BLOCKS = ((16, 16), (32, 32))
# Grouping similar rows fills blocks at most so many times as well as putting the fullest ones first does: 1.1 to 1.7
# times for the masks in benchmarks/README.md.
GAIN = 2


def covered(
    layer: Workload, mask: Mask, cost: Callable[[Workload], float] | None = None, limit: float | None = None
) -> tuple[Workload, Layout] | None:
    """The grid of the covering blocks, and the layer's work with it.

    Args:
        layer: Its work.
        mask: Which of its weights are kept.
        cost: What a step takes with a cover, to choose between blocks by; None: the smallest ones.
        limit: Nothing is ordered, and None returned, where it can be seen that no cover costs less than this.

    Cost: seconds for large layers; see :func:`snipkern.topology.cover.covering`.
    """
    ordered = layer.kind == "linear"

    def candidate(grid: Layout, share: float = 1.0) -> Workload:
        stored = max(layer.kept, round(stored_weights(mask, grid) * share))
        return replace(layer, cover=grid.block, stored=stored, ordered=grid.ordered)

    if cost is not None and limit is not None:
        quick = (fullest_first(mask, block) if ordered else Layout(block) for block in BLOCKS)
        if min(cost(candidate(grid, 1 / GAIN if ordered else 1.0)) for grid in quick) > limit:
            return None
    if cost is None:
        grid = covering(mask, BLOCKS[0], ordered)
        return candidate(grid), grid
    last = covering(mask, BLOCKS[-1], ordered)
    grids = [Layout(block, last.row_order, last.col_order) for block in BLOCKS]
    found = [(candidate(grid), grid) for grid in grids]
    return min(found, key=lambda pair: cost(pair[0]))
