"""Topologies: the index lists that sparse kernels walk, built once from a mask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snipkern.masks import Mask

__all__ = ["Topology"]

INT32_LIMIT = 2**31


class Topology:
    """The kept positions of a weight ``[rows, cols]`` as row lists (CSR) and as column lists (its transpose).

    Immutable, so copies of a module share it; deliberately not a buffer: ``to_empty``, DDP's broadcast and
    ``load_state_dict(assign=True)`` would turn it into garbage. A weight of more than two dimensions is seen as
    ``[shape[0], everything else]``.

    Attributes:
        mask: The mask it was built from.
        rows, cols, nnz: Sizes of the two-dimensional view, and how many weights are kept.

    Cost: ``12 * nnz + 4 * (rows + cols)`` bytes per device, besides the mask.

    Raises:
        ValueError: For a mask of fewer than two dimensions, or one that 32-bit indices cannot address
            (2^31 kept weights, rows or columns in one layer).
    """

    __slots__ = ("_by_device", "cols", "mask", "nnz", "rows")

    def __init__(self, mask: Mask) -> None:
        if len(mask.shape) < 2:
            raise ValueError(f"Topology: the mask must have at least 2 dimensions (got {tuple(mask.shape)})")
        self.mask = mask
        self.rows = mask.shape[0]
        self.cols = mask.shape[1:].numel()
        self.nnz = mask.count()
        if max(self.rows, self.cols, self.nnz) >= INT32_LIMIT:
            raise ValueError(
                f"Topology: rows, columns and kept weights must be below 2^31 (got {self.rows} x"
                f" {self.cols} with {self.nnz} kept)"
            )
        self._by_device: dict[torch.device, Tensor] = {torch.device("cpu"): self._build()}

    def _build(self) -> Tensor:
        kept = self.mask.to_dense().view(self.rows, self.cols).numpy()
        row, col = (index.astype(np.int32) for index in np.nonzero(kept))
        # A stable sort by column keeps rows ascending within a column, and is its own way back to the values.
        order = np.argsort(col, kind="stable").astype(np.int32)
        index = np.empty(self.rows + self.cols + 2 + 3 * self.nnz, dtype=np.int32)
        parts = np.split(index, self._offsets())
        for pointer, counts in ((parts[0], kept.sum(1)), (parts[2], kept.sum(0))):
            pointer[0] = 0
            np.cumsum(counts, out=pointer[1:])
        parts[1][:] = col
        parts[3][:] = row[order]
        parts[4][:] = order
        return torch.from_numpy(index)

    def _offsets(self) -> tuple[int, int, int, int]:
        first = self.rows + 1
        second = first + self.nnz
        third = second + self.cols + 1
        return first, second, third, third + self.nnz

    def on(self, device: torch.device) -> Tensor:
        """The packed int32 index on a device, copied there once.

        Layout: ``row_ptr [rows + 1] | col [nnz] | col_ptr [cols + 1] | row [nnz] | order [nnz]``; entry ``k`` of the
        column lists is the kept weight ``order[k]``, and kept weights are numbered in row-major order.
        """
        index = self._by_device.get(device)
        if index is None:
            index = self._by_device[device] = self._by_device[torch.device("cpu")].to(device)
        return index

    def flat_index(self, device: torch.device) -> Tensor:
        """int64 ``[nnz]``: position of each kept weight in the flattened dense weight, ascending."""
        return flat_index(self.on(device), self.rows, self.cols, self.nnz)

    def __deepcopy__(self, memo: dict[int, object]) -> Topology:
        return self

    def __reduce__(self) -> tuple[type[Topology], tuple[Mask]]:
        return Topology, (self.mask,)

    def __repr__(self) -> str:
        return f"Topology({self.rows} x {self.cols}, nnz={self.nnz})"


def flat_index(index: Tensor, rows: int, cols: int, nnz: int) -> Tensor:
    """int64 ``[nnz]`` flat positions of the kept weights, from a packed index (see :meth:`Topology.on`)."""
    counts = index[1 : rows + 1] - index[:rows]
    numbers = torch.arange(rows, device=index.device)
    row = torch.repeat_interleave(numbers, counts.long(), output_size=nnz)
    return row * cols + index[rows + 1 : rows + 1 + nnz]
