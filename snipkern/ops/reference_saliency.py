"""The saliency ops in plain PyTorch, on any device: a chunk of elements at a time, so that no score tensor exists."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snipkern.ops.checks import require
from snipkern.ops.schema_saliency import (
    MAGNITUDE,
    OBD,
    SNIP,
    WORD_BITS,
    matrix_shape,
    require_histogram,
    require_pair,
    require_partition,
    require_resolve,
    require_sample,
    require_ties,
    word_count,
)

CHUNK = 1 << 18


def flat_chunks(tensor: Tensor, most: int = CHUNK) -> Iterator[Tensor]:
    """The tensor's elements in row-major order as 1-D pieces of at most ``most``; copies no more than one piece.

    Tensors of one shape are cut at the same places, whatever their layouts.
    """
    if tensor.numel() <= most:
        yield tensor.reshape(-1)
        return
    inner = tensor[0].numel()
    if inner > most:
        for part in tensor:
            yield from flat_chunks(part, most)
    else:
        for part in tensor.split(most // inner):
            yield part.reshape(-1)


def scores_of(weight: Tensor, gradient: Tensor | None, score: int = SNIP, scale: Tensor | None = None) -> Tensor:
    """float32 scores; ``scale`` multiplies the weight first."""
    w = weight.to(torch.float32)
    if scale is not None:
        w = w * scale
    if score == MAGNITUDE or gradient is None:
        return w.abs()
    product = w * gradient.to(torch.float32)
    if score == OBD:
        product *= w
    return product.abs_() if score == SNIP else product


def keys_of(scores: Tensor) -> Tensor:
    """int32 keys that order like the scores."""
    bits = scores.view(torch.int32)
    bits = bits.masked_fill(bits == -(2**31), 0)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@dataclass(frozen=True)
class Scored:
    """What the scores of a weight are made of; the last arguments of most ops here."""

    weight: Tensor
    gradient: Tensor | None
    score: int = SNIP
    row_scale: Tensor | None = None
    col_scale: Tensor | None = None

    def scale_at(self, flat: Tensor) -> Tensor | None:
        """The scales' product at flat indices; None without scales."""
        if self.row_scale is None and self.col_scale is None:
            return None
        cols = max(1, matrix_shape(self.weight)[1])
        scale = self.weight.new_ones(flat.shape, dtype=torch.float32)
        if self.row_scale is not None:
            scale *= self.row_scale[flat // cols]
        return scale if self.col_scale is None else scale * self.col_scale[flat % cols]

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """First flat index and scores of each piece."""
        start = 0
        gradients = itertools.repeat(None) if self.gradient is None else flat_chunks(self.gradient)
        for left, right in zip(flat_chunks(self.weight), gradients, strict=False):
            flat = torch.arange(start, start + left.numel(), device=left.device)
            yield start, scores_of(left, right, self.score, self.scale_at(flat))
            start += left.numel()

    def key_chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start, scores in self.chunks():
            yield start, keys_of(scores)


def set_bits(words: Tensor, start: int, kept: Tensor) -> None:
    """Sets bit ``start + i`` for every true ``kept[i]``."""
    first = start // WORD_BITS
    lead = start - first * WORD_BITS
    size = word_count(lead + kept.numel())
    padded = kept.new_zeros(size * WORD_BITS)
    padded[lead : lead + kept.numel()] = kept
    bit = torch.arange(WORD_BITS, device=kept.device)
    words[first : first + size] |= (padded.view(size, WORD_BITS).to(torch.int64) << bit).sum(1)


def sampled_keys(
    weight: Tensor,
    gradient: Tensor | None,
    starts: Tensor,
    width: int,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    """The keys of runs whose starts are known to be in range; waits for no device."""
    numel = weight.numel()
    flat = (starts[:, None] + torch.arange(width, device=starts.device)) % max(numel, 1)
    # Zero-dimensional tensors have one element, whatever the index says.
    at = torch.unravel_index(flat, weight.shape) if weight.dim() else (torch.zeros_like(flat),)
    shape = weight.shape or (1,)
    scale = Scored(weight, gradient, score, row_scale, col_scale).scale_at(flat)
    return keys_of(
        scores_of(weight.expand(shape)[at], None if gradient is None else gradient.expand(shape)[at], score, scale)
    )


def saliency_sample(
    weight: Tensor,
    gradient: Tensor | None,
    starts: Tensor,
    width: int,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    require_pair("saliency_sample", weight, gradient, score, row_scale, col_scale)
    require_sample(starts, width)
    numel = weight.numel()
    wrong = starts[(starts < 0) | (starts >= numel)]
    require(wrong.numel() == 0, "saliency_sample", f"starts must be below {numel}", wrong[:1].tolist())
    return sampled_keys(weight, gradient, starts, width, score, row_scale, col_scale)


def saliency_partition(
    weight: Tensor,
    gradient: Tensor | None,
    low: int,
    high: int,
    capacity: int,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_pair("saliency_partition", weight, gradient, score, row_scale, col_scale)
    require_partition(low, high, capacity)
    words = weight.new_zeros(word_count(weight.numel()), dtype=torch.int64)
    keys, index = [weight.new_empty(0, dtype=torch.int32)], [weight.new_empty(0, dtype=torch.int64)]
    above = inside = largest = 0
    for start, key in Scored(weight, gradient, score, row_scale, col_scale).key_chunks():
        if not key.numel():
            continue
        over = key > high
        set_bits(words, start, over)
        at = torch.nonzero((key >= low) & ~over)[:, 0]
        above += int(over.sum())
        inside += at.numel()
        largest = max(largest, int((key ^ (key >> 31)).max()))
        if inside <= capacity:
            keys.append(key[at])
            index.append(at + start)
    if inside > capacity:
        del keys[1:], index[1:]
    counts = torch.tensor([above, inside, largest], device=weight.device)
    return words, torch.cat(keys), torch.cat(index), counts


def saliency_histogram(
    weight: Tensor,
    gradient: Tensor | None,
    low: int,
    high: int,
    shift: int,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    require_pair("saliency_histogram", weight, gradient, score, row_scale, col_scale)
    require_histogram(low, high, shift)
    bins = ((high - low) >> shift) + 1
    counts = weight.new_zeros(bins, dtype=torch.int64)
    for _, key in Scored(weight, gradient, score, row_scale, col_scale).key_chunks():
        inside = key[(key >= low) & (key <= high)]
        counts += torch.bincount((inside.long() - low) >> shift, minlength=bins)
    return counts


def saliency_mask(
    weight: Tensor,
    gradient: Tensor | None,
    threshold: int,
    ties: int,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    require_pair("saliency_mask", weight, gradient, score, row_scale, col_scale)
    require_ties("saliency_mask", threshold, ties)
    words = weight.new_zeros(word_count(weight.numel()), dtype=torch.int64)
    for start, key in Scored(weight, gradient, score, row_scale, col_scale).key_chunks():
        tied = torch.nonzero(key == threshold)[:ties, 0]
        kept = key > threshold
        kept[tied] = True
        set_bits(words, start, kept)
        ties -= tied.numel()
    return words


def resolved(words: Tensor, keys: Tensor, index: Tensor, threshold: int, ties: int) -> Tensor:
    """Flat indices of the listed elements that are kept, all of them bits of the words."""
    require_resolve(words, keys, index, threshold, ties)
    bits = words.numel() * WORD_BITS
    wrong = index[(index < 0) | (index >= bits)]
    require(wrong.numel() == 0, "saliency_resolve_", f"index must be below {bits}", wrong[:1].tolist())
    tied = keys == threshold
    return index[(keys > threshold) | (tied & (tied.cumsum(0) <= ties))]


def saliency_resolve_(words: Tensor, keys: Tensor, index: Tensor, threshold: int, ties: int) -> None:
    kept = resolved(words, keys, index, threshold, ties)
    # Every bit is set once at most, so that sums are unions.
    sums = torch.zeros_like(words).index_add_(0, kept // WORD_BITS, torch.ones_like(kept) << (kept % WORD_BITS))
    words |= sums
