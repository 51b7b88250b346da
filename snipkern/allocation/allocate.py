"""Allocation: which weights are kept where the global top is not the whole answer, one layer after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from snipkern.allocation.budget import budgets, erk, floors
from snipkern.allocation.flow import Cascade, Flow, flows
from snipkern.allocation.graph import Graph
from snipkern.allocation.layer import block_mask, element_mask, has_blocks, held_blocks
from snipkern.allocation.options import Allocation
from snipkern.allocation.scores import Live
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.ops.schema_saliency import SCORES, SNIP
from snipkern.pool import Prunable
from snipkern.scoring.left import Left, is_pruned, left_shape
from snipkern.selection.select import kept_count, select

__all__ = ["Allocated", "allocate"]

# How often layers are gone through again at most, with what is known then of later layers.
ROUNDS = 3
# Share of the kept weights on live paths at which they are left as they are.
ENOUGH = 0.999


@dataclass(frozen=True)
class Allocated:
    """What is kept.

    Attributes:
        masks: Of each parameter.
        layouts: How the kept weights lie in blocks, of the layers that keep blocks.
        flows: What of each layer is on live paths; empty for the plain global selection.
    """

    masks: dict[str, Mask]
    layouts: dict[str, Layout]
    flows: dict[str, Flow]


def allocate(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    pool: list[Prunable],
    keep: float | int,
    options: Allocation,
    graph: Graph,
    seed: int | None = None,
    formula: str = "snip",
) -> Allocated:
    """Masks for a pool of parameters.

    Args:
        pairs: Weight and gradient of each, as for :func:`snipkern.select`. A lazy mapping is asked for one
            parameter at a time, in an order that follows from scores and options alone.
        keep: Fraction or number to keep.
        options: How the kept weights are shared out.
        graph: What feeds each layer.
        seed: Choose at random within each layer, with this seed, in place of by score; the budgets are the same.
        formula: What is made of weight and gradient; see :class:`snipkern.criteria.Scores`.

    Raises:
        ValueError: As ``select`` does, and for a scope or floor that leaves other layers nothing.

    Cost: plain: as ``select``. With blocks, one read of weights and gradients more, two with order; with balanced
    single weights four more. Memory for one layer's block sums.
    """
    if options.plain and seed is None and not is_pruned(pool):
        return Allocated(select(pairs, keep, score=formula), {}, {})
    if options.plain and seed is None:
        left = Left(pairs, pool)
        kept = kept_count(sum(entry.shape.numel() for entry in pool), keep)
        return Allocated(left.widened(select(left, kept, score=formula)), {}, {})
    with torch.no_grad():
        return _Allocator(pairs, pool, keep, options, graph, seed, formula).run()


def live_share(found: Allocated) -> float:
    """Share of the kept weights that is on live paths."""
    kept = sum(found.masks[name].count() for name in found.flows)
    return sum(flow.effective for flow in found.flows.values()) / max(kept, 1)


class _Allocator:
    def __init__(
        self,
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        pool: list[Prunable],
        keep: float | int,
        options: Allocation,
        graph: Graph,
        seed: int | None,
        formula: str,
    ) -> None:
        self.pairs, self.options, self.seed, self.formula = pairs, options, seed, formula
        self.linear = {entry.fqn for entry in pool if isinstance(entry.module, nn.Linear)}
        self.graph = graph
        self.order = graph.order(list(pairs))
        self.shapes = {entry.fqn: entry.shape for entry in pool}
        self.held = {entry.fqn: entry.held for entry in pool}
        self.left = Left(pairs, pool)
        left = {entry.fqn: left_shape(entry) for entry in pool}
        self.room = {name: shape.numel() for name, shape in left.items()}
        # What was last asked for each layer, and the answer.
        self.last: dict[str, tuple[tuple[object, ...], tuple[Mask, Layout | None]]] = {}
        kept = kept_count(sum(shape.numel() for shape in self.shapes.values()), keep)
        self.least = floors(self.shapes, kept, options.min_keep, left)
        seen = self.left if is_pruned(pool) else pairs  # a dict can be gone through at once
        self.counts, selected = budgets(
            seen, self.shapes, kept, options.scope, options.min_keep, self.order, formula, left
        )
        self.selected = self.left.widened(selected)
        block = options.block
        self.blocked = {name for name, shape in self.shapes.items() if block is not None and has_blocks(shape, block)}
        for name in self.shapes:
            self._require_blocks(name)
        if options.scope == "global" and self._too_few():
            self.counts = erk(self.shapes, kept, self.least, left)

    def _require_blocks(self, name: str) -> None:
        """That what is left of a weight is in the blocks that are asked for."""
        held, block = self.held[name], self.options.block
        if held is None or block is None or name not in self.blocked:
            return
        try:
            held_blocks(held, block)
        except ValueError as error:
            raise ValueError(f"prune: {name!r} can't be pruned again so ({error})") from None

    def _too_few(self) -> bool:
        """Whether most of what is pruned in blocks may not even keep one block in each block row.

        Then budgets by single scores say little: a few blocks more or less decide whether a layer passes anything on.
        """
        if self.options.block is None:
            return False
        width = self.options.block[1]
        few = [name for name in self.blocked if 0 < self.counts[name] < self.shapes[name][0] * width]
        weights, blocked = (sum(self.shapes[name].numel() for name in names) for names in (few, self.blocked))
        return 2 * weights > blocked

    def run(self) -> Allocated:
        """Layer by layer, forwards, and again for as long as that brings more of the kept weights to life.

        After the first time it is known which outputs no later layer reads: they score nothing the next time.
        """
        found = self._forwards({})
        for _ in range(ROUNDS if self.options.cascade else 0):
            if live_share(found) > ENOUGH:
                break
            again = self._forwards(found.flows)
            if live_share(again) <= live_share(found):
                break
            found = again
        return found

    def _forwards(self, before: Mapping[str, Flow]) -> Allocated:
        cascade = Cascade(self.graph)
        masks: dict[str, Mask] = {}
        layouts: dict[str, Layout] = {}
        unspent = 0
        for name in self.order:
            shape = self.shapes[name]
            matrix = len(shape) > 1
            columns = cascade.columns(name, shape) if matrix else None
            live = Live()
            if self.options.cascade and matrix:
                read = before[name].read if name in before else None
                live = Live(*(None if flags is None or flags.all() else flags for flags in (read, columns)))
            budget = self.counts[name]
            if matrix and budget:
                budget = min(max(budget + unspent, self.least[name], 1), self.room[name])
                unspent += self.counts[name]
            masks[name], layout = self._chosen(name, live, budget)
            if layout is not None:
                layouts[name] = layout
            if matrix and budget:
                unspent -= masks[name].count()
            cascade.keep(name, masks[name], columns)
        masks = {name: masks[name] for name in self.pairs}
        return Allocated(masks, layouts, flows(self.graph, masks, self.order))

    def _chosen(self, name: str, live: Live, budget: int) -> tuple[Mask, Layout | None]:
        """What a layer keeps, and how that lies in blocks: as the last time, if the same is asked for."""
        asked = budget, *(None if flags is None else flags.tobytes() for flags in (live.rows, live.cols))
        if name not in self.last or self.last[name][0] != asked:
            self.last[name] = asked, self._choose(name, live, budget)
        return self.last[name][1]

    def _choose(self, name: str, live: Live, budget: int) -> tuple[Mask, Layout | None]:
        blocked = name in self.blocked and budget > 0
        if not blocked and self._is_selected(name, budget, live):
            return self.selected[name], None
        weight, gradient = self.left.whole(name) if self.seed is None else self._random(name)
        score = SCORES[self.formula] if self.seed is None else SNIP
        if blocked:
            ordered = self.options.ordered() and name in self.linear
            least, held = self.least[name], self.held[name]
            return block_mask(weight, gradient, live, budget, self.options, ordered, least, score, held)
        return element_mask(weight, gradient, live, budget, self.options, score, self.held[name]), None

    def _is_selected(self, name: str, budget: int, live: Live) -> bool:
        """Whether the global selection's mask of the layer is what is asked for."""
        found = self.selected.get(name)
        plain = not self.options.balance and live.rows is None and live.cols is None and self.seed is None
        return plain and found is not None and found.count() == budget

    def _random(self, name: str) -> tuple[Tensor, Tensor]:
        """Random scores of one layer, the same on every device."""
        assert self.seed is not None
        device, held, shape = self.pairs[name][0].device, self.held[name], self.shapes[name]
        place = list(self.pairs).index(name)
        drawn = torch.from_numpy(np.random.default_rng((self.seed, place)).random(tuple(shape), dtype=np.float32))
        if held is not None:
            drawn.masked_fill_(~held.mask.to_dense(), 0)
        return drawn.to(device), torch.ones((), device=device).expand(shape)
