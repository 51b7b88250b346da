"""Block selection within layers: each keeps its best blocks, as many as its element-wise selection has weights for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.masks import Mask

__all__ = ["block_masks", "has_room"]

# Elements that are scored at a time.
CHUNK = 1 << 20


def has_room(shape: torch.Size | tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether a weight, seen as ``[shape[0], everything else]``, is at least one block high and wide."""
    return len(shape) >= 2 and shape[0] >= block[0] and torch.Size(shape[1:]).numel() >= block[1]


def block_masks(
    pairs: Mapping[str, tuple[Tensor, Tensor]], masks: Mapping[str, Mask], block: tuple[int, int]
) -> dict[str, Mask]:
    """Masks of whole blocks that keep at most as many weights of each parameter as the given ones.

    Kept are the blocks with the largest mean ``|w * g|``, ties by row-major block index: as many as fit, but at least
    one where anything was kept. Blocks on the far edges are smaller, and their mean is over their own size. A score is
    the float32 product of :func:`snipkern.select.select`; sums are float64 and in one order, so that the masks are the
    same on every backend and for every thread count.

    Args:
        pairs: Weight and gradient of each parameter, as for ``select``, finite.
        masks: The element-wise selection.
        block: Height and width.

    Returns:
        One mask per parameter; the given one where it has no room for a block.

    Cost: one read of the weights and gradients; memory for the block scores of one parameter.
    """
    with torch.no_grad():
        return {name: _block_mask(*pairs[name], mask, block) for name, mask in masks.items()}


def _block_mask(weight: Tensor, gradient: Tensor, mask: Mask, block: tuple[int, int]) -> Mask:
    budget = mask.count()
    if budget == 0 or not has_room(mask.shape, block):
        return mask
    height, width = block
    rows, cols = mask.shape[0], mask.shape[1:].numel()
    block_rows, block_cols = -(-rows // height), -(-cols // width)
    heights = np.minimum(height, rows - height * np.arange(block_rows))
    widths = np.minimum(width, cols - width * np.arange(block_cols))
    sizes = np.outer(heights, widths).reshape(-1)
    means = _block_sums(weight, gradient, rows, cols, block).reshape(-1) / sizes
    best = np.argsort(-means, kind="stable")
    count = max(1, int(np.searchsorted(np.cumsum(sizes[best]), budget, side="right")))
    kept = np.zeros(block_rows * block_cols, dtype=np.bool_)
    kept[best[:count]] = True
    dense = kept.reshape(block_rows, block_cols).repeat(height, 0)[:rows].repeat(width, 1)[:, :cols]
    return Mask.from_dense(torch.from_numpy(dense).view(mask.shape))


def _block_sums(weight: Tensor, gradient: Tensor, rows: int, cols: int, block: tuple[int, int]) -> NDArray[np.float64]:
    """Sums of the scores of each block, ``[block rows, block columns]``: first down its columns, then along its row."""
    height, width = block
    step = max(1, CHUNK // (height * cols)) * height
    sums: list[NDArray[np.float64]] = []
    for first in range(0, rows, step):
        w, g = (t.detach()[first : first + step].reshape(-1, cols).to(torch.float32) for t in (weight, gradient))
        scores = (w * g).abs().to(torch.float64)
        count = -(-scores.shape[0] // height)
        # Element-wise additions only: a reduction's order can depend on threads and devices.
        down = scores.new_zeros(count, cols)
        for i in range(height):
            part = scores[i::height]
            down[: part.shape[0]] += part
        along = scores.new_zeros(count, -(-cols // width))
        for j in range(width):
            part = down[:, j::width]
            along[:, : part.shape[1]] += part
        sums.append(along.cpu().numpy())
    return np.concatenate(sums)
