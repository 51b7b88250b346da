"""What all pictures share: figures without global state, colours, names of any length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

__all__ = ["BLUE", "COLOURS", "MARKERS", "SEQUENTIAL", "VERMILION", "new_figure", "shortened", "style", "whole_numbers"]

# Okabe and Ito's colours without their yellow, which is faint on white, and a sequential map: all tell apart under
# every common colour blindness. Markers and dashes repeat what colours say.
BLUE, VERMILION = "#0072B2", "#D55E00"
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
DASHES = ("-", "--", "-.", ":")
SEQUENTIAL = "viridis"
DPI = 150
# Names of layers and runs up to this many characters are written as they are.
LONGEST_NAME = 44


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        ModuleNotFoundError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "plots: matplotlib must be installed (got no such module): pip install 'snipkern[plots]'", name="matplotlib"
        ) from None
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def whole_numbers() -> Locator:
    """Ticks for counts: none between two counts."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the n-th line: no two of 28 are the same."""
    n = len(COLOURS)
    return {"color": COLOURS[number % n], "marker": MARKERS[number % n], "linestyle": DASHES[number // n % len(DASHES)]}


def shortened(names: Iterable[str], longest: int = LONGEST_NAME) -> list[str]:
    """The names, long ones without their middle; as they are where two would look the same."""
    whole = list(names)
    head = (longest - 3) // 2
    tail = longest - 3 - head
    short = [name if len(name) <= longest else f"{name[:head]}...{name[-tail:]}" for name in whole]
    return short if len(set(short)) == len(set(whole)) else whole
