"""The saliency ops on lists of tensors in plain PyTorch: one tensor after the other.

See :mod:`snipkern.ops.schema_saliency_many`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops import schema_saliency_many
from snipkern.ops.reference_saliency import (
    saliency_histogram,
    saliency_mask,
    saliency_partition,
    saliency_sample,
)
from snipkern.ops.schema_saliency import SNIP, WORD_BITS
from snipkern.ops.schema_saliency_many import Tensors, require_in_range, total_size


def pairs_of(weights: Tensors, gradients: Tensors | None) -> list[tuple[Tensor, Tensor | None]]:
    return [(weight, None if gradients is None else gradients[i]) for i, weight in enumerate(weights)]


def saliency_sample_many(
    weights: Tensors, gradients: Tensors | None, starts: Tensor, width: int, score: int = SNIP
) -> Tensor:
    schema_saliency_many.saliency_sample_many(weights, gradients, starts, width, score)
    keys = weights[0].new_empty(starts.shape[0], width, dtype=torch.int32)
    require_in_range(starts, total_size(weights))
    first = 0
    for weight, gradient in pairs_of(weights, gradients):
        here = (starts >= first) & (starts < first + weight.numel())
        if here.any():
            at = (starts[here] - first).to(weight.device)
            keys[here.to(keys.device)] = saliency_sample(weight, gradient, at, width, score)
        first += weight.numel()
    return keys


def saliency_partition_many(
    weights: Tensors, gradients: Tensors | None, low: int, high: int, capacity: int, score: int = SNIP
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    schema_saliency_many.require_pairs("saliency_partition_many", weights, gradients, score)
    schema_saliency_many.require_partition_many(low, high, capacity)
    room = min(capacity, total_size(weights))
    all_keys = weights[0].new_zeros(room, dtype=torch.int32)
    all_index = weights[0].new_zeros(room, dtype=torch.int64)
    found: list[tuple[Tensor, Tensor]] = []
    listed = first_word = 0
    for weight, gradient in pairs_of(weights, gradients):
        words, keys, index, counts = saliency_partition(weight, gradient, low, high, room - listed, score)
        all_keys[listed : listed + keys.numel()] = keys
        all_index[listed : listed + keys.numel()] = index + first_word * WORD_BITS
        # Once one list did not fit, no other shall.
        listed = room if int(counts[1]) > room - listed else listed + keys.numel()
        first_word += words.numel()
        found.append((words, counts))
    return torch.cat([words for words, _ in found]), all_keys, all_index, torch.stack([counts for _, counts in found])


def saliency_histogram_many(
    weights: Tensors, gradients: Tensors | None, low: int, high: int, shift: int, score: int = SNIP
) -> Tensor:
    schema_saliency_many.saliency_histogram_many(weights, gradients, low, high, shift, score)
    total = weights[0].new_zeros(((high - low) >> shift) + 1, dtype=torch.int64)
    for weight, gradient in pairs_of(weights, gradients):
        total += saliency_histogram(weight, gradient, low, high, shift, score)
    return total


def saliency_mask_many(
    weights: Tensors, gradients: Tensors | None, threshold: int, ties: int, score: int = SNIP
) -> Tensor:
    schema_saliency_many.require_pairs("saliency_mask_many", weights, gradients, score)
    schema_saliency_many.require_ties("saliency_mask_many", threshold, ties)
    found: list[Tensor] = []
    for weight, gradient in pairs_of(weights, gradients):
        found.append(saliency_mask(weight, gradient, threshold, ties, score))
        if ties:
            equal = saliency_histogram(weight, gradient, threshold, threshold, 0, score)
            ties = max(0, ties - int(equal))
    return torch.cat(found)
