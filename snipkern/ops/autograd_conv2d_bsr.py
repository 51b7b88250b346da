"""Derivatives of the block convolutions: conv2d_bsr <-> input_grad <-> weight_grad, as their csr namesakes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Any, ...]
ops = torch.ops.snipkern


def conv_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    x, values, bias, topology, *ctx.weight, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, values, topology)


def conv_backward(ctx: Any, grad: Tensor) -> Gradients:
    x, values, topology = ctx.saved_tensors
    window = ctx.stride, ctx.padding, ctx.dilation
    grad_x = grad_values = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = ops.conv2d_bsr_input_grad(grad, values, topology, *ctx.weight, x.shape[2:], *window)
    if ctx.needs_input_grad[1]:
        grad_values = ops.conv2d_bsr_weight_grad(grad, x, topology, values.shape[0], *ctx.weight, *window)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_values, grad_bias, *[None] * 7


def input_grad_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    grad, values, topology, *ctx.weight, _, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(grad, values, topology)


def input_grad_backward(ctx: Any, grad_x: Tensor) -> Gradients:
    grad, values, topology = ctx.saved_tensors
    window = ctx.stride, ctx.padding, ctx.dilation
    grad_grad = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.conv2d_bsr(grad_x, values, None, topology, *ctx.weight, *window)
    if ctx.needs_input_grad[1]:
        grad_values = ops.conv2d_bsr_weight_grad(grad, grad_x, topology, values.shape[0], *ctx.weight, *window)
    return grad_grad, grad_values, *[None] * 8


def weight_grad_context(ctx: Any, inputs: Gradients, output: Tensor) -> None:
    grad, x, topology, _, *ctx.weight, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(grad, x, topology)


def weight_grad_backward(ctx: Any, grad_values: Tensor) -> Gradients:
    grad, x, topology = ctx.saved_tensors
    window = ctx.stride, ctx.padding, ctx.dilation
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.conv2d_bsr(x, grad_values, None, topology, *ctx.weight, *window)
    if ctx.needs_input_grad[1]:
        grad_x = ops.conv2d_bsr_input_grad(grad, grad_values, topology, *ctx.weight, x.shape[2:], *window)
    return grad_grad, grad_x, *[None] * 8


FORMULAS = {
    "conv2d_bsr": (conv_backward, conv_context),
    "conv2d_bsr_input_grad": (input_grad_backward, input_grad_context),
    "conv2d_bsr_weight_grad": (weight_grad_backward, weight_grad_context),
}
