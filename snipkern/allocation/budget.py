"""Budgets: how many weights each layer may keep, exact in total."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from snipkern.masks import Mask
from snipkern.selection.select import select

__all__ = ["budgets", "erk", "floors"]

# A share of a size that is a whole number may come out a little larger, as 0.07 * 100 does.
EXACT = 1 - 2**-50

Pairs = Mapping[str, tuple[Tensor, Tensor]]


def budgets(
    pairs: Pairs,
    shapes: Mapping[str, torch.Size],
    kept: int,
    scope: str,
    min_keep: int | float | None,
    order: Sequence[str],
    formula: str = "snip",
    left: Mapping[str, torch.Size] | None = None,
) -> tuple[dict[str, int], dict[str, Mask]]:
    """The number of weights that each parameter may keep; ``kept`` in all.

    Args:
        pairs: Weight and gradient of each parameter, looked up when they are needed; of what is left of it.
        shapes: Of each dense parameter.
        scope, min_keep: As in :class:`snipkern.allocation.options.Allocation`.
        order: The names in forward order.
        formula: Of the scores.
        left: Shapes of what is left of each parameter, which are the pairs'; None: all of it.

    Returns:
        The budgets, and for ``"global"`` the masks they are counts of, of what is left.

    Raises:
        ValueError: Where the floors, or a dense first layer, leave nothing for other layers; for a weight or gradient
            that is not finite.

    Cost: one selection, that of ``"global"`` a few with floors.
    """
    left = shapes if left is None else left
    least = floors(shapes, kept, min_keep, left)
    if scope == "global":
        masks = _global(pairs, left, kept, least, formula)
        return {name: mask.count() for name, mask in masks.items()}, masks
    select(pairs, kept, score=formula)  # says what is not finite
    if scope == "erk":
        return erk(shapes, kept, least, left), {}
    sizes = {name: float(shape.numel()) for name, shape in shapes.items()}
    if scope == "uniform":
        weights = [name for name in order if len(shapes[name]) > 1]
        if not weights:
            raise ValueError("prune: scope='uniform' must have a first layer to keep dense (got biases alone)")
        first = weights[0]
        least = {**least, first: left[first].numel()}
        others = sum(least.values())
        if others + len(least) - 1 > kept:
            raise ValueError(
                "prune: scope='uniform' keeps the first layer dense; keep must leave weights for the others"
                f" (got {kept} to keep, {least[first]} of them in {first!r})"
            )
        sizes[first] = 0.0
    return _apportion(sizes, least, left, kept), {}


def erk(
    shapes: Mapping[str, torch.Size],
    kept: int,
    least: Mapping[str, int] | None = None,
    left: Mapping[str, torch.Size] | None = None,
) -> dict[str, int]:
    """Erdos-Renyi-Kernel budgets: in proportion to the sum of each weight's dimensions, at most all that is left of it.

    Source: Evci et al.: Rigging the lottery, ICML 2020, after Mocanu et al., 2018.
    """
    sums = {name: float(sum(shape)) for name, shape in shapes.items()}
    return _apportion(sums, least or dict.fromkeys(shapes, 0), left or shapes, kept)


def floors(
    shapes: Mapping[str, torch.Size],
    kept: int,
    min_keep: int | float | None,
    left: Mapping[str, torch.Size] | None = None,
) -> dict[str, int]:
    """The least that each parameter keeps, of all its weights; at most what is left of them."""
    if not min_keep:
        return dict.fromkeys(shapes, 0)
    least = {
        name: math.ceil(min_keep * shape.numel() * EXACT) if isinstance(min_keep, float) else min_keep
        for name, shape in shapes.items()
    }
    least = {name: min(number, (left or shapes)[name].numel()) for name, number in least.items()}
    if sum(least.values()) > kept:
        raise ValueError(
            f"prune: min_keep must leave at most the {kept} weights that are kept (got {min_keep!r}, which is"
            f" {sum(least.values())} of all layers)"
        )
    return least


class _Without(Pairs):
    """A mapping without some of its names; what is looked up is looked up in the whole."""

    def __init__(self, pairs: Pairs, without: AbstractSet[str]) -> None:
        self.pairs = pairs
        self.names = [name for name in pairs if name not in without]

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self.pairs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _global(
    pairs: Pairs, shapes: Mapping[str, torch.Size], kept: int, least: Mapping[str, int], formula: str
) -> dict[str, Mask]:
    """The largest scores of all, but of each parameter at least so many: the best such choice.

    A parameter that falls short of its floor keeps just that, and would still fall short if the others had less to
    share: it is left out, until none falls short.
    """
    masks = select(pairs, kept, score=formula)
    short: set[str] = set()
    while True:
        found = {name for name, mask in masks.items() if name not in short and mask.count() < least[name]}
        if not found:
            break
        short |= found
        rest = _Without(pairs, short)
        left = kept - sum(least[name] for name in short)
        masks.update(select(rest, left, score=formula) if left else {name: nothing(shapes[name]) for name in rest})
    for name in pairs:  # in one order on all ranks
        if name in short:
            masks[name] = select({name: pairs[name]}, least[name], score=formula)[name]
    return masks


def nothing(shape: torch.Size) -> Mask:
    """A mask that keeps nothing."""
    return Mask(torch.zeros(-(-shape.numel() // 64), dtype=torch.int64), shape)


def _apportion(
    shares: Mapping[str, float], least: Mapping[str, int], shapes: Mapping[str, torch.Size], kept: int
) -> dict[str, int]:
    """Whole numbers in proportion to the shares, between each one's floor and size, ``kept`` in all."""
    sizes = {name: shape.numel() for name, shape in shapes.items()}

    def clipped(scale: float) -> dict[str, float]:
        return {name: min(max(scale * share, least[name]), sizes[name]) for name, share in shares.items()}

    low, high = 0.0, max((sizes[name] / share for name, share in shares.items() if share > 0), default=1.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(clipped(middle).values()) <= kept else (low, middle)
    exact = clipped(low)
    counts = {name: max(math.floor(value), least[name]) for name, value in exact.items()}
    # What rounding down left goes to the largest fractions, the first of equals; to any with room in the end.
    by_fraction = sorted(counts, key=lambda name: counts[name] - exact[name])
    while (left := kept - sum(counts.values())) > 0:
        open_ = [name for name in by_fraction if counts[name] < sizes[name] and shares[name] > 0][:left]
        for name in open_:
            counts[name] += 1
    return counts
