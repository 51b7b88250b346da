"""The contract of the saliency ops: counting, collecting and marking weights by ``|w * g|``.

A *score* is the float32 product of weight and gradient, each first converted to float32, without its sign. Its *key* is
the score's bits as a non-negative int32, which order like the scores; an overflow is infinity, the largest legal key
``0x7f800000``; a larger one comes from a NaN. Elements are numbered by their row-major flat index, in int64. *Words*
are the bits of a :class:`snipkern.masks.Mask`. Weight and gradient have one shape, any layout and any two of the dtypes
float32, float64, float16 and bfloat16. No op allocates anything of the tensors' size but words, and none has a
derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops.checks import require, require_float
from snipkern.ops.schema import op

WORD_BITS = 64
LARGEST_KEY = 2**31 - 1
INFINITY_KEY = 0x7F800000
MAX_BINS = 4096


def require_pair(name: str, weight: Tensor, gradient: Tensor) -> None:
    require_float(name, "weight", weight)
    require_float(name, "gradient", gradient)
    require(
        weight.shape == gradient.shape and weight.device == gradient.device,
        name,
        f"gradient must have the weight's shape and device, {list(weight.shape)} on {weight.device}",
        f"{list(gradient.shape)} on {gradient.device}",
    )


def require_interval(name: str, low: int, high: int) -> None:
    require(-1 <= low <= high <= LARGEST_KEY, name, "low and high must satisfy -1 <= low <= high < 2^31", (low, high))


def require_ties(name: str, threshold: int, ties: int) -> None:
    require(
        -1 <= threshold <= LARGEST_KEY and ties >= 0,
        name,
        "threshold must be a key and ties not negative",
        (threshold, ties),
    )


def word_count(numel: int) -> int:
    """Words of a mask of ``numel`` elements."""
    return (numel + WORD_BITS - 1) // WORD_BITS


@op("(Tensor weight, Tensor gradient, Tensor starts, int width) -> Tensor")
def saliency_sample(weight: Tensor, gradient: Tensor, starts: Tensor, width: int) -> Tensor:
    """The keys of short runs of elements.

    Args:
        starts: int64 ``[runs]``, flat indices on the weight's device; eager kernels raise for one out of range.
        width: Elements of a run; a run that reaches the end goes on at element 0.

    Returns:
        int32 keys, ``[runs, width]``.
    """
    require_sample(weight, gradient, starts, width)
    return weight.new_empty(starts.shape[0], width, dtype=torch.int32)


def require_sample(weight: Tensor, gradient: Tensor, starts: Tensor, width: int) -> None:
    name = "saliency_sample"
    require_pair(name, weight, gradient)
    require(
        starts.dtype == torch.int64 and starts.dim() == 1,
        name,
        "starts must be a 1-D int64 tensor",
        f"{starts.dim()}-D {starts.dtype}",
    )
    require(width > 0, name, "width must be positive", width)


@op(
    "(Tensor weight, Tensor gradient, int low, int high, int capacity)"
    " -> (Tensor words, Tensor keys, Tensor index, Tensor counts)"
)
def saliency_partition(
    weight: Tensor, gradient: Tensor, low: int, high: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Elements above an interval of keys as bits, elements inside it as a list; one pass.

    Args:
        low, high: The interval, both ends inside; from -1 (below every key) to 2^31 - 1.
        capacity: The longest list wanted.

    Returns:
        words: int64 ``[ceil(numel / 64)]``: bits of ``key > high``.
        keys, index: int32 and int64 ``[inside]``: elements with ``low <= key <= high``, ascending by flat index; empty
            if there are more than ``capacity``.
        counts: int64 ``[3]``: elements above, elements inside (also beyond the capacity), and the largest key, 0
            without elements.
    """
    require_partition(weight, gradient, low, high, capacity)
    listed = torch.library.get_ctx().new_dynamic_size()
    return (
        weight.new_empty(word_count(weight.numel()), dtype=torch.int64),
        weight.new_empty(listed, dtype=torch.int32),
        weight.new_empty(listed, dtype=torch.int64),
        weight.new_empty(3, dtype=torch.int64),
    )


def require_partition(weight: Tensor, gradient: Tensor, low: int, high: int, capacity: int) -> None:
    require_pair("saliency_partition", weight, gradient)
    require_interval("saliency_partition", low, high)
    require(capacity >= 0, "saliency_partition", "capacity must not be negative", capacity)


@op("(Tensor weight, Tensor gradient, int low, int high, int shift) -> Tensor")
def saliency_histogram(weight: Tensor, gradient: Tensor, low: int, high: int, shift: int) -> Tensor:
    """How many keys fall into each of equal bins of an interval.

    Args:
        low, high: The interval, both ends inside.
        shift: A bin is ``2^shift`` keys wide; at most 4096 bins.

    Returns:
        int64 ``[((high - low) >> shift) + 1]``: counts of ``(key - low) >> shift`` for ``low <= key <= high``.
    """
    require_histogram(weight, gradient, low, high, shift)
    return weight.new_empty(((high - low) >> shift) + 1, dtype=torch.int64)


def require_histogram(weight: Tensor, gradient: Tensor, low: int, high: int, shift: int) -> None:
    name = "saliency_histogram"
    require_pair(name, weight, gradient)
    require_interval(name, low, high)
    require(
        low >= 0 and 0 <= shift < 31 and (high - low) >> shift < MAX_BINS,
        name,
        f"low must not be negative and shift leave at most {MAX_BINS} bins",
        (low, high, shift),
    )


@op("(Tensor weight, Tensor gradient, int threshold, int ties) -> Tensor")
def saliency_mask(weight: Tensor, gradient: Tensor, threshold: int, ties: int) -> Tensor:
    """Bits of all elements with ``key > threshold`` and of the first ``ties``, by flat index, that equal it.

    Returns:
        int64 words, ``[ceil(numel / 64)]``.
    """
    require_pair("saliency_mask", weight, gradient)
    require_ties("saliency_mask", threshold, ties)
    return weight.new_empty(word_count(weight.numel()), dtype=torch.int64)


@op("(Tensor(a!) words, Tensor keys, Tensor index, int threshold, int ties) -> ()")
def saliency_resolve_(words: Tensor, keys: Tensor, index: Tensor, threshold: int, ties: int) -> None:
    """Sets, in place, the bits of listed elements: all with ``key > threshold``, the first ``ties`` that equal it.

    In place because a copy of the words costs more than all else here.

    Args:
        words: int64 ``[any]``, contiguous.
        keys, index: int32 and int64 ``[listed]``: as ``saliency_partition`` returns them.
    """
    require_resolve(words, keys, index, threshold, ties)


def require_resolve(words: Tensor, keys: Tensor, index: Tensor, threshold: int, ties: int) -> None:
    name = "saliency_resolve_"
    require(
        words.dtype == torch.int64 and words.dim() == 1 and words.is_contiguous(),
        name,
        "words must be a contiguous 1-D int64 tensor",
        f"{words.dim()}-D {words.dtype}",
    )
    require(
        keys.dtype == torch.int32 and index.dtype == torch.int64 and keys.dim() == index.dim() == 1,
        name,
        "keys and index must be 1-D, int32 and int64",
        f"{keys.dim()}-D {keys.dtype}, {index.dim()}-D {index.dtype}",
    )
    require_ties(name, threshold, ties)
