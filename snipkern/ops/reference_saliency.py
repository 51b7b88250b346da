"""The saliency ops in plain PyTorch, on any device: a chunk of elements at a time, so that no score tensor exists."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from snipkern.ops.checks import require
from snipkern.ops.schema_saliency import (
    WORD_BITS,
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


def keys_of(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight.to(torch.float32) * gradient.to(torch.float32)).abs_().view(torch.int32)


def key_chunks(weight: Tensor, gradient: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First flat index and keys of each piece."""
    start = 0
    for left, right in zip(flat_chunks(weight), flat_chunks(gradient), strict=True):
        yield start, keys_of(left, right)
        start += left.numel()


def set_bits(words: Tensor, start: int, kept: Tensor) -> None:
    """Sets bit ``start + i`` for every true ``kept[i]``."""
    first = start // WORD_BITS
    lead = start - first * WORD_BITS
    size = word_count(lead + kept.numel())
    padded = kept.new_zeros(size * WORD_BITS)
    padded[lead : lead + kept.numel()] = kept
    bit = torch.arange(WORD_BITS, device=kept.device)
    words[first : first + size] |= (padded.view(size, WORD_BITS).to(torch.int64) << bit).sum(1)


def saliency_sample(weight: Tensor, gradient: Tensor, starts: Tensor, width: int) -> Tensor:
    require_sample(weight, gradient, starts, width)
    numel = weight.numel()
    wrong = starts[(starts < 0) | (starts >= numel)]
    require(wrong.numel() == 0, "saliency_sample", f"starts must be below {numel}", wrong[:1].tolist())
    flat = (starts[:, None] + torch.arange(width, device=starts.device)) % max(numel, 1)
    # Zero-dimensional tensors have one element, whatever the index says.
    at = torch.unravel_index(flat, weight.shape) if weight.dim() else (torch.zeros_like(flat),)
    shape = weight.shape or (1,)
    return keys_of(weight.expand(shape)[at], gradient.expand(shape)[at])


def saliency_partition(
    weight: Tensor, gradient: Tensor, low: int, high: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_partition(weight, gradient, low, high, capacity)
    words = weight.new_zeros(word_count(weight.numel()), dtype=torch.int64)
    keys, index = [weight.new_empty(0, dtype=torch.int32)], [weight.new_empty(0, dtype=torch.int64)]
    above = inside = largest = 0
    for start, key in key_chunks(weight, gradient):
        if not key.numel():
            continue
        over = key > high
        set_bits(words, start, over)
        at = torch.nonzero((key >= low) & ~over)[:, 0]
        above += int(over.sum())
        inside += at.numel()
        largest = max(largest, int(key.max()))
        if inside <= capacity:
            keys.append(key[at])
            index.append(at + start)
    if inside > capacity:
        del keys[1:], index[1:]
    counts = torch.tensor([above, inside, largest], device=weight.device)
    return words, torch.cat(keys), torch.cat(index), counts


def saliency_histogram(weight: Tensor, gradient: Tensor, low: int, high: int, shift: int) -> Tensor:
    require_histogram(weight, gradient, low, high, shift)
    bins = ((high - low) >> shift) + 1
    counts = weight.new_zeros(bins, dtype=torch.int64)
    for _, key in key_chunks(weight, gradient):
        inside = key[(key >= low) & (key <= high)]
        counts += torch.bincount((inside - low) >> shift, minlength=bins)
    return counts


def saliency_mask(weight: Tensor, gradient: Tensor, threshold: int, ties: int) -> Tensor:
    require_pair("saliency_mask", weight, gradient)
    require_ties("saliency_mask", threshold, ties)
    words = weight.new_zeros(word_count(weight.numel()), dtype=torch.int64)
    for start, key in key_chunks(weight, gradient):
        tied = torch.nonzero(key == threshold)[:ties, 0]
        kept = key > threshold
        kept[tied] = True
        set_bits(words, start, kept)
        ties -= tied.numel()
    return words


def resolved(words: Tensor, keys: Tensor, index: Tensor, threshold: int, ties: int) -> Tensor:
    """Flat indices of the listed elements that are kept, all of them bits of the words."""
    require_resolve(words, keys, index, threshold, ties)
    require(
        keys.numel() == index.numel(),
        "saliency_resolve_",
        "keys and index must have one length",
        f"{keys.numel()}, {index.numel()}",
    )
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
