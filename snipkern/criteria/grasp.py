"""GraSP: keep what the gradient flow needs."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.progress import track
from torch import Tensor, nn

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.criteria.curvature import differentiable, hessian_products, require_no_recomputing
from snipkern.scoring.gradients import checked_loss, describe

__all__ = ["Grasp"]


@dataclass(frozen=True)
class Grasp(Criterion):
    """Gradient signal preservation: ``w * Hg``, with the gradient g and the Hessian H of the mean loss.

    Removing weight j changes the squared length of the gradient, which is how fast the loss falls, by about
    ``-2 w_j (Hg)_j``. What is kept has the largest ``w * Hg``: without it the gradient would shrink most. What would
    make it grow goes first. The paper's score ``S(-w) = -w * Hg`` is the negative of ours; it removes the largest.

    Args:
        temperature: The model's outputs are divided by it before the loss (the model must return one tensor then). The
            paper's code takes 200, which makes classes at initialisation nearly equally likely; None: as they are.

    g and H are of the pooled weights alone, as in the paper's code, over all batches and ranks: g is complete before it
    is multiplied with H. Recurrent layers and attention take kernels that can be differentiated twice.

    Cost: for each batch two forward and backward passes, and one backward pass through both; memory of a second
    backward pass, and for the batches, two gradients and one product of each pooled weight.

    Source: Wang, Zhang, Grosse: Picking winning tickets before training by preserving gradient flow, ICLR 2020.
    """

    name: ClassVar[str] = "grasp"
    temperature: float | None = None

    def __post_init__(self) -> None:
        warmth: object = self.temperature
        if warmth is not None and not (
            isinstance(warmth, (int, float)) and not isinstance(warmth, bool) and 0 < warmth < float("inf")
        ):
            raise ValueError(f"grasp: temperature must be None or a positive number (got {warmth!r})")

    def scores(self, on: Context) -> Scores:
        batches = list(on.given())
        parameters = [entry.parameter for entry in on.pool]
        with on.evaluating(), differentiable(on.model), self._tempered(on):
            gradient = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
            for batch in self._shown(on, "gradients", batches):
                loss = checked_loss(on.loss_fn(on.model, batch), on.pool)
                require_no_recomputing("grasp", loss)
                _add(gradient, torch.autograd.grad(loss, parameters, allow_unused=True), len(batches))
            gradient = [on.averaged(part).to(p.dtype) for part, p in zip(gradient, parameters, strict=True)]
            product = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
            for batch in self._shown(on, "curvature", batches):
                loss = on.loss_fn(on.model, batch).reshape(())
                for _, found in hessian_products("grasp", loss, parameters, [gradient]):
                    _add(product, found, len(batches))
        weights = on.weights()
        return Scores(
            {name: (weights[name], on.averaged(part)) for name, part in zip(weights, product, strict=True)}, "signed"
        )

    def _shown(self, on: Context, what: str, batches: Sequence[Any]) -> Iterable[Any]:
        return track(batches, what, transient=True, disable=not on.progress)

    @contextlib.contextmanager
    def _tempered(self, on: Context) -> Generator[None]:
        """The model's outputs divided by the temperature."""
        if self.temperature is None:
            yield
            return
        handle = on.model.register_forward_hook(self._divided)
        try:
            yield
        finally:
            handle.remove()

    def _divided(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                "grasp: temperature needs a model that returns one tensor; take temperature=None (got"
                f" {describe(output)})"
            )
        return output / (self.temperature or 1.0)


def _add(total: Sequence[Tensor], found: Sequence[Tensor | None], batches: int) -> None:
    for sum_, part in zip(total, found, strict=True):
        if part is not None:
            sum_.add_(part, alpha=1 / batches)
