"""Hessian-vector products by two backward passes, and the kernels of torch that can be differentiated twice."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snipkern.scoring.backward import recomputes

__all__ = ["differentiable", "hessian_products", "require_no_recomputing", "signs"]


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Generator[None]:
    """Takes kernels that can be differentiated twice and mapped over.

    Attention goes without flash kernels and without the fused inference path, recurrent layers without oneDNN and
    cuDNN, whose backward passes have no derivative or want training mode. All settings are put back.
    """
    libraries: list[Any] = []
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        # Not their flags(): it sets the permission for TF32 as well, which torch refuses where newer settings say it.
        libraries = [cast(Any, torch.backends.mkldnn), cast(Any, torch.backends.cudnn)]
    before = [library.enabled for library in libraries]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        for library in libraries:
            library.enabled = False
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


def hessian_products(
    op: str, loss: Tensor, parameters: Sequence[Tensor], vectors: Iterable[Sequence[Tensor]]
) -> Iterator[tuple[Sequence[Tensor], list[Tensor]]]:
    """Each vector ``v`` and ``H v``, with the Hessian ``H`` of a loss with respect to parameters.

    Args:
        op: Who asks, for messages.
        loss: Scalar, with its graph, which is used up.
        parameters: Those of ``H``; a parameter that the loss does not reach has zero rows and columns.
        vectors: Each of one tensor for each parameter, of its shape and dtype.

    Raises:
        ValueError: If the loss lies on reentrant checkpoints, or on an operation without a second derivative.

    Cost: one forward and backward pass with a graph of the backward pass (about three times a forward pass's memory),
    then one backward pass through both for each vector.

    Source: Pearlmutter: Fast exact multiplication by the Hessian, 1994.
    """
    require_no_recomputing(op, loss)
    with twice(op):
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    # What a loss does not reach, or is linear in, has no curvature.
    curved = [
        (i, part)
        for i, part in enumerate(cast(Sequence["Tensor | None"], gradients))
        if part is not None and part.requires_grad
    ]
    _require_twice(op, [part for _, part in curved])
    for vector in vectors:
        found: Sequence[Tensor | None] = [None] * len(parameters)
        if curved:
            outputs, factors = [part for _, part in curved], [vector[i] for i, _ in curved]
            with twice(op):
                found = torch.autograd.grad(outputs, parameters, factors, retain_graph=True, allow_unused=True)
        yield (
            vector,
            [
                torch.zeros_like(parameter) if product is None else product.detach()
                for parameter, product in zip(parameters, found, strict=True)
            ],
        )


def require_no_recomputing(op: str, loss: Tensor) -> None:
    """That no reentrant checkpoints lie under a loss: torch gives no gradients of chosen parameters through them.

    Raises:
        ValueError: If they do.
    """
    if recomputes(loss):
        raise ValueError(
            f"{op}: curvature can't be seen through reentrant checkpoints; checkpoint with use_reentrant=False (got a"
            " loss that lies on some)"
        )


def _require_twice(op: str, gradients: Sequence[Tensor]) -> None:
    """That no function marked as differentiable once lies under gradients: torch would leave it out without a word."""
    waiting: list[Any] = [gradient.grad_fn for gradient in gradients]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if "Error" in node.name():
            raise ValueError(f"{op}: the loss must be twice differentiable (got a function that is so once)")
        waiting += [following for following, _ in node.next_functions]


@contextlib.contextmanager
def twice(op: str) -> Generator[None]:
    """Says what is missing where torch has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if "not implemented" in str(error):
            raise ValueError(
                f"{op}: the loss must be twice differentiable (got {type(error).__name__}: {error})"
            ) from error
        raise


def signs(like: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A Rademacher vector: +1 or -1 with equal chances, the same on every device."""
    return [
        torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8).to(tensor).mul_(2).sub_(1)
        for tensor in like
    ]
