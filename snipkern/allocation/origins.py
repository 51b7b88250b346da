"""Where the channels of a tensor come from, and those of what simple functions make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.allocation.channels import Channels, Outside, Unknown, repeated, united

__all__ = ["Given", "Origin", "reduced", "reshaped", "tensors", "united_of"]


@dataclass(frozen=True)
class Origin:
    """Where a tensor's channels come from, and which of its dimensions they are."""

    channels: Channels
    dim: int


# A tensor given to a function, its origin if it has one, and its shape.
Given = tuple[Tensor, Origin | None, tuple[int, ...]]


def tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors(value)
    return found


def united_of(given: Sequence[Given], out: Tensor) -> Origin | None:
    """Of an element-wise function of several tensors: alive where any is. Constants and parameters carry nothing."""
    origins = [(origin, shape) for _, origin, shape in given if origin is not None]
    followed = [(origin, shape) for origin, shape in origins if not isinstance(origin.channels, Unknown)]
    if any(o is None and t.numel() > 1 and not isinstance(t, nn.Parameter) for t, o, _ in given):
        return Origin(Outside(0), 0)
    from_right = {origin.dim - len(shape) for origin, shape in followed}
    if len(followed) < len(origins) or len(from_right) != 1:
        return None
    dim = from_right.pop() + out.dim()
    if any(shape[origin.dim] != out.shape[dim] for origin, shape in followed):
        return None
    return Origin(united([origin.channels for origin, _ in followed]), dim)


def reshaped(origin: Origin, shape: tuple[int, ...], new: tuple[int, ...]) -> Origin | None:
    """Where everything before the channels stays, and they stay or take in what comes after them."""
    channels, before = shape[origin.dim], torch.Size(shape[: origin.dim]).numel()
    after = torch.Size(shape[origin.dim + 1 :]).numel()
    for dim in range(len(new)):
        if torch.Size(new[:dim]).numel() == before and new[dim] >= channels and new[dim] % channels == 0:
            times = new[dim] // channels
            if after % times == 0:
                return Origin(repeated(origin.channels, times), dim)
    return None


def reduced(origin: Origin, dims: int, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> Origin | None:
    """A mean or the like over other dimensions than the channels."""
    over = args[1] if len(args) > 1 else kwargs.get("dim")
    if over is None:
        return None
    gone = {d % dims for d in ((over,) if isinstance(over, int) else over)}
    if origin.dim in gone:
        return None
    shift = 0 if out.dim() == dims else sum(d < origin.dim for d in gone)
    return Origin(origin.channels, origin.dim - shift)
