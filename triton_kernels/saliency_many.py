"""The launchers of the saliency ops on lists of tensors: one launch for all tensors of one pair of dtypes.

A table on the device tells each program where its tile lies (40 bytes for 4096 elements). It is made there, from one
row for each tensor. The contract is :mod:`snipkern.ops.schema_saliency_many`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import triton
from torch import Tensor

from snipkern.ops import schema_saliency_many
from snipkern.ops.reference_saliency import sampled_keys
from snipkern.ops.schema_saliency import SNIP, require_histogram, require_ties, word_count
from snipkern.ops.schema_saliency_many import (
    Tensors,
    require_in_range,
    require_pairs,
    require_partition_many,
    total_size,
)
from snipkern.triton_kernels.saliency_kernels import sample_kernel
from snipkern.triton_kernels.saliency_parts import COLUMNS
from snipkern.triton_kernels.saliency_tiles import (
    ALIGN,
    TILE,
    TILE_WORDS,
    Launch,
    Tiles,
    add_histogram,
    mask_words,
    operand,
)

COPIED = 1 << 26  # elements of tensors that are not contiguous which are copied at a time
SAMPLED = 1024  # elements of a program that samples


def address_of(tensor: Tensor) -> int:
    return tensor.data_ptr()


def on_device(rows: Sequence[Sequence[int]] | np.ndarray, like: Tensor) -> Tensor:
    """The numbers on the tensor's device, without waiting for it."""
    numbers = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    if like.device.type != "cuda":
        return numbers.to(like.device)
    return numbers.pin_memory().to(like.device, non_blocking=True)


class Many:
    """The scores of a list of tensors."""

    def __init__(self, weights: Tensors, gradients: Tensors | None, score: int):
        self.like = weights[0]
        self.score = score
        self.pairs = list(zip(weights, weights if gradients is None else gradients, strict=True))
        self.sizes = np.array([weight.numel() for weight in weights], dtype=np.int64)
        words = np.array([word_count(size) for size in self.sizes.tolist()], dtype=np.int64)
        tiles = -(-self.sizes // TILE)
        self.first_word, self.first_tile = words.cumsum() - words, tiles.cumsum() - tiles
        self.words, self.tiles = int(words.sum()), int(tiles.sum())
        self.tiles_of = tiles
        # Tensors that the kernels can read where they lie, by what one launch has in common.
        self.groups: dict[tuple[torch.dtype, torch.dtype, int], list[int]] = {}
        self.strided: list[int] = []
        for i, pair in enumerate(self.pairs):
            if not pair[0].numel():
                continue
            if all(tensor.is_contiguous() for tensor in pair):
                self.groups.setdefault(self.kind(pair), []).append(i)
            else:
                self.strided.append(i)
        self.lying = [self.launch(members, [self.pairs[i] for i in members]) for members in self.groups.values()]

    @staticmethod
    def kind(pair: tuple[Tensor, Tensor]) -> tuple[torch.dtype, torch.dtype, int]:
        """Dtypes, and the bytes that both addresses are known to be multiples of."""
        aligned = all(tensor.data_ptr() % ALIGN == 0 for tensor in pair)
        return pair[0].dtype, pair[1].dtype, ALIGN if aligned else 1

    def launch(self, members: list[int], pairs: list[tuple[Tensor, Tensor]]) -> Launch:
        """One launch for tensors of one kind, which must live until it is on its way."""
        weight, gradient = (operand(tensor) for tensor in pairs[0])
        number = int(self.tiles_of[members].sum())
        firsts = [
            [self.first_tile[i], self.first_word[i], self.sizes[i], address_of(w), address_of(g), self.tiles_of[i]]
            for i, (w, g) in zip(members, pairs, strict=True)
        ]
        step = [1, TILE_WORDS, -TILE, TILE * weight.element_size(), TILE * gradient.element_size(), 0]
        rows = on_device([*firsts, step], self.like)
        tiles = rows[:-1, COLUMNS.value]
        rows_of = torch.repeat_interleave(rows[:-1], tiles, dim=0, output_size=number)
        before = torch.repeat_interleave(tiles.cumsum(0) - tiles, tiles, output_size=number)
        within = torch.arange(number, device=self.like.device) - before
        table = (rows_of + within[:, None] * rows[-1])[:, : COLUMNS.value].contiguous()
        constants = {"SCORE": self.score, "SCALED": False, "TABLE": True, "ALIGN": self.kind(pairs[0])[2]}
        # No scales are read.
        return Launch((weight, gradient, rows, rows, 1, 0, table), constants, number)

    def launches(self) -> Iterator[Launch]:
        yield from self.lying
        for members in self.batches():
            copies = [tuple(tensor.contiguous() for tensor in self.pairs[i]) for i in members]
            kinds = [self.kind(pair) for pair in copies]
            for kind in dict.fromkeys(kinds):
                chosen = [place for place, other in enumerate(kinds) if other == kind]
                yield self.launch([members[place] for place in chosen], [copies[place] for place in chosen])

    def batches(self) -> Iterator[list[int]]:
        """Tensors that must be copied, as many at a time as memory is given for."""
        batch: list[int] = []
        for i in self.strided:
            if batch and int(self.sizes[[*batch, i]].sum()) > COPIED:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def counts(self, tiles: Tiles) -> Tensor:
        """``[tensors, 3]``: above and inside, and the largest."""
        ends = on_device(self.first_tile + self.tiles_of, self.like)
        sums = torch.stack([tiles.above, tiles.inside]).cumsum(1)
        sums = torch.cat([sums.new_zeros(2, 1), sums], 1)[:, ends]
        each = sums.diff(dim=1, prepend=sums.new_zeros(2, 1))
        number = on_device(self.tiles_of, self.like)
        tensor = torch.repeat_interleave(
            torch.arange(len(self.pairs), device=self.like.device), number, output_size=self.tiles
        )
        largest = sums.new_zeros(len(self.pairs)).scatter_reduce_(0, tensor, tiles.largest.long(), "amax")
        return torch.stack([*each, largest], 1)


def saliency_partition_many(
    weights: Tensors, gradients: Tensors | None, low: int, high: int, capacity: int, score: int = SNIP
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One read of all tensors."""
    require_pairs("saliency_partition_many", weights, gradients, score)
    require_partition_many(low, high, capacity)
    like, room = weights[0], min(capacity, total_size(weights))
    with torch.cuda.device_of(like):
        many = Many(weights, gradients, score)
        if not many.tiles:
            empty = like.new_empty(0, dtype=torch.int64)
            return empty, empty.to(torch.int32), empty.clone(), like.new_zeros(len(weights), 3, dtype=torch.int64)
        tiles = Tiles(many, low, high, room)
        return tiles.words, *tiles.candidates(room), many.counts(tiles)


def saliency_mask_many(
    weights: Tensors, gradients: Tensors | None, threshold: int, ties: int, score: int = SNIP
) -> Tensor:
    """One read of all tensors, and another of the tiles where ties are kept."""
    require_pairs("saliency_mask_many", weights, gradients, score)
    require_ties("saliency_mask_many", threshold, ties)
    with torch.cuda.device_of(weights[0]):
        many = Many(weights, gradients, score)
        return mask_words(many, threshold, ties) if many.tiles else weights[0].new_empty(0, dtype=torch.int64)


def saliency_histogram_many(
    weights: Tensors, gradients: Tensors | None, low: int, high: int, shift: int, score: int = SNIP
) -> Tensor:
    """One read of all tensors."""
    require_pairs("saliency_histogram_many", weights, gradients, score)
    require_histogram(low, high, shift, "saliency_histogram_many")
    counts = weights[0].new_zeros(((high - low) >> shift) + 1, dtype=torch.int64)
    with torch.cuda.device_of(weights[0]):
        add_histogram(Many(weights, gradients, score), low, high, shift, counts)
    return counts


def saliency_sample_many(
    weights: Tensors, gradients: Tensors | None, starts: Tensor, width: int, score: int = SNIP
) -> Tensor:
    """One launch for each pair of dtypes; a gather for each sampled tensor that is not contiguous."""
    keys = schema_saliency_many.saliency_sample_many(weights, gradients, starts, width, score)
    require_in_range(starts, total_size(weights))
    if not starts.numel():
        return keys
    with torch.cuda.device_of(keys):
        many = Many(weights, gradients, score)
        ends = many.sizes.cumsum()
        which = np.searchsorted(ends, starts.numpy(), side="right")
        within = starts.numpy() - (ends - many.sizes)[which]
        for members in many.groups.values():
            sample_group(many, members, which, within, keys)
        for i in many.strided:
            runs = torch.from_numpy(np.flatnonzero(which == i))
            if runs.numel():
                weight, gradient = many.pairs[i]
                at = torch.from_numpy(within)[runs].to(keys.device)
                keys[runs.to(keys.device)] = sampled_keys(weight, gradient, at, width, score)
    return keys


def sample_group(many: Many, members: list[int], which: np.ndarray, within: np.ndarray, keys: Tensor) -> None:
    """Samples tensors of one kind; ``which`` and ``within`` tell of each run's tensor and first element."""
    place = np.full(len(many.pairs), -1)
    place[members] = np.arange(len(members))
    runs = np.flatnonzero(place[which] >= 0)
    if not runs.size:
        return
    pairs = [many.pairs[i] for i in members]
    addresses = np.array([[address_of(w), address_of(g)] for w, g in pairs], dtype=np.int64)
    rows = np.column_stack([runs, within[runs], many.sizes[which[runs]], addresses[place[which[runs]]]])
    weight, gradient = (operand(tensor) for tensor in pairs[0])
    width = keys.shape[1]
    lanes = min(SAMPLED, triton.next_power_of_2(width))
    sample_kernel[(triton.cdiv(runs.size, SAMPLED // lanes),)](
        weight, gradient, on_device(rows, keys), keys, runs.size, width,
        SCORE=many.score, RUNS=SAMPLED // lanes, LANES=lanes, num_warps=4,
    )  # fmt: skip


OPS: dict[str, Callable[..., object]] = {
    launcher.__name__: launcher
    for launcher in (saliency_sample_many, saliency_partition_many, saliency_histogram_many, saliency_mask_many)
}
