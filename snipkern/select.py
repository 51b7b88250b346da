"""Selection for those who have weights and gradients: which weights to keep."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

from torch import Tensor

from snipkern.masks import Mask
from snipkern.sources import Alone, Pairs
from snipkern.topk import top_words

__all__ = ["kept_count", "select"]


def kept_count(total: int, keep: float | int) -> int:
    """How many of ``total`` weights to keep.

    Args:
        keep: A fraction in (0, 1], of which ``round(total * keep)`` are kept (Python's round of the float64 product:
            halves to even), or a count in [1, total]. The integer 1 is one weight, the float 1.0 all of them.

    Raises:
        ValueError: For anything else, for no weights at all, and for a fraction that rounds to none.
    """
    if total <= 0:
        raise ValueError(f"select: there must be at least one weight to choose from (got {total})")
    kept = 0
    number: object = None if isinstance(keep, bool) else keep
    if isinstance(number, Integral):
        kept = int(number) if 1 <= int(number) <= total else 0
    elif isinstance(number, Real) and 0 < float(number) <= 1:
        kept = round(total * float(number))
        if kept == 0:
            raise ValueError(f"select: keep must leave at least one weight (got {keep!r} of {total})")
    if kept == 0:
        raise ValueError(f"select: keep must be a fraction in (0, 1] or a count in [1, {total}] (got {keep!r})")
    return kept


def select(pairs: Mapping[str, tuple[Tensor, Tensor]], keep: float | int) -> dict[str, Mask]:
    """The masks that keep the globally largest ``|w * g|``.

    The score of a weight is the float32 product of weight and gradient, each first converted to float32. Kept are the
    kappa first by (score descending, order of the mapping, row-major index), exactly: ties included, denormals not
    flushed, an overflow to infinity being the largest score. The same masks come from every backend, instruction set
    and thread count.

    Args:
        pairs: Weight and gradient of each parameter, of one shape and device; any strides, and any mix of float32,
            float64, float16 and bfloat16. They are only read. A mapping that opens its tensors on access (a memory-
            mapped file larger than memory) is asked for each of them once or more per pass.
        keep: Fraction or count to keep; see :func:`kept_count`.

    Returns:
        One mask per parameter, in the order of the mapping.

    Raises:
        ValueError: For a bad ``keep``; for an empty mapping; for tensors that do not fit each other; for a weight or
            gradient that is not finite. Messages name the parameter.

    Cost: one read of all weights and gradients and little more; up to five where heavy ties lie at the threshold.
    Memory besides the masks: about 20 bytes for each candidate, usually well under 1 % of the weights.
    """
    source = Pairs(pairs)
    total = sum(source.sizes)
    words = top_words(source, Alone(), total, kept_count(total, keep))
    return {name: Mask(w.cpu(), shape) for name, w, shape in zip(source.names, words, source.shapes, strict=True)}
