"""The contract of the saliency ops on lists of tensors: thousands of small ones shall not cost thousands of launches.

The tensors of a list count as one, of all their elements in order, and words, bits and ties with them: the words of
each tensor begin at its own first word, so that *bit* ``64 * (words of all tensors before) + i`` is element ``i``.
Scores and keys are those of :mod:`snipkern.ops.schema_saliency`, without scales. All tensors are on one device; each
pair of weight and gradient has one shape, any layout and any two dtypes. On CUDA devices no op here waits for the
device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snipkern.ops.checks import require
from snipkern.ops.schema import op
from snipkern.ops.schema_saliency import (
    MAGNITUDE,
    SNIP,
    require_histogram,
    require_interval,
    require_pair,
    require_ties,
    word_count,
)

Tensors = Sequence[Tensor]


def require_pairs(name: str, weights: Tensors, gradients: Tensors | None, score: int) -> None:
    require(len(weights) > 0, name, "there must be at least one weight", 0)
    require(gradients is not None or score == MAGNITUDE, name, "gradients must be given for this score", "none")
    require(
        gradients is None or len(gradients) == len(weights),
        name,
        "there must be a gradient for each weight",
        f"{len(weights)} weights, {0 if gradients is None else len(gradients)} gradients",
    )
    for i, weight in enumerate(weights):
        require(
            weight.device == weights[0].device,
            name,
            f"all weights must be on one device, {weights[0].device}",
            weight.device,
        )
        require_pair(name, weight, None if gradients is None else gradients[i], score)


def total_size(weights: Tensors) -> int:
    return sum(weight.numel() for weight in weights)


def total_words(weights: Tensors) -> int:
    return sum(word_count(weight.numel()) for weight in weights)


@op("(Tensor[] weights, Tensor[]? gradients, Tensor starts, int width, int score=0) -> Tensor")
def saliency_sample_many(
    weights: Tensors, gradients: Tensors | None, starts: Tensor, width: int, score: int = SNIP
) -> Tensor:
    """The keys of short runs of elements.

    Args:
        starts: int64 ``[runs]``, on the CPU wherever the weights are: places among the elements of all tensors; eager
            kernels raise for one out of range.
        width: Elements of a run; a run that reaches the end of a tensor goes on at the tensor's element 0.

    Returns:
        int32 keys, ``[runs, width]``.
    """
    require_pairs("saliency_sample_many", weights, gradients, score)
    require_starts(starts, width)
    return weights[0].new_empty(starts.shape[0], width, dtype=torch.int32)


def require_starts(starts: Tensor, width: int) -> None:
    name = "saliency_sample_many"
    require(
        starts.dtype == torch.int64 and starts.dim() == 1 and starts.device.type == "cpu",
        name,
        "starts must be a 1-D int64 tensor on the CPU",
        f"{starts.dim()}-D {starts.dtype} on {starts.device}",
    )
    require(width > 0, name, "width must be positive", width)


def require_in_range(starts: Tensor, total: int) -> None:
    wrong = starts[(starts < 0) | (starts >= total)]
    require(wrong.numel() == 0, "saliency_sample_many", f"starts must be below {total}", wrong[:1].tolist())


@op(
    "(Tensor[] weights, Tensor[]? gradients, int low, int high, int capacity, int score=0)"
    " -> (Tensor words, Tensor keys, Tensor index, Tensor counts)"
)
def saliency_partition_many(
    weights: Tensors, gradients: Tensors | None, low: int, high: int, capacity: int, score: int = SNIP
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Elements above an interval of keys as bits, elements inside it as a list; one pass.

    Args:
        low, high: The interval, both ends inside; any int32 numbers.
        capacity: The longest list wanted.

    Returns:
        words: int64 ``[all words]``: bits of ``key > high``.
        keys, index: int32 and int64 ``[min(capacity, all elements)]``: keys and bits of the elements with ``low <= key
            <= high``, ascending by bit. Unspecified beyond these, and throughout if there are more than ``capacity``.
        counts: int64 ``[tensors, 3]``: elements above, elements inside, and the largest bits of a score's absolute
            value, 0 without elements.
    """
    require_pairs("saliency_partition_many", weights, gradients, score)
    require_partition_many(low, high, capacity)
    room = min(capacity, total_size(weights))
    return (
        weights[0].new_empty(total_words(weights), dtype=torch.int64),
        weights[0].new_empty(room, dtype=torch.int32),
        weights[0].new_empty(room, dtype=torch.int64),
        weights[0].new_empty(len(weights), 3, dtype=torch.int64),
    )


def require_partition_many(low: int, high: int, capacity: int) -> None:
    require_interval("saliency_partition_many", low, high)
    require(capacity >= 0, "saliency_partition_many", "capacity must not be negative", capacity)


@op("(Tensor[] weights, Tensor[]? gradients, int low, int high, int shift, int score=0) -> Tensor")
def saliency_histogram_many(
    weights: Tensors, gradients: Tensors | None, low: int, high: int, shift: int, score: int = SNIP
) -> Tensor:
    """The sum of all tensors' ``saliency_histogram``, int64 ``[((high - low) >> shift) + 1]``."""
    require_pairs("saliency_histogram_many", weights, gradients, score)
    require_histogram(low, high, shift, "saliency_histogram_many")
    return weights[0].new_empty(((high - low) >> shift) + 1, dtype=torch.int64)


@op("(Tensor[] weights, Tensor[]? gradients, int threshold, int ties, int score=0) -> Tensor")
def saliency_mask_many(
    weights: Tensors, gradients: Tensors | None, threshold: int, ties: int, score: int = SNIP
) -> Tensor:
    """Bits of all elements with ``key > threshold`` and of the first ``ties`` of all tensors that equal it.

    Returns:
        int64 ``[all words]``.
    """
    require_pairs("saliency_mask_many", weights, gradients, score)
    require_ties("saliency_mask_many", threshold, ties)
    return weights[0].new_empty(total_words(weights), dtype=torch.int64)
