"""What a state dict holds of a pruned weight beside its values: the mask, and how the values lie."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.parallel.shards import is_sharded
from snipkern.topology import BaseTopology, build

MASK_SUFFIX = "_mask"
VALUES_SUFFIX = "_values"
BLOCK_SUFFIX = "_block"
ORDER_SUFFIX = "_order"
SINGLES_SUFFIX = "_singles"
LAYOUT_SUFFIXES = (BLOCK_SUFFIX, ORDER_SUFFIX, SINGLES_SUFFIX)


def write(destination: MutableMapping[str, Any], key: str, mask: Mask, layout: Layout | None) -> None:
    """Adds the entries for the weight ``key``."""
    destination[key + MASK_SUFFIX] = mask.words.clone()
    if layout is None:
        return
    destination[key + BLOCK_SUFFIX] = torch.tensor(layout.block)
    if layout.ordered:
        sizes = mask.shape[0], mask.shape[1:].numel()
        orders = (layout.row_order, layout.col_order)
        parts = [torch.arange(n) if order is None else order for n, order in zip(sizes, orders, strict=True)]
        destination[key + ORDER_SUFFIX] = torch.cat(parts)
    if layout.singles is not None:
        destination[key + SINGLES_SUFFIX] = layout.singles.words.clone()


def expected_shapes(state_dict: Mapping[str, Any], key: str, mask: Mask) -> dict[str, torch.Size]:
    """Shapes of the layout's entries that there are."""
    rows, cols = mask.shape[0], mask.shape[1:].numel()
    shapes = torch.Size([2]), torch.Size([rows + cols]), mask.words.shape
    return {
        key + suffix: shape for suffix, shape in zip(LAYOUT_SUFFIXES, shapes, strict=True) if key + suffix in state_dict
    }


def saved_layout(state_dict: Mapping[str, Any], key: str, mask: Mask) -> Layout | None:
    """The layout in which the values of the weight ``key`` were saved; None: row-major.

    Raises:
        ValueError: For entries that are no layout of this mask.
    """
    shapes = expected_shapes(state_dict, key, mask)
    found = {name: state_dict[name].detach().cpu() for name in shapes}
    for name, shape in shapes.items():
        if found[name].shape != shape or found[name].dtype != torch.int64:
            got = f"{list(found[name].shape)} {found[name].dtype}"
            raise ValueError(f"{name}: must be {list(shape)} {torch.int64} (got {got})")
    block = found.get(key + BLOCK_SUFFIX)
    order, singles = found.get(key + ORDER_SUFFIX), found.get(key + SINGLES_SUFFIX)
    if block is None:
        if found:
            raise ValueError(f"{key}{BLOCK_SUFFIX}: must be given with {', '.join(found)} (got none)")
        return None
    row_order, col_order = (None, None) if order is None else order.split([mask.shape[0], mask.shape[1:].numel()])
    height, width = block.tolist()
    return Layout(
        (height, width),
        row_order,
        col_order,
        None if singles is None else Mask(singles, mask.shape),
    )


def take_layout(state_dict: MutableMapping[str, Any], key: str, mask: Mask) -> Layout | None:
    """The same, and drops its entries; those that are wrong are dropped as well."""
    try:
        return saved_layout(state_dict, key, mask)
    finally:
        for suffix in LAYOUT_SUFFIXES:
            state_dict.pop(key + suffix, None)


def rearranged(key: str, values: Tensor, mask: Mask, saved: Layout | None, topology: BaseTopology) -> Tensor:
    """Saved values in the order of a module's topology. Costs two sorts where that is another one.

    Raises:
        ValueError: For a saved layout that doesn't fit the mask, and for values that are sharded.
    """
    if values.shape != (topology.nnz,) or values.is_meta or same_order(saved, topology.layout):
        return values  # a wrong shape is told by who loads them
    ascending = row_major(key, values, mask, saved)
    if topology.row_major:
        return ascending
    found = torch.empty_like(ascending)
    found[topology.flat_index(found.device).argsort()] = ascending
    return found


def row_major(key: str, values: Tensor, mask: Mask, saved: Layout | None) -> Tensor:
    """Saved values in row-major order of the weight.

    Raises:
        ValueError: As :func:`rearranged`, and for another number of values than the mask keeps.
    """
    if values.shape != (mask.count(),):
        raise ValueError(f"{key}_values: must be [{mask.count()}] (got {list(values.shape)})")
    if same_order(saved, None):
        return values.detach()
    if is_sharded(values):
        raise ValueError(f"{key}_values: must be saved in the module's layout to be loaded as shards (got another one)")
    return values.detach()[build(mask, saved).flat_index(values.device).argsort()]


def same_order(first: Layout | None, second: Layout | None) -> bool:
    """Whether values lie alike in two layouts: that depends on orders and single weights, not on the block."""

    def same(one: Tensor | None, other: Tensor | None) -> bool:
        if one is None or other is None:
            present = other if one is None else one
            return present is None or torch.equal(present, torch.arange(present.numel()))
        return torch.equal(one, other)

    def part(layout: Layout | None, name: str) -> Any:
        return getattr(layout, name, None)

    rows, cols = ((part(first, name), part(second, name)) for name in ("row_order", "col_order"))
    return same(*rows) and same(*cols) and part(first, "singles") == part(second, "singles")


def require_mask(key: str, words: Tensor | None, values: Tensor | None, mask: Mask) -> None:
    """Whether a mask loaded for a weight that has one is the same; compact values mean nothing without one."""
    if words is None and values is not None:
        raise ValueError(f"{key}{MASK_SUFFIX}: must be given with {key}_values (got none)")
    if words is not None and not torch.equal(words.cpu(), mask.words):
        raise ValueError(f"{key}: the state dict's mask must be the module's (got another mask)")


def require_zeros(key: str, dense: Tensor, mask: Mask) -> None:
    """Whether a dense weight loaded for a masked one has its shape, and zeros where that is pruned."""
    if dense.shape != mask.shape:
        raise ValueError(f"{key}: shape must be {list(mask.shape)} (got {list(dense.shape)})")
    stray = int(torch.count_nonzero(dense.detach()[~mask.to_dense(dense.device)]))
    if stray:
        raise ValueError(f"{key}: must be zero outside the mask (got {stray} non-zero pruned weights)")
