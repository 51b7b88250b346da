"""Penalties that make weights zero while a dense net trains: L1, and group lasso by outputs, inputs or blocks.

As terms of a loss, or, so that weights become zero exactly, as proximal steps after an optimiser's:

>>> penalty = sk.penalties.GroupLasso(1e-4, by="inputs")
>>> loss = task_loss + penalty(model)                    # a differentiable term; weights come near zero only
>>> handle = penalty.attach_(optimizer, model)           # or: after each step, exact zeros
>>> handle.remove()
>>> sk.sparsify_(model, sk.nonzero_masks(model))         # train on with what is left

Sources: Tibshirani, "Regression shrinkage and selection via the lasso", 1996; Yuan and Lin, "Model selection and
estimation in regression with grouped variables", 2006; Daubechies, Defrise and De Mol, "An iterative thresholding
algorithm for linear inverse problems with a sparsity constraint", 2004; Wen et al., "Learning structured sparsity in
deep neural networks", 2016.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from snipkern.layout import require_block
from snipkern.masks import Mask
from snipkern.pool import FilterFn, Prunable, dense_pool

__all__ = ["L1", "GroupLasso", "Penalty", "nonzero_masks"]

SIDES = ("outputs", "inputs")


@dataclass(frozen=True, kw_only=True)
class Penalty(ABC):
    """A penalty on the pooled weights of a dense model.

    The pool is that of :func:`snipkern.prune_`: trainable weights of two or more dimensions, no biases, norms or
    embeddings; a tied weight counts once.

    Attributes:
        filter_fn: As for :func:`snipkern.prune_`.
    """

    filter_fn: FilterFn | None = None

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty as a scalar, differentiable with respect to the weights (a subgradient 0 where it has a kink).

        It has the weights' dtype (float32 for 16-bit ones) and the first one's device.

        Raises:
            ValueError: For a model that is pruned already, or has no prunable weight.

        Cost: one read of the weights, and one more in the backward.
        """
        terms = [self._term(entry, _wide(entry.parameter)) for entry in _pool(model, self.filter_fn)]
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()

    @torch.no_grad()
    def shrink_(self, model: nn.Module, step: float) -> None:
        """The proximal operator of ``step`` times the penalty, in place: what shrinks below zero is exactly zero.

        Args:
            model: Dense.
            step: The learning rate of the gradient step that came before.
        """
        if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step < math.inf:
            raise ValueError(f"penalty: step must be a finite number of at least 0 (got {step!r})")
        for entry in _pool(model, self.filter_fn):
            entry.parameter.copy_(self._shrunk(entry, _wide(entry.parameter), step))

    def attach_(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
        """Lets a proximal step follow every step of an optimiser, with the learning rate of each weight's group.

        With plain SGD that is proximal gradient descent (ISTA), whose fixed points minimise loss plus penalty. Other
        optimisers scale each weight's step; the penalty's stays ``lr`` times its strength then, as decoupled weight
        decay does. Attach :class:`L1` before :class:`GroupLasso` to have both: their steps in this order are that of
        the sum (Friedman, Hastie and Tibshirani, "A note on the group lasso and a sparse group lasso", 2010).

        Args:
            optimizer: Trains all pooled weights of the model, with an ``lr`` in each group.
            model: Dense. Remove the hook before the model is pruned.

        Returns:
            A handle; its ``remove()`` ends it.

        Raises:
            ValueError: For something that is no torch optimiser, or lacks a weight or a learning rate.

        Cost: one read and write of the weights a step. In 16 bits a small step may round to none: shrink float32
        weights.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"penalty: optimizer must be a torch.optim.Optimizer (got {type(optimizer).__name__})")
        pool = _pool(model, self.filter_fn)
        _rates(optimizer, pool)

        @torch.no_grad()
        def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            for entry, rate in zip(pool, _rates(optimizer, pool), strict=True):
                entry.parameter.copy_(self._shrunk(entry, _wide(entry.parameter), rate))

        return optimizer.register_step_post_hook(hook)

    @abstractmethod
    def _term(self, entry: Prunable, weight: Tensor) -> Tensor:
        """Of one weight."""

    @abstractmethod
    def _shrunk(self, entry: Prunable, weight: Tensor, step: float | Tensor) -> Tensor:
        """One weight after a proximal step."""


@dataclass(frozen=True)
class L1(Penalty):
    """``strength * sum |w|``; its proximal step is the soft threshold ``sign(w) max(|w| - step * strength, 0)``.

    Attributes:
        strength: At least 0.
    """

    strength: float

    def __post_init__(self) -> None:
        _require_strength(self.strength)

    def _term(self, entry: Prunable, weight: Tensor) -> Tensor:
        return self.strength * weight.abs().sum()

    def _shrunk(self, entry: Prunable, weight: Tensor, step: float | Tensor) -> Tensor:
        return weight.sign() * (weight.abs() - step * self.strength).clamp(min=0)


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """``strength * sum over groups of sqrt(size) * ||w_group||_2``: whole groups become zero together.

    Its proximal step scales each group by ``max(1 - step * strength * sqrt(size) / ||w_group||, 0)``.

    Attributes:
        strength: At least 0.
        by: What a group is: ``"outputs"``, the weights of one output feature or channel; ``"inputs"``, those that read
            one input feature or channel (all of a convolution's window); or ``(height, width)``, blocks of the weight
            seen as ``[shape[0], everything else]``, as ``prune_(block=...)`` has them, cut off at the edges.
        sized: Whether the square root of its size weights each group (Yuan and Lin), so that small and large groups
            are treated alike; else all count the same.
    """

    strength: float
    by: str | tuple[int, int] = "outputs"
    sized: bool = True

    def __post_init__(self) -> None:
        _require_strength(self.strength)
        if isinstance(self.by, str):
            if self.by not in SIDES:
                raise ValueError(
                    f"penalty: by must be 'outputs', 'inputs' or a block's height and width (got {self.by!r})"
                )
        else:
            object.__setattr__(self, "by", require_block("penalty", self.by))

    def _term(self, entry: Prunable, weight: Tensor) -> Tensor:
        groups, sizes, _ = self._groups(entry, weight)
        return self.strength * (torch.linalg.vector_norm(groups, dim=(1, 3)) * sizes).sum()

    def _shrunk(self, entry: Prunable, weight: Tensor, step: float | Tensor) -> Tensor:
        groups, sizes, shape = self._groups(entry, weight)
        norms = torch.linalg.vector_norm(groups, dim=(1, 3))
        # Where the norm is zero, so is what it scales.
        scales = (1 - step * self.strength * sizes / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)
        scaled = (groups * scales[:, None, :, None]).reshape(groups.shape[0] * groups.shape[1], -1)
        matrix = scaled[: shape[0], : shape[1]]
        return _from_matrix(entry, matrix, weight.shape) if isinstance(self.by, str) else matrix.reshape(weight.shape)

    def _groups(self, entry: Prunable, weight: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The weight as ``[rows of groups, height, columns of groups, width]``, padded with zeros; the groups' weights
        ``[rows of groups, columns of groups]``; and the size without padding.
        """
        matrix, channel = _as_matrix(entry, weight) if isinstance(self.by, str) else (weight.flatten(1), 1)
        rows, cols = matrix.shape
        if self.by == "outputs":
            height, width = 1, cols
        elif self.by == "inputs":
            height, width = rows // _conv_groups(entry), channel
        else:
            height, width = min(int(self.by[0]), rows), min(int(self.by[1]), cols)
        padded = F.pad(matrix, (0, -cols % width, 0, -rows % height))
        groups = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)
        if not self.sized:
            return groups, weight.new_ones(()), (rows, cols)
        heights, widths = (_sizes(size, side, weight) for size, side in ((rows, height), (cols, width)))
        return groups, (heights[:, None] * widths).sqrt(), (rows, cols)


def nonzero_masks(model: nn.Module, filter_fn: FilterFn | None = None) -> dict[str, Mask]:
    """Masks of the pooled weights that are not zero, for :func:`snipkern.sparsify_`.

    Args:
        model: Dense.
        filter_fn: As for :func:`snipkern.prune_`.

    Raises:
        ValueError: For a model that is pruned already, or whose pooled weights are all zero.
    """
    masks = {entry.fqn: Mask.from_dense(entry.parameter.detach() != 0) for entry in _pool(model, filter_fn)}
    if not any(mask.count() for mask in masks.values()):
        raise ValueError("nonzero_masks: some pooled weight must not be zero (got zeros alone)")
    return masks


def _pool(model: nn.Module, filter_fn: FilterFn | None) -> list[Prunable]:
    return dense_pool("penalty", model.module if isinstance(model, DistributedDataParallel) else model, filter_fn)


def _wide(weight: Tensor) -> Tensor:
    """In a dtype whose sums can be trusted."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _require_strength(strength: float) -> None:
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < math.inf:
        raise ValueError(f"penalty: strength must be a finite number of at least 0 (got {strength!r})")


def _rates(optimizer: torch.optim.Optimizer, pool: list[Prunable]) -> list[float | Tensor]:
    """The learning rate of each pooled weight."""
    rates: dict[int, Any] = {id(p): group.get("lr") for group in optimizer.param_groups for p in group["params"]}
    for entry in pool:
        if rates.get(id(entry.parameter)) is None:
            lacks = "learning rate" if id(entry.parameter) in rates else "parameter"
            raise ValueError(
                "penalty: optimizer must train every penalised weight with a learning rate; remove the penalty before"
                f" pruning (got one without a {lacks} for {entry.fqn!r})"
            )
    return [rates[id(entry.parameter)] for entry in pool]


def _conv_groups(entry: Prunable) -> int:
    return entry.module.groups if isinstance(entry.module, nn.modules.conv._ConvNd) and entry.name == "weight" else 1


def _is_transposed(entry: Prunable) -> bool:
    return isinstance(entry.module, nn.modules.conv._ConvTransposeNd) and entry.name == "weight"


def _as_matrix(entry: Prunable, weight: Tensor) -> tuple[Tensor, int]:
    """A weight as ``[outputs, inputs of a group times window]``, and the window's size."""
    if not _is_transposed(entry):
        return weight.flatten(1), weight.shape[2:].numel()
    # [inputs, outputs of a group, window], of each group.
    groups, window = _conv_groups(entry), weight.shape[2:].numel()
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], window).transpose(1, 2)
    return parts.reshape(groups * weight.shape[1], -1), window


def _from_matrix(entry: Prunable, matrix: Tensor, shape: torch.Size) -> Tensor:
    """What :func:`_as_matrix` was made of."""
    if not _is_transposed(entry):
        return matrix.reshape(shape)
    groups, window = _conv_groups(entry), shape[2:].numel()
    return matrix.reshape(groups, shape[1], shape[0] // groups, window).transpose(1, 2).reshape(shape)


def _sizes(size: int, side: int, like: Tensor) -> Tensor:
    """How long each piece of a side is."""
    sizes = like.new_full((-(-size // side),), side)
    sizes[-1] -= -size % side
    return sizes
