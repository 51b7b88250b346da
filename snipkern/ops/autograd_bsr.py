"""Derivatives of the products with whole blocks, made of the same products: see autograd.py."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Any, ...]
ops = torch.ops.snipkern


def spmm_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    x, values, bias, topology, *ctx.size, ctx.transpose = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, values, topology)


def spmm_backward(ctx: Any, grad: Tensor) -> Gradients:
    x, values, topology = ctx.saved_tensors
    grad_x = grad_values = grad_bias = None
    with_bias = ctx.has_bias and ctx.needs_input_grad[2]
    if ctx.needs_input_grad[0] and ctx.needs_input_grad[1] and not ctx.transpose:
        grad_x, grad_values, grad_bias = ops.spmm_bsr_backward(grad, x, values, topology, *ctx.size, with_bias)
        return grad_x, grad_values, grad_bias if with_bias else None, *[None] * 6
    if ctx.needs_input_grad[0]:
        grad_x = ops.spmm_bsr(grad, values, None, topology, *ctx.size, not ctx.transpose)
    if ctx.needs_input_grad[1]:
        left, right = (x, grad) if ctx.transpose else (grad, x)
        grad_values = ops.sddmm_bsr(left, right, topology, values.shape[0], *ctx.size)
    if with_bias:
        grad_bias = grad.sum(0)
    return grad_x, grad_values, grad_bias, *[None] * 6


def spmm_backward_context(ctx: Any, inputs: Gradients, output: Any) -> None:
    grad, x, values, topology, *ctx.size, ctx.with_bias = inputs
    ctx.save_for_backward(grad, x, values, topology)
    ctx.set_materialize_grads(False)


def spmm_backward_backward(
    ctx: Any, of_x: Tensor | None, of_values: Tensor | None, of_bias: Tensor | None
) -> Gradients:
    grad, x, values, topology = ctx.saved_tensors
    grad_grad = grad_x = grad_values = None
    if ctx.needs_input_grad[0]:
        terms: list[Tensor] = []
        if of_x is not None:
            terms.append(ops.spmm_bsr(of_x, values, None, topology, *ctx.size, False))
        if of_values is not None:
            terms.append(ops.spmm_bsr(x, of_values, None, topology, *ctx.size, False))
        if of_bias is not None and ctx.with_bias:
            terms.append(of_bias.expand_as(grad))
        grad_grad = functools.reduce(torch.add, terms) if terms else None
    if ctx.needs_input_grad[1] and of_values is not None:
        grad_x = ops.spmm_bsr(grad, of_values, None, topology, *ctx.size, True)
    if ctx.needs_input_grad[2] and of_x is not None:
        grad_values = ops.sddmm_bsr(grad, of_x, topology, values.shape[0], *ctx.size)
    return grad_grad, grad_x, grad_values, *[None] * 6


def sddmm_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    a, b, topology, _, *ctx.size = inputs
    ctx.save_for_backward(a, b, topology)


def sddmm_backward(ctx: Any, grad: Tensor) -> Gradients:
    a, b, topology = ctx.saved_tensors
    grad_a = grad_b = None
    if ctx.needs_input_grad[0]:
        grad_a = ops.spmm_bsr(b, grad, None, topology, *ctx.size, False)
    if ctx.needs_input_grad[1]:
        grad_b = ops.spmm_bsr(a, grad, None, topology, *ctx.size, True)
    return grad_a, grad_b, *[None] * 6


FORMULAS = {
    "spmm_bsr": (spmm_backward, spmm_context),
    "spmm_bsr_backward": (spmm_backward_backward, spmm_backward_context),
    "sddmm_bsr": (sddmm_backward, sddmm_context),
}
