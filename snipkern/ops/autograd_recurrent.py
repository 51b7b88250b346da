"""Derivatives of recurrent layers.

The first ones are an op of their own. Derivatives of that one compute the layer again, step by step, from the ops of
sparse products, and leave the rest to autograd: right to any order, and as slow as that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snipkern.ops.checks import require
from snipkern.ops.reference_recurrent import recurrence
from snipkern.ops.schema_recurrent import GATES, SAVED

Gradients = tuple[Any, ...]
ops = torch.ops.snipkern

# Places of what is differentiated among the tensors that both ops share (ARGUMENTS in schema_recurrent.py).
FLOATS = (0, 2, 3, 4, 6, 8, 10, 11)


def context(ctx: Any, inputs: Gradients, output: Any) -> None:
    *tensors, ctx.mode, ctx.reverse, ctx.save = inputs
    results, _, _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, results, saved)


def backward(ctx: Any, grad: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None, _: Any) -> Gradients:
    *tensors, output, saved = ctx.saved_tensors
    require(ctx.save or not SAVED[ctx.mode], "recurrent_csr", "derivatives need what save=True keeps", "save=False")
    h0, c0 = tensors[2:4]
    grad = torch.zeros_like(output) if grad is None else grad
    grad_h_n = torch.zeros_like(h0) if grad_h_n is None else grad_h_n
    if c0 is not None:
        grad_c_n = torch.zeros_like(c0) if grad_c_n is None else grad_c_n
    with_x = ctx.needs_input_grad[0]
    found = ops.recurrent_csr_backward(
        grad, grad_h_n, None if c0 is None else grad_c_n, *tensors, output, saved, ctx.mode, ctx.reverse, with_x
    )
    return placed(found, [ctx.needs_input_grad[at] for at in FLOATS], len(tensors) + 3)


def placed(found: Gradients, wanted: list[bool], count: int) -> Gradients:
    """The gradients of the floating tensors at their places among `count` arguments."""
    grads: list[Any] = [None] * count
    for at, gradient, needed in zip(FLOATS, found, wanted, strict=True):
        grads[at] = gradient if needed else None
    return tuple(grads)


def backward_context(ctx: Any, inputs: Gradients, output: Any) -> None:
    *tensors, ctx.mode, ctx.reverse, ctx.with_x = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def backward_backward(ctx: Any, *of_grads: Tensor | None) -> Gradients:
    given, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:15]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        given = [differentiated(tensor) for tensor in given]
        tensors = [differentiated(tensor) if at in FLOATS else tensor for at, tensor in enumerate(tensors)]
        results = layer(tensors, ctx.mode, ctx.reverse)
        pairs = [
            (result, grad)
            for result, grad in zip(results, given, strict=True)
            if result is not None and grad is not None
        ]
        floats = [tensors[at] for at in FLOATS]
        there = [tensor for tensor in floats if tensor is not None]
        ends, seeds = [result for result, _ in pairs], [grad for _, grad in pairs]
        first = iter(torch.autograd.grad(ends, there, seeds, create_graph=True, allow_unused=True))
        gradients = [None if tensor is None else next(first) for tensor in floats]
        asked = [
            (gradient, of_grad)
            for gradient, of_grad in zip(gradients, of_grads, strict=True)
            if gradient is not None and of_grad is not None and gradient.requires_grad
        ]
        sources = [tensor for tensor in (*given, *floats) if tensor is not None]
        second: Any = [None] * len(sources)
        if asked:
            second = torch.autograd.grad(
                [gradient for gradient, _ in asked],
                sources,
                [of_grad for _, of_grad in asked],
                create_graph=again,
                allow_unused=True,
            )
    left = iter(second)
    of_given = [None if tensor is None else next(left) for tensor in given]
    of_floats = [None if tensor is None else next(left) for tensor in floats]
    return *of_given, *placed(tuple(of_floats), [True] * len(FLOATS), len(tensors)), None, None, None, None, None


def differentiated(tensor: Tensor | None) -> Tensor | None:
    """What can be differentiated in the tensor's place.

    Always another tensor than the one given: that may have been computed from others that are given here (a gradient of
    the output comes from the output, and so from all of them), and what one of them counts for is not to go through
    it a second time.
    """
    if tensor is None:
        return None
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def layer(tensors: list[Any], mode: int, reverse: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """What ``recurrent_csr`` computes, from ops whose derivatives are ops."""
    x, batch_sizes, h0, c0, values_ih, ih, values_hh, hh, values_hr, hr, bias_ih, bias_hh = tensors
    outputs, hidden = h0.shape[1], (h0 if c0 is None else c0).shape[1]
    rows = GATES[mode] * hidden

    def of_state(h: Tensor) -> Tensor:
        return ops.spmm_csr(h, values_hh, bias_hh, hh, rows, outputs, False)

    def project(h: Tensor) -> Tensor:
        return ops.spmm_csr(h, values_hr, None, hr, outputs, hidden, False)

    gates = ops.spmm_csr(x, values_ih, bias_ih, ih, rows, x.shape[1], False)
    projection = None if values_hr is None else project
    return recurrence(mode, gates, batch_sizes.tolist(), (h0, c0), of_state, projection, reverse)


FORMULAS = {
    "recurrent_csr": (backward, context),
    "recurrent_csr_backward": (backward_backward, backward_context),
}
