"""Selection for those who have weights and gradients: which weights to keep."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

from torch import Tensor

from snipkern.masks import Mask
from snipkern.ops.schema_saliency import SCORES
from snipkern.selection.joined import on_cpu
from snipkern.selection.sources import Alone, Pairs
from snipkern.selection.topk import top_words

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


def select(
    pairs: Mapping[str, tuple[Tensor, Tensor] | Tensor], keep: float | int, *, score: str = "snip"
) -> dict[str, Mask]:
    """The masks that keep the weights with the globally largest scores, ``|w * g|`` unless told otherwise.

    A score is a product in float32, to which its factors are first converted. Kept are the kappa first by (score
    descending, order of the mapping, row-major index), exactly: ties included, denormals not flushed, an overflow to
    infinity being the largest score, or the least. The same masks come from every backend, instruction set and thread
    count.

    Args:
        pairs: Weight and gradient of each parameter, of one shape and device; any strides, and any mix of float32,
            float64, float16 and bfloat16. They are only read. A mapping that opens its tensors on access (a memory-
            mapped file larger than memory) is asked for each of them once or more per pass.
        keep: Fraction or count to keep; see :func:`kept_count`.
        score: ``"snip"``, ``|w * g|``; ``"magnitude"``, ``|w|``, where the mapping's values can be the weights alone;
            ``"obd"``, ``w * (w * h)``, with the diagonal of the Hessian as second of each pair (LeCun, Denker and
            Solla, "Optimal Brain Damage", 1989); ``"signed"``, ``w * g``, where the most negative go first.

    Returns:
        One mask per parameter, in the order of the mapping.

    Raises:
        ValueError: For a bad ``keep`` or ``score``; for an empty mapping; for tensors that do not fit each other;
            for a weight or gradient that is not finite. Messages name the parameter.

    Cost: one read of all weights and gradients and little more; up to four where heavy ties lie at the threshold.
    Memory besides the masks: about 20 bytes for each candidate, usually well under 1 % of the weights.
    """
    if score not in SCORES:
        raise ValueError(f"select: score must be one of {', '.join(SCORES)} (got {score!r})")
    source = Pairs(pairs, score != "magnitude")
    total = sum(source.sizes)
    words = top_words(source, Alone(), total, kept_count(total, keep), SCORES[score])
    return {name: Mask(w, shape) for name, w, shape in zip(source.names, on_cpu(words), source.shapes, strict=True)}
