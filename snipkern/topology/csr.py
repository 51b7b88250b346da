"""Topologies of single weights: row and column lists, and what all topologies have in common."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from snipkern.layout import INT32_LIMIT, Layout
from snipkern.masks import Mask

__all__ = ["BaseTopology", "Topology"]

# Rows or columns up to this many are stored in 16 bits.
NARROW = 2**16
# Weights of a mask that are looked at one by one at a time, so that building needs no dense copy of it.
CHUNK = 1 << 22


class BaseTopology:
    """Where the kept weights of a weight ``[rows, cols]`` are, and in which order their values are held.

    Immutable, so copies of a module share it; deliberately not a buffer: ``to_empty``, DDP's broadcast and
    ``load_state_dict(assign=True)`` would turn it into garbage. A weight of more than two dimensions is seen as
    ``[shape[0], everything else]``.

    Attributes:
        mask: The mask it was built from.
        rows, cols, nnz: Sizes of the two-dimensional view, and how many weights are kept.

    Raises:
        ValueError: For a mask of fewer than two dimensions, or one that 32-bit indices cannot address
            (2^31 kept weights, rows or columns in one layer).
    """

    __slots__ = ("cols", "mask", "nnz", "rows")

    def __init__(self, mask: Mask) -> None:
        if len(mask.shape) < 2:
            raise ValueError(
                f"{type(self).__name__}: the mask must have at least 2 dimensions (got {tuple(mask.shape)})"
            )
        self.mask = mask
        self.rows = mask.shape[0]
        self.cols = mask.shape[1:].numel()
        self.nnz = mask.count()
        if max(self.rows, self.cols, self.nnz) >= INT32_LIMIT:
            raise ValueError(
                f"{type(self).__name__}: rows, columns and kept weights must be below 2^31 (got {self.rows} x"
                f" {self.cols} with {self.nnz} kept)"
            )

    @property
    def layout(self) -> Layout | None:
        """The grid of whole blocks that the kept weights are on; None: they are single ones."""
        return None

    @property
    def row_major(self) -> bool:
        """Whether the values are in row-major order of the weight; else ``flat_index`` tells where each belongs."""
        return self.layout is None or not (self.layout.ordered or self.layout.singles)

    def flat_index(self, device: torch.device) -> Tensor:
        """int64 ``[nnz]``: position of each value in the flattened dense weight; ascending if ``row_major``."""
        raise NotImplementedError

    def held(self, device: torch.device) -> list[Tensor]:
        """The packed mask and the index tensors that a product on this device needs: the price of not storing zeros."""
        raise NotImplementedError

    def place(self, device: torch.device) -> None:
        """Brings what the kernels need to a device, so that no call of theirs has to wait for it."""
        self.held(device)

    def __deepcopy__(self, memo: dict[int, object]) -> BaseTopology:
        return self


class Topology(BaseTopology):
    """The kept positions of a weight as row lists (CSR) and as column lists (its transpose), for single weights.

    Values are in row-major order. See :class:`BaseTopology` for attributes and errors.

    Cost: ``8 * nnz + 4 * (rows + cols)`` bytes per device, besides the mask; two more for each kept weight and each
    dimension above 65536. Building needs little more than that.
    """

    __slots__ = ("_by_device",)

    def __init__(self, mask: Mask) -> None:
        super().__init__(mask)
        self._by_device: dict[torch.device, Tensor] = {torch.device("cpu"): self._build()}

    def _build(self) -> Tensor:
        rows, cols, nnz = self.rows, self.cols, self.nnz
        sizes = (rows + 1, index_words(nnz, cols), cols + 1, index_words(nnz, rows), nnz)
        packed = np.zeros(sum(sizes), dtype=np.int32)
        row_ptr, col_words, col_ptr, row_words, order = np.split(packed, np.cumsum(sizes[:-1]))
        col, row = entries(col_words, nnz, cols), entries(row_words, nnz, rows)
        step = max(1, CHUNK // max(cols, 1))
        counts = np.zeros(cols, dtype=np.int64)
        for first in range(0, rows, step):
            last = min(rows, first + step)
            flat = np.flatnonzero(unpacked(byte_rows(self.mask, np.arange(first, last)), cols))
            begin = row_ptr[first]
            ends = np.searchsorted(flat, cols * np.arange(1, last - first + 1))
            row_ptr[first + 1 : last + 1] = begin + ends
            found = flat - np.repeat(cols * np.arange(last - first), np.diff(ends, prepend=0))
            col[begin : begin + flat.size] = found
            counts += np.bincount(found, minlength=cols)
        np.cumsum(counts, out=col_ptr[1:])
        # The column lists are a stable sort by column, which keeps rows ascending within a column; it is done by a few
        # rows at a time, each of which goes on where the ones before have come to in every column.
        cursor = col_ptr[:-1].astype(np.int64)
        for first in range(0, rows, step):
            last = min(rows, first + step)
            begin, end = row_ptr[first], row_ptr[last]
            mine = col[begin:end]
            sort = np.argsort(mine, kind="stable")
            counts = np.bincount(mine, minlength=cols)
            at = np.repeat(cursor - (np.cumsum(counts) - counts), counts) + np.arange(end - begin)
            order[at] = begin + sort
            row[at] = np.repeat(np.arange(first, last), np.diff(row_ptr[first : last + 1]))[sort]
            cursor += counts
        return torch.from_numpy(packed)

    def on(self, device: torch.device) -> Tensor:
        """The packed int32 index on a device, copied there once.

        Layout: ``row_ptr [rows + 1] | col [nnz] | col_ptr [cols + 1] | row [nnz] | order [nnz]``; entry ``k`` of the
        column lists is the kept weight ``order[k]``, and kept weights are numbered in row-major order. ``col`` and
        ``row`` are 16 bits each, two to a word, where ``cols`` or ``rows`` is at most 65536.
        """
        return copied_once(self._by_device, device)

    def flat_index(self, device: torch.device) -> Tensor:
        return flat_index(self.on(device), self.rows, self.cols, self.nnz)

    def held(self, device: torch.device) -> list[Tensor]:
        return [self.mask.words, self.on(device)]

    def __reduce__(self) -> tuple[type[Topology], tuple[object, ...]]:
        return Topology, (self.mask,)

    def __repr__(self) -> str:
        return f"Topology({self.rows} x {self.cols}, nnz={self.nnz})"


def copied_once(by_device: dict[torch.device, Tensor], device: torch.device) -> Tensor:
    """The tensor that lies on the CPU, on a device; what was copied there is kept for the next time."""
    copy = by_device.get(device)
    if copy is None:
        copy = by_device[torch.device("cpu")].to(device)
        if not isinstance(copy, FakeTensor):  # of a trace, to which it belongs
            by_device[device] = copy
    return copy


def byte_rows(mask: Mask, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Rows of a mask, packed ``[rows, ceil(cols / 8)]``: each begins a byte of its own, and ends in zeros."""
    rows, cols = mask.shape[0], mask.shape[1:].numel()
    packed = mask.words.numpy().astype("<i8", copy=False).view(np.uint8)
    size = -(-cols // 8)
    if cols % 8 == 0:
        return packed[: rows * size].reshape(rows, size)[numbers]
    first, shift = np.divmod(numbers[:, None] * cols, 8)
    shift = shift.astype(np.uint8)
    # The byte behind the last one only gives bits that are cleared below.
    found = packed[np.minimum(first + np.arange(size + 1), packed.size - 1)]
    aligned = (found[:, :-1] >> shift) | (found[:, 1:] << (8 - shift))
    aligned[:, -1] &= (1 << cols % 8) - 1
    return aligned


def unpacked(packed: NDArray[np.uint8], cols: int) -> NDArray[np.bool_]:
    """``[rows, cols]`` of packed rows."""
    return np.unpackbits(packed, axis=1, count=cols, bitorder="little").view(np.bool_)


def index_words(nnz: int, size: int) -> int:
    """int32 words that the rows or columns of ``nnz`` kept weights take; ``size`` is how many rows or columns are."""
    return (nnz + 1) // 2 if size <= NARROW else nnz


def entries(words: NDArray[np.int32], nnz: int, size: int) -> NDArray[np.int32] | NDArray[np.uint16]:
    """The rows or columns that index words hold, to be read or written: two of 16 bits in each where they fit."""
    return words if size > NARROW else words.view(np.uint16)[:nnz]


def unpacked_index(words: Tensor, nnz: int, size: int) -> Tensor:
    """int32 ``[nnz]``: what :func:`entries` are, as a tensor of their own."""
    return words if size > NARROW else words.view(torch.int16)[:nnz].int() & 0xFFFF


def flat_index(index: Tensor, rows: int, cols: int, nnz: int) -> Tensor:
    """int64 ``[nnz]`` flat positions of the kept weights, from a packed index (see :meth:`Topology.on`)."""
    counts = index[1 : rows + 1] - index[:rows]
    numbers = torch.arange(rows, device=index.device)
    row = torch.repeat_interleave(numbers, counts.long(), output_size=nnz)
    return row * cols + unpacked_index(index[rows + 1 :][: index_words(nnz, cols)], nnz, cols)
