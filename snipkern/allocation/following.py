"""Following: where the channels of a tensor come from after a function that multiplies by no weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.allocation.channels import Channels, Outside, Unknown, concatenated, repeated, united
from snipkern.allocation.functions import KEEPING, PACKING, REDUCING, RESHAPING, UNITING

__all__ = ["Given", "Origin", "follow", "passed_on", "tensors"]


@dataclass(frozen=True)
class Origin:
    """Where a tensor's channels come from, and which of its dimensions they are."""

    channels: Channels
    dim: int


# A tensor given to a function, its origin if it has one, and its shape.
Given = tuple[Tensor, Origin | None, tuple[int, ...]]


def tensors(values: Sequence[Any]) -> list[Tensor]:
    """All tensors in nested sequences, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors(value)
    return found


def passed_on(tensor: Tensor, known: Iterable[Tensor]) -> Tensor | None:
    """What ``fully_shard`` hands to a module as this tensor, by an identity function of its own; else None."""
    function = tensor.grad_fn
    if function is None or "RegisterPostBackwardFunction" not in function.name():
        return None
    before = [made for made, _ in function.next_functions]
    for other in known:
        same = other.data_ptr() == tensor.data_ptr() and other.shape == tensor.shape
        if same and any(other.grad_fn is made for made in before):
            return other
    return None


def follow(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Given], results: list[Tensor]
) -> Origin | None:
    """Where the (first) result of a function of known tensors comes from; None: nobody knows."""
    out = results[0]
    if len(results) != 1 and name not in PACKING:
        return None
    if name in UNITING:
        return _united(given, out)
    if name == "cat" or name == "concat":
        return _joined(args, kwargs, given, out)
    _, origin, shape = given[0]
    if sum(other is not None for _, other, _ in given) > 1:
        return None  # such as a power with a computed exponent
    if origin is None or isinstance(origin.channels, Unknown):
        return None
    if name in KEEPING:
        same = out.dim() == len(shape) and out.shape[origin.dim] == shape[origin.dim]
        return origin if same else None
    if name in RESHAPING:
        return _reshaped(origin, shape, tuple(out.shape))
    if name in PACKING:  # examples and steps become one dimension, or two again
        last = origin.dim == len(shape) - 1 and out.shape[-1] == shape[-1]
        return Origin(origin.channels, out.dim() - 1) if last else None
    if name == "permute":
        dims = args[1:] or tuple(kwargs.values())
        dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
        return Origin(origin.channels, [d % len(shape) for d in dims].index(origin.dim))
    if name in ("transpose", "swapaxes", "transpose_"):
        a, b = (d % len(shape) for d in (*args[1:], *kwargs.values()))
        return Origin(origin.channels, {a: b, b: a}.get(origin.dim, origin.dim))
    if name in REDUCING:
        return _reduced(origin, len(shape), args, kwargs, out)
    if name == "index_select":
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        return origin if dim % len(shape) != origin.dim else None
    if name == "__getitem__":
        return _indexed(origin, shape, args[1], out)
    return None


def _joined(args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Given], out: Tensor) -> Origin | None:
    parts = args[0] if args else kwargs["tensors"]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    known = {id(tensor): origin for tensor, origin, _ in given}
    origins = [known[id(part)] for part in parts]
    if any(origin is not None and origin.dim != dim for origin in origins):
        return None
    return Origin(
        concatenated(
            [Outside(part.shape[dim]) if o is None else o.channels for part, o in zip(parts, origins, strict=True)]
        ),
        dim,
    )


def _united(given: Sequence[Given], out: Tensor) -> Origin | None:
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


def _reshaped(origin: Origin, shape: tuple[int, ...], new: tuple[int, ...]) -> Origin | None:
    """Where everything before the channels stays, and they stay or take in what comes after them."""
    channels, before = shape[origin.dim], torch.Size(shape[: origin.dim]).numel()
    after = torch.Size(shape[origin.dim + 1 :]).numel()
    for dim in range(len(new)):
        if torch.Size(new[:dim]).numel() == before and new[dim] >= channels and new[dim] % channels == 0:
            times = new[dim] // channels
            if after % times == 0:
                return Origin(repeated(origin.channels, times), dim)
    return None


def _reduced(origin: Origin, dims: int, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> Origin | None:
    """A mean or the like over other dimensions than the channels."""
    over = args[1] if len(args) > 1 else kwargs.get("dim")
    if over is None:
        return None
    gone = {d % dims for d in ((over,) if isinstance(over, int) else over)}
    if origin.dim in gone:
        return None
    shift = 0 if out.dim() == dims else sum(d < origin.dim for d in gone)
    return Origin(origin.channels, origin.dim - shift)


def _indexed(origin: Origin, shape: tuple[int, ...], index: Any, out: Tensor) -> Origin | None:
    """A part of a tensor with all of its channels, such as the last step: by numbers and slices behind the channels, by
    anything before them."""
    asked = list(index) if isinstance(index, tuple) else [index]
    taken = sum(entry.dim() if _is_flags(entry) else entry is not None and entry is not ... for entry in asked)
    if not any(entry is ... for entry in asked):
        asked.append(...)
    place, behind = 0, 0  # of the tensor's dimensions; the result's dimensions behind the channels
    for entry in asked:
        width = 1
        if entry is ...:
            width = len(shape) - taken
        elif entry is None:
            width = 0
        elif _is_flags(entry):
            width = entry.dim()
        if place <= origin.dim < place + width and entry is not ... and entry != slice(None):
            return None
        if entry is ...:
            behind += max(0, place + width - max(place, origin.dim + 1))
        elif place > origin.dim:
            if not (entry is None or isinstance(entry, (int, slice))):
                return None  # its dimensions may come to lie anywhere
            behind += 0 if isinstance(entry, int) else 1
        place += width
    dim = out.dim() - 1 - behind
    return Origin(origin.channels, dim) if dim >= 0 and out.shape[dim] == shape[origin.dim] else None


def _is_flags(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.dtype == torch.bool
