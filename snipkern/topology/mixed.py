"""Topologies of blocks with single weights beside them, and which topology a mask and its layout call for."""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.topology.block import BlockTopology
from snipkern.topology.cover import CoverTopology
from snipkern.topology.csr import BaseTopology, Topology

__all__ = ["MixedTopology", "build"]


class MixedTopology(BaseTopology):
    """Whole blocks, and single weights beside them.

    The values are those of the blocks, as :class:`BlockTopology` has them, and behind them the single weights in
    row-major order.

    Attributes:
        blocks, singles: Topologies of the two parts.

    Cost: that of both.

    Raises:
        ValueError: As :class:`BlockTopology` for what the single weights leave of the mask; for a layout without single
            weights, or with ones that the mask does not keep.
    """

    __slots__ = ("_layout", "blocks", "singles")

    def __init__(self, mask: Mask, layout: Layout) -> None:
        super().__init__(mask)
        singles = layout.singles
        if singles is None or singles.shape != mask.shape or bool((singles.words & ~mask.words).any()):
            got = "none" if singles is None else f"{singles!r} for {mask!r}"
            raise ValueError(f"MixedTopology: the single weights must be a part of the mask (got {got})")
        self._layout = layout
        whole = Mask(mask.words & ~singles.words, mask.shape)
        self.blocks = BlockTopology(whole, layout.block, layout.row_order, layout.col_order)
        self.singles = Topology(singles)

    @property
    def layout(self) -> Layout:
        return self._layout

    def flat_index(self, device: torch.device) -> Tensor:
        return torch.cat([self.blocks.flat_index(device), self.singles.flat_index(device)])

    def held(self, device: torch.device) -> list[Tensor]:
        return [self.mask.words, *self.blocks.held(device), *self.singles.held(device)]

    def __reduce__(self) -> tuple[type[MixedTopology], tuple[object, ...]]:
        return MixedTopology, (self.mask, self._layout)

    def __repr__(self) -> str:
        return f"MixedTopology({self.blocks!r} + {self.singles!r})"


def build(mask: Mask, layout: Layout | None = None, cover: Layout | None = None) -> BaseTopology:
    """The topology of a mask: of single weights, or of its blocks and what else there is in a layout.

    Args:
        mask: Which weights are kept.
        layout: The blocks that they are on; None: they are single ones.
        cover: For single ones: the grid of the blocks to compute with, which may be kept in part.

    Raises:
        ValueError: For a mask or a layout that can't be, or that don't fit each other.
    """
    if cover is not None:
        if layout is not None:
            raise ValueError("build: give either layout or cover (got both)")
        return CoverTopology(mask, cover)
    if layout is None:
        return Topology(mask)
    if layout.singles is None:
        return BlockTopology(mask, layout.block, layout.row_order, layout.col_order)
    return MixedTopology(mask, layout)
