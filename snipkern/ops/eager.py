"""Calling ops from eager code without the detours of a dispatcher that has to serve every transform.

``torch.library.register_autograd`` runs its formulas through two more trips into Python and back for every op, which
costs a small layer more than its arithmetic. Where nothing needs them (no compiler, no functorch transform, no
forward-mode tangent), the functions here run the same formulas as an ordinary ``torch.autograd.Function`` over the
kernels, and the kernel alone where nothing is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snipkern.ops.autograd import FORMULAS, Gradients
from snipkern.ops.schema import NAMESPACE

__all__ = ["differentiable"]

# Private to torch, but what its own custom ops are made with; no_grad is the same to us, and slower.
_kernels_only: Callable[[], Any] = getattr(torch._C, "_AutoDispatchBelowAutograd", torch.no_grad)


def _plain() -> bool:
    """Whether autograd, and nothing else, may want to know of a call."""
    return not (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    )


def differentiable(name: str) -> Callable[..., Tensor]:
    """``torch.ops.snipkern.<name>``, with the same derivatives of any order, at a fraction of the cost per call.

    Args:
        name: An op with a line in ``autograd.FORMULAS``.
    """
    backward_formula, context = FORMULAS[name]
    packet = getattr(getattr(torch.ops, NAMESPACE), name)

    def forward(ctx: Any, *args: Any) -> Tensor:
        with _kernels_only():
            output = packet.default(*args)
        context(ctx, args, output)
        return output

    def backward(ctx: Any, *grads: Any) -> Gradients:
        if torch.is_grad_enabled():  # create_graph: the formula's ops are differentiated in turn
            return backward_formula(ctx, *grads)
        with _kernels_only():
            return backward_formula(ctx, *grads)

    # Made by hand for the sake of its name, which graphs and profiles show: "spmm_csrBackward".
    base: Any = torch.autograd.Function
    function = type(base)(name, (base,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})
    # Function.apply in Python only looks for what _plain() has excluded; this is the C++ beneath it.
    apply: Callable[..., Tensor] = super(base, function).apply  # pyright: ignore[reportAttributeAccessIssue]

    def call(*args: Any) -> Tensor:
        if not _plain():
            return packet(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return apply(*args)
        with _kernels_only():
            return packet.default(*args)

    call.__name__ = call.__qualname__ = name
    return call
