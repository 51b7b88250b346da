"""Optimal Brain Damage: what the loss would gain without a weight, to second order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.progress import track
from torch import Tensor

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.criteria.curvature import differentiable, hessian_products, require_no_recomputing, signs
from snipkern.criteria.factors import Factors
from snipkern.scoring.gradients import checked_loss

__all__ = ["Obd", "diagonal_of", "hutchinson_diagonal"]

CURVATURES = ("gauss-newton", "fisher", "hutchinson")


@dataclass(frozen=True)
class Obd(Criterion):
    """``w^2 H_jj / 2`` with the diagonal of the loss's Hessian H: for trained networks.

    At a minimum of the loss that is what the loss rises by when weight j alone is removed, to second order. Far from
    one, at initialisation above all, the gradient says more: take SNIP there.

    Args:
        curvature: What stands for H. ``"gauss-newton"``: the part of H without second derivatives of the network, never
            negative, as in the paper; needs a loss that is convex in the model's outputs (one tensor of one call), as
            cross entropy and squared error are. ``"fisher"``: mean of the squares of single samples' gradients, for any
            loss. ``"hutchinson"``: H itself, estimated as ``z * Hz`` with random signs z, for any twice differentiable
            loss and any kind of batch; noisy, and negative where the loss is concave.
        samples: For "gauss-newton": None: exact, with a backward pass for each of at most 128 outputs; else random rows
            for each sample, for cross entropy. For "hutchinson": vectors z for each batch; None: 32.
        seed: Of what is drawn.

    The first two cut a batch into samples, along the first dimension of its tensors; the loss of a sample is
    ``loss_fn(model, batch of that sample)``, a batch's the mean of these. A model that takes batches of one size alone
    is given whole ones: "fisher" needs a loss that is made of one tensor of outputs then.

    Cost: exact Gauss-Newton: for each sample a forward pass and as many backward passes as there are outputs (with
    whole batches, backward passes of these); memory for a diagonal and 256 MiB of gradients of samples, or one gradient
    if that is larger. Hutchinson: for each batch and z about two forward and backward passes; memory of a second
    backward pass.

    Source: LeCun, Denker, Solla: Optimal Brain Damage, NeurIPS 1989, equation 5.
    """

    name: ClassVar[str] = "obd"
    curvature: str = "gauss-newton"
    samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_curvature("obd", self.curvature, CURVATURES, self.samples)

    def scores(self, on: Context) -> Scores:
        weights, diagonal = on.weights(), self.diagonal(on)
        return Scores({name: (weights[name], on.averaged(diagonal[name])) for name in weights}, "obd")

    def diagonal(self, on: Context) -> dict[str, Tensor]:
        """The diagonal of H over this rank's batches, by parameter name."""
        generator = torch.Generator().manual_seed(self.seed)
        batches = list(on.given())
        with on.evaluating(), differentiable(on.model):
            shown = track(batches, "curvature", transient=True, disable=not on.progress)
            if self.curvature == "hutchinson":
                found = hutchinson_diagonal(on, shown, self.samples or 32, generator)
            else:
                found = diagonal_of(rows_of(on, "obd", self.curvature, self.samples, generator, shown))
        return {name: total.div_(len(batches)) for name, total in found.items()}


def require_curvature(op: str, curvature: object, allowed: Sequence[str], samples: object) -> None:
    """Checks the options of a criterion."""
    if curvature not in allowed:
        raise ValueError(f"{op}: curvature must be one of {', '.join(allowed)} (got {curvature!r})")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(f"{op}: samples must be None or a positive integer (got {samples!r})")
    if samples is not None and curvature == "fisher":
        raise ValueError(f"{op}: samples must be None for curvature='fisher', which draws nothing (got {samples!r})")


def rows_of(
    on: Context, op: str, curvature: str, samples: int | None, generator: torch.Generator, batches: Iterable[Any]
) -> Iterator[dict[str, Tensor]]:
    """Rows, some at a time, whose outer products sum up to the curvature of all batches."""
    factors = Factors(op, on.model, on.loss_fn, on.weights())
    for batch in batches:
        # The whole batch once, which says what is wrong with it, before samples of it.
        require_no_recomputing(op, checked_loss(on.loss_fn(on.model, batch), on.pool))
        if curvature == "fisher":
            yield from factors.fisher(batch)
        else:
            yield from factors.gauss_newton(batch, samples, generator)


def diagonal_of(rows: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The diagonal of a matrix that is given by its rows, in float32 or better."""
    total: dict[str, Tensor] = {}
    for some in rows:
        for name, part in some.items():
            squares = part.to(torch.promote_types(part.dtype, torch.float32)).square().sum(0)
            total[name] = total[name].add_(squares) if name in total else squares
    return total


def hutchinson_diagonal(
    on: Context, batches: Iterable[Any], samples: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Sum over batches of estimates of the Hessian's diagonal, each the mean of ``z * Hz`` over some sign vectors z.

    Source: Bekas, Kokiopoulou, Saad: An estimator for the diagonal of a matrix, 2007.
    """
    parameters = [entry.parameter for entry in on.pool]
    total = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    for batch in batches:
        loss = checked_loss(on.loss_fn(on.model, batch), on.pool)
        drawn = (signs(parameters, generator) for _ in range(samples))
        for vector, products in hessian_products("obd", loss, parameters, drawn):
            for sum_, sign, product in zip(total, vector, products, strict=True):
                sum_.add_(sign * product, alpha=1 / samples)
    return {entry.fqn: diagonal for entry, diagonal in zip(on.pool, total, strict=True)}
