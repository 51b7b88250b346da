"""The index of a weight that keeps whole blocks, as the launchers and kernels of the ``bsr`` ops see it.

Its layout is told in :meth:`snipkern.topology.BlockTopology.on`. It lies on the device and no launcher reads it: what a
launcher must know follows from its size. A block row's values are a *run* for each of its rows; place ``k`` of a run
belongs to its ``k``-th kept column.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from snipkern.layout import index_sizes
from snipkern.ops.checks import require

VECTOR_BYTES = 16
LANES: tl.constexpr = tl.constexpr(256)  # candidates that are looked at together when a block row is searched


class BlockIndex:
    """What a launcher knows of an index that has been checked.

    Attributes:
        arguments: The index and its sizes, as the kernels take them.
        blocks: How many blocks are kept.
        row_place, col_place: int32: where in the grid the weight's rows and columns lie; None where in their own order.
    """

    def __init__(self, topology: Tensor, rows: int, cols: int, height: int, width: int) -> None:
        self.rows, self.cols = rows, cols
        self.height, self.width = height, width
        self.block_rows, self.block_cols = -(-rows // height), -(-cols // width)
        self.blocks, ordered = index_sizes(topology.numel(), rows, cols, (height, width))
        self.row_place = self.col_place = None
        if ordered:
            places = topology[2 * self.block_rows + self.block_cols + 3 + 3 * self.blocks :]
            self.row_place, self.col_place = places[: rows + cols].split([rows, cols])
        self.arguments = (topology, rows, cols, self.block_rows, self.block_cols, self.blocks)

    def require_own_order(self, name: str) -> None:
        """For the ops whose grid must not have an order of its own."""
        text = "rows and columns of the topology must be in the weight's order"
        require(self.row_place is None, name, text, "another order")

    def vector(self, bytes_of_element: int) -> int:
        """How many values of a run a load of 16 bytes may take: runs begin at multiples of that and are as long."""
        return math.gcd(self.width, self.cols, VECTOR_BYTES // bytes_of_element)

    def row_vector(self, bytes_of_element: int) -> int:
        """The same of rows: how many consecutive rows from a multiple of that on lie in one block."""
        return math.gcd(self.height, VECTOR_BYTES // bytes_of_element)

    def slots(self, tile: int) -> int:
        """How many tiles of so many places the runs have at most; see :func:`find_run_tile`."""
        return self.blocks * self.width // tile + self.block_rows


# Parts of kernels


@triton.jit
def columns_of_runs(topology, block_rows):
    """Block columns ``[blocks]`` in the order of the block rows."""
    return topology + 2 * (block_rows + 1)


@triton.jit
def load_run(topology, rows, block_row, block_rows, HEIGHT: tl.constexpr, VECTOR: tl.constexpr):
    """Where a block row's values begin, how long its runs are, and which is its first block."""
    start = tl.load(topology + block_row)
    end = tl.load(topology + block_row + 1)
    first = tl.load(topology + block_rows + 1 + block_row)
    height = tl.minimum(HEIGHT, rows - block_row * HEIGHT)
    run = (end - start) // height
    return tl.multiple_of(start, VECTOR), tl.multiple_of(run, VECTOR), first


@triton.jit
def step_places(k, SIDE: tl.constexpr, DEPTH: tl.constexpr):
    """Places of a list of blocks that tell the blocks of a step: one place where a step never leaves a block."""
    if SIDE % DEPTH == 0:
        places = k
    else:
        places = k + tl.arange(0, DEPTH)
    return places


@triton.jit
def kept_block_cols(col, place, run, WIDTH: tl.constexpr):
    """The block columns of these places of a run."""
    return tl.load(col + place // WIDTH, mask=place < run, other=0)


@triton.jit
def kept_columns(block_col, place, WIDTH: tl.constexpr, VECTOR: tl.constexpr):
    """The columns of the grid at these places of a run; only its last block may be cut.

    Hints belong to the result of an operation: those that are given to a value that a loop carries land elsewhere.
    """
    column = block_col * WIDTH + place % WIDTH
    return tl.max_contiguous(tl.multiple_of(column, VECTOR), VECTOR)


@triton.jit
def find_run_tile(topology, slot, block_rows, HEIGHT: tl.constexpr, TILE: tl.constexpr):
    """The block row and the place of its run where the tile of this number begins, which may lie behind the run's end.

    Before block row ``i`` lie ``start[i] / HEIGHT`` places, since only the last block row is cut. Block row ``i`` gets
    the numbers from ``start[i] / HEIGHT / TILE + i`` up to the next one's: never fewer than it has tiles.
    """
    lane = tl.arange(0, LANES)
    first = block_rows * 0
    end = block_rows
    step = (end - first + LANES - 1) // LANES
    while step > 0:
        candidate = first + lane * step
        start = tl.load(topology + candidate, mask=candidate < end, other=0)
        begins = (candidate < end) & (start // HEIGHT // TILE + candidate <= slot)
        first += (tl.sum(begins.to(tl.int32), 0) - 1) * step
        end = tl.minimum(end, first + step)
        step = tl.where(step == 1, 0, (step + LANES - 1) // LANES)
    before = tl.load(topology + first) // HEIGHT // TILE + first
    return first, (slot - before) * TILE
