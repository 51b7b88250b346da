"""Optimal Brain Surgeon: what the loss would gain without a weight, if the others make up for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.criteria.curvature import differentiable
from snipkern.criteria.obd import require_curvature, rows_of
from snipkern.masks import Mask

__all__ = ["Obs"]

CURVATURES = ("gauss-newton", "fisher")
# Bytes of blocks, in float64, that are factored at a time.
PIECE = 64 << 20


@dataclass(frozen=True)
class Obs(Criterion):
    """``w^2 / (2 [H^-1]_jj)``, and the kept weights changed so that the loss rises least: for trained networks.

    H is the Gauss-Newton or Fisher matrix, block-diagonal: blocks of ``block`` weights that follow each other in a
    parameter, row by row. Once it is known what is kept, all removed weights Q of a block go together: the others
    change by ``-H^-1[:, Q] (H^-1[Q, Q])^-1 w_Q``, the minimum of the loss's second-order model with ``w_Q = 0``. With
    the block as large as the parameter this is the whole layer's H.

    Args:
        block: Weights of a block.
        curvature: ``"gauss-newton"`` or ``"fisher"``; see :class:`~snipkern.criteria.Obd`.
        samples: Random rows of the Gauss-Newton matrix for each sample; None: exact.
        damping: Added to the diagonal, in units of its mean in the parameter: what has no curvature in the few batches
            seen must not count as free to change.
        update: Whether the kept weights change; if not, this only chooses.
        memory: Bytes that all blocks may take.
        seed: Of what is drawn.

    Raises:
        ValueError: For blocks of more bytes than ``memory``; before anything is computed.

    Cost: rows as for :class:`~snipkern.criteria.Obd`, each read by a product that makes ``block`` sums for each weight;
    one factorisation of each block, and one more for the update. Memory: ``block`` numbers in the weights' dtype (at
    least float32) for each weight, until the plan is applied or dropped (until scored, with ``update=False``), 256 MiB
    of rows, and some pieces of 64 MiB.

    Source: Hassibi, Stork: Second order derivatives for network pruning: Optimal Brain Surgeon, NeurIPS 1992; blocks:
    Singh, Alistarh: WoodFisher, NeurIPS 2020; joint removal: Kurtic et al.: The Optimal BERT Surgeon, EMNLP 2022.
    """

    name: ClassVar[str] = "obs"
    block: int = 50
    curvature: str = "gauss-newton"
    samples: int | None = None
    damping: float = 0.1
    update: bool = True
    memory: int = 4 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        require_curvature("obs", self.curvature, CURVATURES, self.samples)
        for name in ("block", "memory"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"obs: {name} must be a positive integer (got {value!r})")
        damping: object = self.damping
        if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 < damping < float("inf"):
            raise ValueError(f"obs: damping must be a positive number (got {damping!r})")

    def scores(self, on: Context) -> Scores:
        weights = on.weights()
        blocks = {name: Blocks(weight, self.block, self.damping) for name, weight in weights.items()}
        needed = sum(entry.bytes for entry in blocks.values())
        if needed > self.memory:
            raise ValueError(
                f"obs: blocks must fit into memory={self.memory:,} bytes; take smaller ones, or filter_fn to prune less"
                f" (got {needed:,} bytes for block={self.block})"
            )
        generator = torch.Generator().manual_seed(self.seed)
        batches = list(on.given())
        with on.evaluating(), differentiable(on.model):
            shown = track(batches, "curvature", transient=True, disable=not on.progress)
            for rows in rows_of(on, "obs", self.curvature, self.samples, generator, shown):
                for name, part in rows.items():
                    blocks[name].add(part, 1 / len(batches))
        for entry in blocks.values():
            entry.sums = on.averaged(entry.sums)
        pairs = {name: (weight, blocks[name].stiffness()) for name, weight in weights.items()}

        def updated(masks: Mapping[str, Mask]) -> dict[str, Tensor]:
            return {name: blocks[name].without(weights[name], mask) for name, mask in masks.items() if name in blocks}

        return Scores(pairs, "obd", updated if self.update else None)


class Blocks:
    """The diagonal blocks of one parameter's curvature.

    Args:
        weight: The parameter.
        size: Weights of a block; the last one is filled up with weights that are nothing and matter to nothing.
        damping: See :class:`Obs`.

    Attributes:
        sums: ``[blocks, size, size]``, undamped.
    """

    def __init__(self, weight: Tensor, size: int, damping: float) -> None:
        self.shape, self.damping = weight.shape, damping
        self.size = max(1, min(size, weight.numel()))
        self.count = -(-weight.numel() // self.size)
        self.spare = self.count * self.size - weight.numel()
        self.dtype, self.device = torch.promote_types(weight.dtype, torch.float32), weight.device
        self.bytes = self.count * self.size**2 * torch.finfo(self.dtype).bits // 8
        self._sums: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        if self._sums is None:
            self._sums = torch.zeros(self.count, self.size, self.size, dtype=self.dtype, device=self.device)
        return self._sums

    @sums.setter
    def sums(self, sums: Tensor) -> None:
        self._sums = sums

    def add(self, rows: Tensor, factor: float) -> None:
        """Adds the outer products of rows ``[rows, *shape]``, times a factor."""
        cut = self.cut(rows.flatten(1).to(self.dtype)).transpose(0, 1)  # [blocks, rows, size]
        self.sums.baddbmm_(cut.mT, cut, alpha=factor)

    def cut(self, flat: Tensor) -> Tensor:
        """``[..., numel]`` as ``[..., blocks, size]``."""
        return F.pad(flat, (0, self.spare)).unflatten(-1, (self.count, self.size))

    def joined(self, cut: Tensor) -> Tensor:
        """The way back, to the parameter's shape."""
        return cut.reshape(-1)[: self.shape.numel()].view(self.shape)

    def damped(self) -> Iterator[tuple[slice, Tensor]]:
        """Some blocks at a time, in float64, with the damping added."""
        mean = float(self.sums.diagonal(dim1=1, dim2=2).sum(dtype=torch.float64)) / max(self.shape.numel(), 1)
        # Where nothing is curved at all, a weight is worth next to nothing, but it must be a number.
        added = self.damping * mean or torch.finfo(torch.float32).tiny
        some = max(1, PIECE // (self.size**2 * 8))
        for first in range(0, self.count, some):
            block = self.sums[first : first + some].to(torch.float64, copy=True)
            block.diagonal(dim1=1, dim2=2).add_(added)
            yield slice(first, first + some), block

    def stiffness(self) -> Tensor:
        """``1 / [H^-1]_jj``: how the loss is curved along each weight if the others of its block follow."""
        found = torch.empty(self.count, self.size, dtype=self.dtype, device=self.device)
        for here, block in self.damped():
            factor = self._factored(block)
            unit = torch.eye(self.size, dtype=block.dtype, device=block.device).expand_as(block)
            # H = L L^T, so that [H^-1]_jj is the squared length of column j of L^-1.
            found[here] = torch.linalg.solve_triangular(factor, unit, upper=False).square().sum(1).reciprocal()
        return self.joined(found)

    def without(self, weight: Tensor, mask: Mask) -> Tensor:
        """The weight without what is not kept, the kept ones of each block changed so that the loss rises least."""
        kept = self.cut(mask.to_dense(self.device).reshape(-1))
        values = self.cut(weight.detach().reshape(-1).double())
        found = torch.empty_like(values)
        for here, block in self.damped():
            gone = ~kept[here]
            # The kept part K of delta solves H[K, K] delta_K = H[K, Q] w_Q; rows of Q say nothing.
            wanted = (block @ (values[here] * gone).unsqueeze(-1)).masked_fill(gone.unsqueeze(-1), 0.0)
            apart = gone.unsqueeze(1) | gone.unsqueeze(2)
            part = block.masked_fill(apart, 0.0)
            part.diagonal(dim1=1, dim2=2).add_(gone)
            change = torch.cholesky_solve(wanted, self._factored(part)).squeeze(-1)
            found[here] = torch.where(gone, 0.0, values[here] + change)
        return self.joined(found).to(weight.dtype)

    def _factored(self, block: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(block)
        if bool(failed.any()):
            raise ValueError(
                "obs: curvature must be positive definite; take a larger damping (got a block that is not, with"
                f" damping={self.damping:g})"
            )
        return factor
