"""One look of a walk: what an op tells of one parameter, or, in one go, of all parameters on one device.

Where a walk shows lists of tensors instead of tensors, they count as one parameter; see
:mod:`snipkern.ops.schema_saliency_many`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snipkern.ops.schema_saliency import INFINITY_KEY, MAGNITUDE
from snipkern.selection.sources import Counts, require_finite

__all__ = ["Part", "Shown", "Weighing", "histogram", "mask", "partition", "require_legal", "sample"]

ops = torch.ops.snipkern

#: A parameter's weight or gradient, or those of all parameters.
Shown: TypeAlias = "Tensor | Sequence[Tensor]"
#: The score, and the scales of rows and columns, which a list has not.
Weighing: TypeAlias = "tuple[int, Tensor | None, Tensor | None]"

# Listed keys that come with the counts, in one copy: 1 MB. It is seldom that there are more.
HEAD = 1 << 18


@dataclass(frozen=True)
class Part:
    """One parameter's pass: words of what is above the interval, and the candidates inside unless too many."""

    words: Tensor
    listed: Tensor  # the candidates' keys, on the device, ...
    keys: NDArray[np.int32]  # ... and on the CPU
    index: Tensor
    above: int
    inside: int


def sample(
    weight: Shown, gradient: Shown, starts: NDArray[np.int64], width: int, weighing: Weighing
) -> NDArray[np.int32]:
    """Keys ``[starts, width]``."""
    at = torch.from_numpy(starts)
    if isinstance(weight, Tensor):
        return ops.saliency_sample(weight, gradient, at.to(weight.device), width, *weighing).cpu().numpy()
    return ops.saliency_sample_many(weight, gradient, at, width, weighing[0]).cpu().numpy()


def partition(
    weight: Shown, gradient: Shown, low: int, high: int, room: int, weighing: Weighing
) -> tuple[Part, list[int]]:
    """The part, and the largest bits of a score's absolute value of each tensor."""
    if not isinstance(weight, Tensor):
        return _partition_many(weight, gradient, low, high, room, weighing[0])
    words, keys, index, counts = ops.saliency_partition(weight, gradient, low, high, room, *weighing)
    above, inside, largest = counts.tolist()
    return Part(words, keys, keys.cpu().numpy(), index, above, inside), [largest]


def _partition_many(
    weights: Sequence[Tensor], gradients: Shown, low: int, high: int, room: int, score: int
) -> tuple[Part, list[int]]:
    """Waits for the device once, unless more keys are listed than come with the counts."""
    words, keys, index, counts = ops.saliency_partition_many(weights, gradients, low, high, room, score)
    together = torch.cat([counts.view(-1).view(torch.int32), keys[:HEAD]]).cpu().numpy()
    size = 2 * counts.numel()
    found = together[:size].view(np.int64).reshape(-1, 3)
    above, inside = found[:, :2].sum(0).tolist()
    listed = inside if inside <= room else 0
    head = together[size : size + listed]
    known = head if listed <= HEAD else np.concatenate([head, keys[HEAD:listed].cpu().numpy()])
    return Part(words, keys[:listed], known, index[:listed], above, inside), found[:, 2].tolist()


def require_legal(names: Sequence[str], weight: Shown, gradient: Shown, largest: Sequence[int], score: int) -> None:
    """An infinite score must be an overflow of finite numbers, and none may be NaN.

    Raises:
        ValueError: It names the parameter.
    """
    weights, gradients = ([shown] if isinstance(shown, Tensor) else shown for shown in (weight, gradient))
    for name, w, g, bits in zip(names, weights, gradients, largest, strict=True):
        if bits >= INFINITY_KEY:
            require_finite(name, w, None if score == MAGNITUDE else g)
        if bits > INFINITY_KEY:
            raise ValueError(f"select: scales of {name!r} must not make its weights overflow")


def histogram(weight: Shown, gradient: Shown, low: int, high: int, shift: int, weighing: Weighing) -> Counts:
    if isinstance(weight, Tensor):
        return ops.saliency_histogram(weight, gradient, low, high, shift, *weighing).cpu().numpy()
    return ops.saliency_histogram_many(weight, gradient, low, high, shift, weighing[0]).cpu().numpy()


def mask(weight: Shown, gradient: Shown, threshold: int, ties: int, weighing: Weighing) -> Tensor:
    """Words."""
    if isinstance(weight, Tensor):
        return ops.saliency_mask(weight, gradient, threshold, ties, *weighing)
    return ops.saliency_mask_many(weight, gradient, threshold, ties, weighing[0])
