"""How the kept weights are shared out: over layers, and over the rows, columns and blocks of one layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from snipkern.layout import require_block
from snipkern.options import one_of

__all__ = ["ORDERED_SIDE", "SCOPES", "Allocation", "allocation"]

SCOPES = ("global", "layer", "uniform", "erk", "row")
# Sides of blocks from which on rows and columns are reordered by themselves: smaller blocks gain little.
ORDERED_SIDE = 16


@dataclass(frozen=True)
class Allocation:
    """Checked options; :func:`allocation` makes them.

    Attributes:
        scope: How many weights each layer may keep. ``"global"``: as many as it has among the global largest scores;
            ``"layer"``: the same share of every layer; ``"uniform"``: the same, but the first layer dense; ``"erk"``:
            in proportion to the sum of the weight's dimensions (Erdos-Renyi-Kernel); ``"row"``: as ``"layer"``, and
            the same share of every row (output) within it, or block row. The total is exact for all.
        block: Height and width of kept blocks, in rows and columns of the weight as ``[shape[0], everything else]``.
        balance: Rows and columns share what a layer keeps, so that few of them die.
        order: Rows and columns that score alike come to lie in one block: ``"auto"`` for linear layers and blocks of
            16 and more on both sides, True for linear layers whatever the block, False for none.
        mix: Share of a layer's weights that it keeps as single ones, beside its blocks.
        min_keep: What each layer keeps at least: a number of weights, or a share of its own.
        cascade: Inputs that nothing kept reaches score nothing, and outputs that nothing kept reads; what a layer can't
            spend goes to the next.
    """

    scope: str = "global"
    block: tuple[int, int] | None = None
    balance: bool = False
    order: Literal["auto"] | bool = False
    mix: float = 0.0
    min_keep: int | float | None = None
    cascade: bool = False

    @property
    def plain(self) -> bool:
        """Whether the exact global selection is all there is to do."""
        within = self.block is not None or self.balance or self.cascade
        return self.scope == "global" and not within and not self.min_keep

    def described(self) -> str | None:
        """What else than the plain global selection is asked for, in words; None: nothing."""
        if self.plain:
            return None
        default = allocation()
        named = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
        return ", ".join(f"{name}={value!r}" for name, value in named if value != getattr(default, name))

    def ordered(self) -> bool:
        """Whether a linear layer that keeps blocks gets its rows and columns reordered."""
        if self.block is None or self.order is False:
            return False
        return self.order is True or min(self.block) >= ORDERED_SIDE


def allocation(
    block: tuple[int, int] | None = None,
    *,
    scope: str = "global",
    balance: bool | None = None,
    order: Literal["auto"] | bool = "auto",
    mix: float = 0.0,
    min_keep: int | float | None = None,
    cascade: bool | None = None,
) -> Allocation:
    """The options as :func:`snipkern.prune_` takes them, checked; None is the default for this block.

    Raises:
        ValueError: For a value of the wrong kind, or ``order=True`` or ``mix`` without a block.
    """
    one_of("scope", scope, SCOPES)
    if block is not None:
        block = require_block("prune", block)
    for name, value in (("balance", balance), ("cascade", cascade)):
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"prune: {name} must be True, False or None (got {value!r})")
    if order != "auto" and not isinstance(order, bool):
        raise ValueError(f"prune: order must be 'auto', True or False (got {order!r})")
    if isinstance(mix, bool) or not isinstance(mix, (int, float)) or not 0 <= mix <= 1:
        raise ValueError(f"prune: mix must be a share in [0, 1] (got {mix!r})")
    if block is None and (order is True or mix > 0):
        given = "order=True" if order is True else f"mix={mix!r}"
        raise ValueError(f"prune: order and mix need block=(height, width) (got {given} and block=None)")
    whole = isinstance(min_keep, int) and not isinstance(min_keep, bool) and min_keep >= 0
    if min_keep is not None and not whole and not (isinstance(min_keep, float) and 0 <= min_keep <= 1):
        raise ValueError(f"prune: min_keep must be a number of weights or a share in [0, 1] (got {min_keep!r})")
    blocks = block is not None
    balance = blocks if balance is None else balance
    return Allocation(
        scope, block, balance, order, float(mix), min_keep, balance or blocks if cascade is None else cascade
    )
