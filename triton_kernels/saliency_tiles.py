"""What the launchers of the saliency ops share: a tensor as the kernels read it, and a pass over tiles."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import triton
from torch import Tensor

from snipkern.ops.schema_saliency import WORD_BITS, matrix_shape, word_count
from snipkern.triton_kernels.saliency_kernels import (
    histogram_kernel,
    order_kernel,
    partition_kernel,
    ties_kernel,
    wide_histogram_kernel,
)

TILE_WORDS = 64
TILE = TILE_WORDS * WORD_BITS
TILE_WARPS = 8  # 16 elements a thread, two 16-byte loads of each 16-bit tensor
HISTOGRAM_TILES = 16  # tiles of a histogram's program at most
LEAST_BINS = 256  # of a program's own histogram; a power of two, at least a bin for each thread
MOST_BINS = 4096  # of a program's own histogram: more go straight to memory
RUN = 128  # listed elements that are moved at a time
ALIGN = 16  # bytes of the widest load


def operand(tensor: Tensor) -> Tensor:
    """The tensor as the kernels read it: contiguous, bfloat16 as int16."""
    tensor = tensor.contiguous()
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


@dataclass(frozen=True)
class Launch:
    """Tiles that one launch takes: the kernels' first arguments and constants, and how many programs there are."""

    arguments: tuple[object, ...]
    constants: Mapping[str, object]
    number: int


class Scored(Protocol):
    """What is scored.

    Attributes:
        like: A tensor on its device.
        words, tiles: How many there are.
    """

    like: Tensor
    words: int
    tiles: int

    def launches(self) -> Iterator[Launch]:
        """Every tile is in one launch."""
        ...


class One:
    """One tensor's scores."""

    def __init__(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        score: int,
        row_scale: Tensor | None,
        col_scale: Tensor | None,
    ):
        rows, cols = matrix_shape(weight)
        numel = weight.numel()
        self.like = weight
        self.words, self.tiles = word_count(numel), triton.cdiv(numel, TILE)
        w = operand(weight)
        g = w if gradient is None else operand(gradient)
        scaled = row_scale is not None or col_scale is not None
        ones = functools.partial(weight.new_ones, dtype=torch.float32)
        row = ones(rows if scaled else 1) if row_scale is None else row_scale.contiguous()
        col = ones(cols if scaled else 1) if col_scale is None else col_scale.contiguous()
        self.arguments = (w, g, row, col, cols, numel, row)  # no table is read
        self.constants = {"SCORE": score, "SCALED": scaled, "TABLE": False, "ALIGN": ALIGN}

    def launches(self) -> Iterator[Launch]:
        yield Launch(self.arguments, self.constants, self.tiles)


class Tiles:
    """What a partition leaves for each tile, and the candidates where each tile found room. Nothing waits for it."""

    def __init__(self, scored: Scored, low: int, high: int, room: int):
        """Partitions at least one element, listing at most ``room`` candidates."""
        like = scored.like
        self.number = scored.tiles
        self.words = like.new_empty(scored.words, dtype=torch.int64)
        self.above, self.inside, self.largest = like.new_empty((3, self.number), dtype=torch.int32)
        self.slots = like.new_empty(self.number if room else 0, dtype=torch.int64)
        self.keys = like.new_empty(room, dtype=torch.int32)
        self.index = like.new_empty(room, dtype=torch.int64)
        taken = like.new_zeros(1, dtype=torch.int64)
        for launch in scored.launches():
            partition_kernel[(launch.number,)](
                *launch.arguments, low, high, self.words, self.above, self.inside, self.largest, self.slots, taken,
                self.keys, self.index, room, **launch.constants, ROWS=TILE_WORDS, LIST=room > 0, num_warps=TILE_WARPS,
            )  # fmt: skip

    @functools.cached_property
    def first(self) -> Tensor:
        """How many are inside the interval in all tiles before each."""
        return self.inside.cumsum(0) - self.inside

    def candidates(self, room: int) -> tuple[Tensor, Tensor]:
        """Keys and index ``[room]`` of all candidates in flat order; unspecified where these are fewer, or more."""
        keys, index = self.keys.new_empty(room), self.index.new_empty(room)
        if room:
            order_kernel[(self.number,)](
                self.slots, self.first, self.inside, self.keys, self.index, keys, index, room, LANES=RUN, num_warps=1
            )
        return keys, index


def mask_words(scored: Scored, threshold: int, ties: int) -> Tensor:
    """Words of all above the threshold and the first that equal it."""
    tiles = Tiles(scored, threshold, threshold, 0)
    for launch in scored.launches() if ties else ():
        ties_kernel[(launch.number,)](
            *launch.arguments, threshold, ties, tiles.first, tiles.inside, tiles.words,
            **launch.constants, ROWS=TILE_WORDS, num_warps=TILE_WARPS,
        )  # fmt: skip
    return tiles.words


def add_histogram(scored: Scored, low: int, high: int, shift: int, counts: Tensor) -> None:
    """Adds the keys' bins to the counts."""
    bins = counts.numel()
    for launch in scored.launches():
        if bins > MOST_BINS:
            wide_histogram_kernel[(launch.number,)](
                *launch.arguments, low, high, shift, counts, **launch.constants, SIZE=TILE, num_warps=TILE_WARPS
            )
        else:
            tiles = min(launch.number, HISTOGRAM_TILES)
            histogram_kernel[(triton.cdiv(launch.number, tiles),)](
                *launch.arguments, low, high, shift, counts, tiles, launch.number, **launch.constants,
                BINS=max(LEAST_BINS, triton.next_power_of_2(bins)), SIZE=TILE, num_warps=TILE_WARPS,
            )  # fmt: skip
