"""Requirements that several ops share; each raises ``OpError("op: requirement (got ...)")``.

``csrc/bindings/checks.h`` says the same words for the compiled kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snipkern.topology.csr import index_words

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class OpError(ValueError, RuntimeError):
    """A bad argument of an op.

    Compiled kernels can only raise RuntimeError through torch, so ``except RuntimeError`` catches both.
    """


def require(condition: bool, name: str, requirement: str, got: object) -> None:
    if not condition:
        raise OpError(f"{name}: {requirement} (got {got})")


def require_like(name: str, what: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """Same dtype and device as another argument."""
    require(
        tensor.dtype == like.dtype and tensor.device == like.device,
        name,
        f"{what} must have {like_name}'s dtype and device, {like.dtype} on {like.device}",
        f"{tensor.dtype} on {tensor.device}",
    )


def require_float(name: str, what: str, tensor: Tensor) -> None:
    require(
        tensor.dtype in FLOATS,
        name,
        f"{what} must be float32, float64, float16 or bfloat16",
        tensor.dtype,
    )


def require_topology(name: str, topology: Tensor, nnz: int, rows: int, cols: int) -> None:
    expected = rows + cols + 2 + index_words(nnz, cols) + index_words(nnz, rows) + nnz
    require(
        topology.dtype == torch.int32
        and topology.numel() == expected
        and topology.dim() == 1
        and topology.is_contiguous(),
        name,
        f"topology must be the int32 index of a {rows} x {cols} mask with {nnz} kept weights, {expected} elements",
        f"{list(topology.shape)} {topology.dtype}",
    )


def require_bias(name: str, bias: Tensor | None, size: int, x: Tensor) -> None:
    if bias is not None:
        require(list(bias.shape) == [size], name, f"bias must be [{size}]", list(bias.shape))
        require_like(name, "bias", bias, x, "x")


def conv_output_size(
    size: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Height and width of a convolution's output."""
    return [(size[i] + 2 * padding[i] - dilation[i] * (weight_shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]


def require_geometry(
    name: str,
    weight_shape: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Checks a convolution's sizes; returns its output's height and width."""
    require(
        len(weight_shape) == 4 and min(weight_shape) > 0,
        name,
        "weight_shape must be [out_channels, in_channels, height, width]",
        list(weight_shape),
    )
    require(
        len(stride) == len(padding) == len(dilation) == 2,
        name,
        "stride, padding and dilation must have 2 entries each",
        f"{list(stride)}, {list(padding)}, {list(dilation)}",
    )
    require(
        min(stride) > 0 and min(padding) >= 0 and min(dilation) > 0,
        name,
        "stride and dilation must be positive, padding not negative",
        f"{list(stride)}, {list(padding)}, {list(dilation)}",
    )
    out = conv_output_size(size, weight_shape, stride, padding, dilation)
    require(
        min(out) > 0,
        name,
        "the padded input must be at least as large as the kernel",
        f"input {list(size)}, kernel {list(weight_shape[2:])}, padding {list(padding)}, dilation {list(dilation)}",
    )
    return out
