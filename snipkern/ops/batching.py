"""Batching: what ``torch.vmap`` makes of the ops, and with it batched gradients (``is_grads_batched``).

Where nothing but the samples of an op is mapped over, all of them go into one call. What is mapped over in another
place (values, above all) differs from sample to sample: then every one is a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snipkern.ops.autograd import FORMULAS
from snipkern.ops.schema import NAMESPACE

__all__ = ["register"]

#: Places of the arguments whose first dimension is samples, which do not see each other; all of them together.
SAMPLES = {
    "spmm_csr": (0,),
    "spmm_bsr": (0,),
    "conv2d_csr": (0,),
    "conv2d_csr_input_grad": (0,),
    "conv2d_bsr": (0,),
    "conv2d_bsr_input_grad": (0,),
    "recurrent_csr": (0, 2, 3),
}
#: Place of the numbers of samples, which grow with them.
SIZES = {"recurrent_csr": 1}
#: Results of samples; what others there are is for the op's derivative alone, which is one of the call as it is made.
RESULTS = {"recurrent_csr": 3}


def together(name: str, count: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """One call for all: each sample is followed by those in its place in the other ones of the mapping.

    That order keeps packed sequences what they are: the samples of step 0, of step 1, ...
    """

    def folded(tensor: Tensor, dim: int | None) -> Tensor:
        tensor = tensor.unsqueeze(1) if dim is None else tensor.movedim(dim, 1)
        return tensor.expand(-1, count, *tensor.shape[2:]).flatten(0, 1)

    given = list(args)
    for place in SAMPLES[name]:
        if given[place] is not None:
            given[place] = folded(given[place], in_dims[place])
    if name in SIZES:
        given[SIZES[name]] = given[SIZES[name]] * count
    found = _op(name)(*given)
    single = isinstance(found, Tensor)
    results: list[Tensor] = [found] if single else list(found)
    dims: list[int | None] = [None] * len(results)
    for i, result in enumerate(results[: RESULTS.get(name)]):
        if result.dim() > 1:  # not what there is none of
            results[i], dims[i] = result.unflatten(0, (result.shape[0] // count, count)), 1
    return (results[0], dims[0]) if single else (tuple(results), tuple(dims))


def one_by_one(name: str, count: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """A call for each."""
    found: list[Any] = []
    for i in range(count):
        given = (
            arg.select(dim, i).contiguous() if isinstance(dim, int) else arg
            for arg, dim in zip(args, in_dims, strict=True)
        )
        found.append(_op(name)(*given))
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])


def _op(name: str) -> Callable[..., Any]:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def rule(name: str) -> Callable[..., tuple[Any, Any]]:
    """The batching rule of an op, as ``torch.library.register_vmap`` takes it."""
    samples = SAMPLES.get(name, ())

    def batched(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        mapped = {place for place, dim in enumerate(in_dims) if isinstance(dim, int)}
        call = together if mapped.issubset(samples) else one_by_one
        return call(name, info.batch_size, in_dims, args)

    return batched


def register() -> None:
    for name in FORMULAS:
        torch.library.register_vmap(f"{NAMESPACE}::{name}", rule(name))
