"""Derivatives: every op's backward is made of the same ops, so that any order of differentiation works.

spmm <-> spmm on the other orientation, sddmm for the values; conv2d <-> input_grad <-> weight_grad likewise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from snipkern.ops import autograd_bsr, autograd_conv2d_bsr, autograd_recurrent
from snipkern.ops.checks import require
from snipkern.ops.schema import NAMESPACE

Gradients = tuple[Any, ...]
ops = torch.ops.snipkern


def spmm_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    x, values, bias, topology, ctx.rows, ctx.cols, ctx.transpose = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, values, topology)


def spmm_backward(ctx: Any, grad: Tensor) -> Gradients:
    x, values, topology = ctx.saved_tensors
    size = (ctx.rows, ctx.cols)
    grad_x = grad_values = grad_bias = None
    with_bias = ctx.has_bias and ctx.needs_input_grad[2]
    if ctx.needs_input_grad[0] and ctx.needs_input_grad[1] and not ctx.transpose:
        grad_x, grad_values, grad_bias = ops.spmm_csr_backward(grad, x, values, topology, *size, with_bias)
        return grad_x, grad_values, grad_bias if with_bias else None, None, None, None, None
    if ctx.needs_input_grad[0]:
        grad_x = ops.spmm_csr(grad, values, None, topology, *size, not ctx.transpose)
    if ctx.needs_input_grad[1]:
        left, right = (x, grad) if ctx.transpose else (grad, x)
        grad_values = ops.sddmm_csr(left, right, topology, values.shape[0], *size)
    if with_bias:
        grad_bias = grad.sum(0)
    return grad_x, grad_values, grad_bias, None, None, None, None


def spmm_backward_context(ctx: Any, inputs: Gradients, output: Any) -> None:
    grad, x, values, topology, ctx.rows, ctx.cols, ctx.with_bias = inputs
    ctx.save_for_backward(grad, x, values, topology)
    ctx.set_materialize_grads(False)


def spmm_backward_backward(
    ctx: Any, of_x: Tensor | None, of_values: Tensor | None, of_bias: Tensor | None
) -> Gradients:
    grad, x, values, topology = ctx.saved_tensors
    size = (ctx.rows, ctx.cols)
    grad_grad = grad_x = grad_values = None
    if ctx.needs_input_grad[0]:
        terms: list[Tensor] = []
        if of_x is not None:
            terms.append(ops.spmm_csr(of_x, values, None, topology, *size, False))
        if of_values is not None:
            terms.append(ops.spmm_csr(x, of_values, None, topology, *size, False))
        if of_bias is not None and ctx.with_bias:
            terms.append(of_bias.expand_as(grad))
        grad_grad = functools.reduce(torch.add, terms) if terms else None
    if ctx.needs_input_grad[1] and of_values is not None:
        grad_x = ops.spmm_csr(grad, of_values, None, topology, *size, True)
    if ctx.needs_input_grad[2] and of_x is not None:
        grad_values = ops.sddmm_csr(grad, of_x, topology, values.shape[0], *size)
    return grad_grad, grad_x, grad_values, None, None, None, None


def sddmm_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    a, b, topology, _, ctx.rows, ctx.cols = inputs
    ctx.save_for_backward(a, b, topology)


def sddmm_backward(ctx: Any, grad: Tensor) -> Gradients:
    a, b, topology = ctx.saved_tensors
    size = (ctx.rows, ctx.cols)
    grad_a = grad_b = None
    if ctx.needs_input_grad[0]:
        grad_a = ops.spmm_csr(b, grad, None, topology, *size, False)
    if ctx.needs_input_grad[1]:
        grad_b = ops.spmm_csr(a, grad, None, topology, *size, True)
    return grad_a, grad_b, None, None, None, None


def conv_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    x, values, bias, topology, ctx.weight_shape, *ctx.window = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, values, topology)


def conv_backward(ctx: Any, grad: Tensor) -> Gradients:
    x, values, topology = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = ops.conv2d_csr_input_grad(grad, values, topology, ctx.weight_shape, x.shape[2:], *ctx.window)
    if ctx.needs_input_grad[1]:
        grad_values = ops.conv2d_csr_weight_grad(grad, x, topology, values.shape[0], ctx.weight_shape, *ctx.window)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_values, grad_bias, None, None, None, None, None


def input_grad_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    grad, values, topology, ctx.weight_shape, _, *ctx.window = inputs
    ctx.save_for_backward(grad, values, topology)


def input_grad_backward(ctx: Any, grad_x: Tensor) -> Gradients:
    grad, values, topology = ctx.saved_tensors
    grad_grad = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.conv2d_csr(grad_x, values, None, topology, ctx.weight_shape, *ctx.window)
    if ctx.needs_input_grad[1]:
        grad_values = ops.conv2d_csr_weight_grad(grad, grad_x, topology, values.shape[0], ctx.weight_shape, *ctx.window)
    return grad_grad, grad_values, None, None, None, None, None, None


def weight_grad_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    grad, x, topology, _, ctx.weight_shape, *ctx.window = inputs
    ctx.save_for_backward(grad, x, topology)


def weight_grad_backward(ctx: Any, grad_values: Tensor) -> Gradients:
    grad, x, topology = ctx.saved_tensors
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.conv2d_csr(x, grad_values, None, topology, ctx.weight_shape, *ctx.window)
    if ctx.needs_input_grad[1]:
        grad_x = ops.conv2d_csr_input_grad(grad, grad_values, topology, ctx.weight_shape, x.shape[2:], *ctx.window)
    return grad_grad, grad_x, None, None, None, None, None, None


def zero_pruned_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    _, ctx.words = inputs


def zero_pruned_backward(ctx: Any, grad: Tensor) -> Gradients:
    return ops.zero_pruned(grad.contiguous(), ctx.words), None


FORMULAS = {
    "spmm_csr": (spmm_backward, spmm_context),
    "spmm_csr_backward": (spmm_backward_backward, spmm_backward_context),
    "sddmm_csr": (sddmm_backward, sddmm_context),
    **autograd_bsr.FORMULAS,
    "conv2d_csr": (conv_backward, conv_context),
    "conv2d_csr_input_grad": (input_grad_backward, input_grad_context),
    "conv2d_csr_weight_grad": (weight_grad_backward, weight_grad_context),
    **autograd_conv2d_bsr.FORMULAS,
    **autograd_recurrent.FORMULAS,
    "zero_pruned": (zero_pruned_backward, zero_pruned_context),
}


class ReverseModeOnly(torch.library.Library):
    """Registers derivatives behind a check: torch would drop forward-mode tangents without a word, as if zero."""

    def impl(self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        def checked(keyset: Any, *args: Any) -> Any:
            # Reading the level costs a tenth of unpacking one tensor, and is all that most calls need.
            if forward_ad._current_level >= 0:
                refuse_tangents(op_name, args)
            return fn(keyset, *args)

        super().impl(op_name, checked, dispatch_key, **options)


def refuse_tangents(name: str, args: Gradients) -> None:
    for arg in args:
        tangent = forward_ad.unpack_dual(arg).tangent if isinstance(arg, Tensor) else None
        require(tangent is None, name, "only reverse-mode differentiation is supported", "a forward-mode tangent")


library = ReverseModeOnly(NAMESPACE, "FRAGMENT")


def register() -> None:
    for name, (backward, setup_context) in FORMULAS.items():
        qualified = f"{NAMESPACE}::{name}"
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=library)
