"""How well criteria agree: rank correlation with a yardstick, and what they would keep in common."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from snipkern.allocation import allocate, allocation
from snipkern.criteria import CRITERIA, Criterion, criterion_of
from snipkern.criteria.context import Context
from snipkern.criteria.scored import scored
from snipkern.criteria.shuffled import core
from snipkern.distributed import Team, team_of
from snipkern.masks import Mask
from snipkern.ops.reference_saliency import scores_of
from snipkern.ops.schema_saliency import SCORES
from snipkern.options import loader_of, reread_of
from snipkern.pool import FilterFn, Prunable, prunable
from snipkern.scoring.gradients import LossFn, default_loss
from snipkern.scoring.left import Left, kept_of

__all__ = ["Agreement", "Comparison", "compare", "spearman"]


@dataclass(frozen=True)
class Agreement:
    """One criterion beside the yardstick, in one parameter or in all.

    Attributes:
        criterion: Its name, with the options that are not its defaults.
        parameter: Name in the model; None: over all parameters.
        numel: Weights.
        spearman: Rank correlation of the scores, in [-1, 1]; NaN where all scores of one are equal, and for criteria
            that draw.
        kept: What the criterion would keep.
        wanted: What the yardstick would keep.
        common: What both would.
    """

    criterion: str
    parameter: str | None
    numel: int
    spearman: float
    kept: int
    wanted: int
    common: int

    @property
    def overlap(self) -> float:
        """Share of the yardstick's weights that the criterion keeps as well; NaN where there are none."""
        return self.common / self.wanted if self.wanted else math.nan

    @property
    def jaccard(self) -> float:
        """Weights that both keep, of those that at least one keeps; NaN where there are none."""
        either = self.kept + self.wanted - self.common
        return self.common / either if either else math.nan


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; prints as a table.

    Attributes:
        against: The yardstick's name.
        keep: Share of the weights that is kept.
        rows: For each criterion, in the order given, all parameters together, then each.
    """

    against: str
    keep: float
    rows: list[Agreement]

    @property
    def overall(self) -> dict[str, Agreement]:
        """By criterion: over all parameters."""
        return {row.criterion: row for row in self.rows if row.parameter is None}

    def __str__(self) -> str:
        return _table(self)


def compare(
    model: nn.Module,
    loader: Iterable[Any] | None,
    criteria: str | Criterion | Sequence[str | Criterion] = ("snip", "grasp", "obd", "magnitude", "random"),
    *,
    against: str | Criterion = "leave-one-out",
    keep: float | int = 0.05,
    loss_fn: LossFn | None = None,
    batches: int = 1,
    filter_fn: FilterFn | None = None,
    process_group: Any = None,
    progress: bool = False,
) -> Comparison:
    """Compares criteria with a yardstick, by default with what the loss really does without each weight.

    Of each criterion: Spearman's rank correlation with the yardstick's scores, over all weights and within each
    parameter, and how much of what the yardstick keeps it would keep. The model is left as it is.

    Args:
        model: Dense, or pruned: what is left of it is compared then.
        criteria: Names or instances, or one of these.
        against: The yardstick. ``"leave-one-out"`` needs a small net; see :class:`~snipkern.criteria.LeaveOneOut`.
        keep: Fraction or number of weights; each criterion shares them out by its own default (``"global"`` for most).
        loader, loss_fn, batches, filter_fn, process_group, progress: As for :func:`snipkern.prune_`; the loader
            is read once for each criterion and must yield the same batches each time.

    Returns:
        ``rows``, ``overall``, and a table when printed.

    Raises:
        ValueError: As for :func:`snipkern.prune_`, and for no or two equal criteria.

    Cost: that of each criterion and of the yardstick; memory for the scores of two of them, and some ranks in float64.
    """
    yardstick = criterion_of(against)
    given = [criteria] if isinstance(criteria, (str, Criterion)) else criteria
    chosen = [criterion_of(criterion) for criterion in given]
    if not chosen or len({_label(criterion) for criterion in chosen}) < len(chosen):
        raise ValueError(
            f"compare: criteria must be one or more, each of them once (got {', '.join(map(_label, chosen)) or 'none'})"
        )
    if core(yardstick) is not yardstick:
        raise ValueError(f"compare: against must be a criterion with scores of its own (got {_label(yardstick)})")
    for criterion in (yardstick, *chosen):
        loader_of(loader, core(criterion).name, core(criterion).needs_data)
    reread_of("compare", loader, "criterion")
    team = team_of(model, process_group)
    if team.sharded:
        raise ValueError("compare: the model must not be sharded; compare before fully_shard (got one with DTensors)")
    pool = team.ranks.together(lambda: prunable(team.model, filter_fn))
    total = sum(entry.shape.numel() for entry in pool)
    kept = team.ranks.together(lambda: kept_of(pool, keep))

    def seen(criterion: Criterion) -> tuple[dict[str, Tensor] | None, Mapping[str, Mask]]:
        return _seen(team, pool, criterion, Looking(loader, loss_fn or default_loss, batches, kept, progress))

    ours, masks = seen(yardstick)
    assert ours is not None
    rows = [row for criterion in chosen for row in _agreements(_label(criterion), *seen(criterion), ours, masks)]
    return Comparison(_label(yardstick), kept / total, rows)


@dataclass(frozen=True)
class Looking:
    """At what criteria look."""

    loader: Any
    loss: LossFn
    batches: int
    kept: int
    progress: bool


def _seen(
    team: Team, pool: list[Prunable], criterion: Criterion, by: Looking
) -> tuple[dict[str, Tensor] | None, Mapping[str, Mask]]:
    """A criterion's scores, None if it draws, and what it would keep."""
    looked, ranks = core(criterion), team.ranks
    shares = allocation(scope=looked.scope)
    on = Context(team.model, pool, by.loader, by.loss, by.batches, by.kept, shares, ranks, by.progress)
    found = ranks.together(lambda: scored(looked, on))
    chance = on.seed() if looked is not criterion else None
    masks = ranks.together(lambda: allocate(found.pairs, pool, by.kept, shares, on.graph, chance, found.formula)).masks
    if chance is not None:
        return None, masks
    left = Left(found.pairs, pool)
    return {name: scores_of(*pair, SCORES[found.formula]).cpu() for name, pair in left.items()}, masks


def _agreements(
    label: str,
    theirs: dict[str, Tensor] | None,
    kept: Mapping[str, Mask],
    ours: dict[str, Tensor],
    wanted: Mapping[str, Mask],
) -> list[Agreement]:
    names = list(ours)
    rows: list[Agreement] = []
    for name in names:
        both = int((kept[name].to_dense() & wanted[name].to_dense()).sum())
        correlation = math.nan if theirs is None else spearman(theirs[name], ours[name])
        counts = kept[name].count(), wanted[name].count(), both
        rows.append(Agreement(label, name, ours[name].numel(), correlation, *counts))
    correlation = math.nan if theirs is None else spearman(_joined(theirs, names), _joined(ours, names))
    sums = [sum(getattr(row, what) for row in rows) for what in ("kept", "wanted", "common")]
    return [Agreement(label, None, sum(row.numel for row in rows), correlation, *sums), *rows]


def _joined(scores: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([scores[name].reshape(-1) for name in names])


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two tensors of as many elements; equal ones share the mean of their ranks.

    Returns:
        In [-1, 1]; NaN if all elements of one are equal.
    """
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return max(-1.0, min(1.0, float(x @ y) / scale)) if scale else math.nan


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, in float64."""
    # Adding zero makes one of the two zeros.
    _, group, counts = torch.unique(values.reshape(-1) + 0.0, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[group]


def _label(criterion: Criterion) -> str:
    """A criterion's name, with the options that are not its defaults."""
    usual = CRITERIA.get(criterion.name)
    if criterion == usual or not dataclasses.is_dataclass(criterion):
        return criterion.name
    changed = [
        f"{option.name}={getattr(criterion, option.name)!r}"
        for option in dataclasses.fields(criterion)
        if type(usual) is not type(criterion) or getattr(criterion, option.name) != getattr(usual, option.name)
    ]
    return f"{criterion.name}({', '.join(changed)})"


def _table(found: Comparison) -> str:
    chance = found.rows[0].wanted / found.rows[0].numel  # of what is left, where the model is pruned already
    title = f"criteria against {found.against}, {found.keep:.2%} kept (chance: {chance:.2%} in common)"
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    grid.add_column("criterion", overflow="fold")
    grid.add_column("parameter", overflow="fold")
    for heading in ("weights", "rank correlation", "kept", f"by {found.against}", "in common", "Jaccard"):
        grid.add_column(heading, justify="right")
    for i, row in enumerate(found.rows):
        if row.parameter is None and i:
            grid.add_section()
        grid.add_row(
            row.criterion if row.parameter is None else "",
            row.parameter or "all",
            f"{row.numel:,}",
            _number(row.spearman, "+.3f"),
            f"{row.kept:,}",
            f"{row.wanted:,}",
            _number(row.overlap, ".1%"),
            _number(row.jaccard, ".3f"),
        )
    out = io.StringIO()
    console = Console(file=out, width=120, color_system=None, markup=False, highlight=False)
    console.print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
