"""The contract of the saliency ops: counting, collecting and marking weights by a score such as ``|w * g|``.

A *score* is a float32 product of factors that are each converted to float32 first. Which one, an op's ``score`` says:

====================  ============  =======================================================
``SCORES["snip"]``    ``|w g|``     the default
``"magnitude"``       ``|w|``       reads no gradient, which may be None
``"obd"``             ``w (w h)``   the diagonal of the Hessian, ``h``, takes the gradient's place
``"signed"``          ``w g``
====================  ============  =======================================================

(In this order of factors an overflow never meets a zero: what is finite gives no NaN.)

Its *key* is an int32 that orders like the scores: the score's bits, of which the lower 31 are flipped where it is
negative; -0 counts as 0. An overflow is an infinity, of the largest legal key ``0x7f800000`` or, where negative, of the
least, ``LEAST_KEY``; what lies beyond comes from a NaN.

With ``row_scale`` and ``col_scale``, float32 ``[rows]`` and ``[cols]`` of the weight seen as ``[shape[0], everything
else]``, the score is that of ``w * (row_scale[i] * col_scale[j])``; one that is not given is all ones. They are meant
to be positive, or 0 for rows and columns that shall score nothing.

Elements are numbered by their row-major flat index, in int64. *Words* are the bits of a
:class:`snipkern.masks.Mask`. Weight and gradient have one shape, any layout and any two of the dtypes float32, float64,
float16 and bfloat16. No op allocates anything of the tensors' size but words, and none has a derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snipkern.ops.checks import require, require_float
from snipkern.ops.schema import op

WORD_BITS = 64
LARGEST_KEY = 2**31 - 1
INFINITY_KEY = 0x7F800000
LEAST_KEY = -INFINITY_KEY - 1
MAX_BINS = 65536
SCORES = {"snip": 0, "magnitude": 1, "obd": 2, "signed": 3}
SNIP, MAGNITUDE, OBD, SIGNED = SCORES.values()
#: What follows the tensors and numbers of most ops here.
WEIGHING = "int score=0, Tensor? row_scale=None, Tensor? col_scale=None"


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of the weight seen as ``[shape[0], everything else]``."""
    return (weight.shape[0], weight.shape[1:].numel()) if weight.dim() else (1, 1)


def require_pair(
    name: str,
    weight: Tensor,
    gradient: Tensor | None,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> None:
    require_float(name, "weight", weight)
    require(0 <= score < len(SCORES), name, "score must be 0, 1, 2 or 3", score)
    require(gradient is not None or score == MAGNITUDE, name, "gradient must be given for this score", "none")
    if gradient is not None:
        require_float(name, "gradient", gradient)
        require(
            weight.shape == gradient.shape and weight.device == gradient.device,
            name,
            f"gradient must have the weight's shape and device, {list(weight.shape)} on {weight.device}",
            f"{list(gradient.shape)} on {gradient.device}",
        )
    rows, cols = matrix_shape(weight)
    require_vector(name, "row_scale", row_scale, rows, torch.float32)
    require_vector(name, "col_scale", col_scale, cols, torch.float32)


def require_vector(name: str, what: str, vector: Tensor | None, size: int, dtype: torch.dtype) -> None:
    if vector is not None:
        require(
            vector.dtype == dtype and list(vector.shape) == [size],
            name,
            f"{what} must be {str(dtype).removeprefix('torch.')} [{size}]",
            f"{list(vector.shape)} {vector.dtype}",
        )


def require_interval(name: str, low: int, high: int) -> None:
    require(
        -(2**31) <= low <= high <= LARGEST_KEY,
        name,
        "low and high must satisfy -2^31 <= low <= high < 2^31",
        (low, high),
    )


def require_ties(name: str, threshold: int, ties: int) -> None:
    require(
        -(2**31) <= threshold <= LARGEST_KEY and ties >= 0,
        name,
        "threshold must be a key and ties not negative",
        (threshold, ties),
    )


def word_count(numel: int) -> int:
    """Words of a mask of ``numel`` elements."""
    return (numel + WORD_BITS - 1) // WORD_BITS


@op(f"(Tensor weight, Tensor? gradient, Tensor starts, int width, {WEIGHING}) -> Tensor")
def saliency_sample(
    weight: Tensor,
    gradient: Tensor | None,
    starts: Tensor,
    width: int,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    """The keys of short runs of elements.

    Args:
        starts: int64 ``[runs]``, flat indices on the weight's device; eager kernels raise for one out of range.
        width: Elements of a run; a run that reaches the end goes on at element 0.

    Returns:
        int32 keys, ``[runs, width]``.
    """
    require_pair("saliency_sample", weight, gradient, score, row_scale, col_scale)
    require_sample(starts, width)
    return weight.new_empty(starts.shape[0], width, dtype=torch.int32)


def require_sample(starts: Tensor, width: int) -> None:
    name = "saliency_sample"
    require(
        starts.dtype == torch.int64 and starts.dim() == 1,
        name,
        "starts must be a 1-D int64 tensor",
        f"{starts.dim()}-D {starts.dtype}",
    )
    require(width > 0, name, "width must be positive", width)


@op(
    f"(Tensor weight, Tensor? gradient, int low, int high, int capacity, {WEIGHING})"
    " -> (Tensor words, Tensor keys, Tensor index, Tensor counts)"
)
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
    """Elements above an interval of keys as bits, elements inside it as a list; one pass.

    Args:
        low, high: The interval, both ends inside; any int32 numbers.
        capacity: The longest list wanted.

    Returns:
        words: int64 ``[ceil(numel / 64)]``: bits of ``key > high``.
        keys, index: int32 and int64 ``[inside]``: elements with ``low <= key <= high``, ascending by flat index; empty
            if there are more than ``capacity``.
        counts: int64 ``[3]``: elements above, elements inside (also beyond the capacity), and the largest bits of a
            score's absolute value (``INFINITY_KEY`` or more tells of what is not finite), 0 without elements.
    """
    require_pair("saliency_partition", weight, gradient, score, row_scale, col_scale)
    require_partition(low, high, capacity)
    listed = torch.library.get_ctx().new_dynamic_size()
    return (
        weight.new_empty(word_count(weight.numel()), dtype=torch.int64),
        weight.new_empty(listed, dtype=torch.int32),
        weight.new_empty(listed, dtype=torch.int64),
        weight.new_empty(3, dtype=torch.int64),
    )


def require_partition(low: int, high: int, capacity: int) -> None:
    require_interval("saliency_partition", low, high)
    require(capacity >= 0, "saliency_partition", "capacity must not be negative", capacity)


@op(f"(Tensor weight, Tensor? gradient, int low, int high, int shift, {WEIGHING}) -> Tensor")
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
    """How many keys fall into each of equal bins of an interval.

    Args:
        low, high: The interval, both ends inside.
        shift: A bin is ``2^shift`` keys wide; at most 65536 bins.

    Returns:
        int64 ``[((high - low) >> shift) + 1]``: counts of ``(key - low) >> shift`` for ``low <= key <= high``.
    """
    require_pair("saliency_histogram", weight, gradient, score, row_scale, col_scale)
    require_histogram(low, high, shift)
    return weight.new_empty(((high - low) >> shift) + 1, dtype=torch.int64)


def require_histogram(low: int, high: int, shift: int, name: str = "saliency_histogram") -> None:
    require_interval(name, low, high)
    require(
        0 <= shift < 31 and (high - low) >> shift < MAX_BINS,
        name,
        f"shift must leave at most {MAX_BINS} bins",
        (low, high, shift),
    )


@op(f"(Tensor weight, Tensor? gradient, int threshold, int ties, {WEIGHING}) -> Tensor")
def saliency_mask(
    weight: Tensor,
    gradient: Tensor | None,
    threshold: int,
    ties: int,
    score: int = SNIP,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
) -> Tensor:
    """Bits of all elements with ``key > threshold`` and of the first ``ties``, by flat index, that equal it.

    Returns:
        int64 words, ``[ceil(numel / 64)]``.
    """
    require_pair("saliency_mask", weight, gradient, score, row_scale, col_scale)
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
    require(
        keys.numel() == index.numel(), name, "keys and index must have one length", f"{keys.numel()}, {index.numel()}"
    )
    require_ties(name, threshold, ties)
