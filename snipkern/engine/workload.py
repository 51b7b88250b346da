"""Workloads: what one layer has to compute in a training step, which is all that the choice of its engine looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from snipkern.layout import Layout
from snipkern.nn.sparse_module import SparseModule
from snipkern.ops.checks import conv_output_size

__all__ = ["Call", "Workload", "workload"]

# Of a layer that nobody has seen at work.
ASSUMED_ROWS = 128
ASSUMED_BATCH, ASSUMED_SIDE = 32, 16
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Call:
    """How a module was called: the input's shape, the dtype it computed in, whether the input wants a gradient.

    A packed sequence is ``[rows, features]``, and has ``steps``; other inputs have none.
    """

    input: tuple[int, ...]
    dtype: torch.dtype
    input_grad: bool
    steps: int = 0

    @classmethod
    def of(cls, input: object, output: object) -> Call | None:
        """From the first argument of a module and what it returned; None if these are something else than expected."""
        steps = 0
        if isinstance(input, PackedSequence):
            input, steps = input.data, len(input.batch_sizes)
        if isinstance(output, tuple) and not isinstance(output, PackedSequence) and output:
            output = cast(object, output[0])  # a recurrent module's, beside its last states
        if isinstance(output, PackedSequence):
            output = output.data
        if not isinstance(input, Tensor) or not isinstance(output, Tensor):
            return None
        return cls(tuple(input.shape), output.dtype, input.requires_grad, steps)


@dataclass(frozen=True)
class Workload:
    """One linear or 2-D convolution layer (one group) and its input.

    Attributes:
        shape: Of the weight.
        kept: Kept weights.
        input: Shape of the input: ``[rows, features]`` or ``[batch, channels, height, width]``.
        dtype: What it computes in; under autocast that is not the weight's.
        device: Where the layer is.
        bias: Whether it has one.
        input_grad: Whether the input wants a gradient; that of a first layer does not.
        stride, padding, dilation: Of a convolution, height and width.
        channels_last: Whether a convolution's weight is in that memory format, and so its input probably too.
        assumed: Whether the input is a guess.
        block: Height and width of the blocks that are kept, or None: single weights.
        singles: Kept weights beside whole blocks.
        ordered: Whether the blocks, or those of the cover, lie on a grid whose rows and columns have another order than
            the weight's.
        cover: Height and width of blocks to cover single weights with, or None.
        stored: Weights that those blocks have, kept or not.
    """

    shape: tuple[int, ...]
    kept: int
    input: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    bias: bool = True
    input_grad: bool = True
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    channels_last: bool = False
    assumed: bool = False
    block: tuple[int, int] | None = None
    singles: int = 0
    ordered: bool = False
    cover: tuple[int, int] | None = None
    stored: int = 0

    @property
    def kind(self) -> str:
        """``linear`` or ``conv``."""
        return "linear" if len(self.shape) == 2 else "conv"

    @property
    def numel(self) -> int:
        """Weights, kept or not."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows of the matrix product: samples, times output positions for a convolution."""
        if self.kind == "linear":
            return self.input[0]
        size = conv_output_size(self.input[2:], self.shape, self.stride, self.padding, self.dilation)
        return self.input[0] * math.prod(size)

    def module(self) -> nn.Linear | nn.Conv2d:
        """A dense layer like it, on its device, with weights that are not set yet; draws no random numbers."""
        common = {"bias": self.bias, "dtype": self.dtype, "device": self.device}
        if self.kind == "linear":
            return cast(nn.Linear, nn.utils.skip_init(nn.Linear, self.shape[1], self.shape[0], **common))
        window = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        conv = nn.utils.skip_init(nn.Conv2d, self.shape[1], self.shape[0], self.shape[2:], **window, **common)
        return cast(nn.Conv2d, conv.to(memory_format=torch.channels_last) if self.channels_last else conv)  # pyright: ignore[reportCallIssue, reportUnknownVariableType]


def workload(module: nn.Linear | nn.Conv2d, kept: int, call: Call | None, layout: Layout | None = None) -> Workload:
    """Of a layer, as it was called, or for an input of usual size where that is not known."""
    weight = module.values_of("weight") if isinstance(module, SparseModule) else module.weight
    shape = tuple(module.topologies["weight"].mask.shape if isinstance(module, SparseModule) else weight.shape)
    size = () if call is None else call.input
    known = math.prod(size) > 0 and len(size) > 0
    if isinstance(module, nn.Linear):
        image = (math.prod(size[:-1]) if known else ASSUMED_ROWS, shape[1])
    elif known:
        image = size if len(size) == 4 else (1, *size)
    else:
        sides = (max(ASSUMED_SIDE, d * (k - 1) + 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
        image = (ASSUMED_BATCH, shape[1], *sides)
    work = Workload(
        shape,
        kept,
        image,
        weight.dtype if call is None else call.dtype,
        weight.device,
        bias=module.bias is not None,
        input_grad=call is None or call.input_grad,
        assumed=not known,
        block=None if layout is None else layout.block,
        singles=layout.singles.count() if layout and layout.singles else 0,
        ordered=layout is not None and layout.ordered,
    )
    if isinstance(module, nn.Linear):
        return work
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return replace(
        work,
        stride=tuple(module.stride),
        padding=_numeric_padding(module),
        dilation=tuple(module.dilation),
        channels_last=last,
    )


def _numeric_padding(module: nn.Conv2d) -> tuple[int, ...]:
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return (0, 0) if isinstance(module.padding, str) else tuple(module.padding)
