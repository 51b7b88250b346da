"""Collapse: layers through which nothing goes any more, in words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from snipkern.report import Layer, collapses

__all__ = ["CollapseWarning", "warn_of"]


class CollapseWarning(UserWarning):
    """A layer keeps nothing, or nothing that is on a path from the model's inputs to its outputs.

    Given before the model is changed: with ``warnings.simplefilter("error", snipkern.CollapseWarning)`` pruning raises
    it, and leaves the model as it was.
    """


REMEDY = "Keep more, or spread it: a floor for each layer (min_keep=), balance=True, scope='erk', or another criterion."


def warn_of(layers: Sequence[Layer]) -> None:
    """Warns of what is cut through, at the first caller outside of this package.

    Raises:
        CollapseWarning: If such warnings are errors.
    """
    found = collapses(layers)
    if found:
        text = " ".join(sentence[0].upper() + sentence[1:] for sentence in found)
        warnings.warn(f"prune: {text} {REMEDY}", CollapseWarning, stacklevel=_outside())


def _outside() -> int:
    """Levels of the stack from the caller of this to the first frame of another package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "snipkern":
        level, frame = level + 1, frame.f_back
    return level
