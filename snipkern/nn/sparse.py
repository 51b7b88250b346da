"""An nn.Linear or nn.Conv2d that holds, trains and computes with its kept weights only."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipkern.layout import Layout, one_layout
from snipkern.masks import Mask
from snipkern.nn import functional
from snipkern.nn.sparse_module import SparseModule, compute_dtype, described
from snipkern.nn.state import BLOCK_SUFFIX as BLOCK_SUFFIX
from snipkern.nn.state import MASK_SUFFIX as MASK_SUFFIX
from snipkern.topology import BaseTopology

__all__ = ["SparseConv2d", "SparseLinear", "SparseModule", "SparseWeight"]


class SparseWeight(SparseModule):
    """What sparse modules with one weight share: only the kept entries of ``weight`` exist, as ``weight_values``.

    ``mask`` and ``topology`` are fixed. ``weight`` is a dense tensor made on demand; writing to it changes nothing. See
    :class:`SparseModule` for the order of the values, and for state dicts.
    """

    weight_values: nn.Parameter
    bias: nn.Parameter | None

    @property
    def topology(self) -> BaseTopology:
        """Where the kept weights are."""
        return self._topologies["weight"]

    @property
    def mask(self) -> Mask:
        """Which weights are kept."""
        return self.topology.mask

    @property
    def block(self) -> tuple[int, int] | None:
        """Height and width of the blocks that the kernels compute with, or None: single weights."""
        layout = self.topology.layout
        return None if layout is None else layout.block

    @property
    def layout(self) -> Layout | None:
        """The grid of blocks that the kernels compute with, or None: single weights."""
        return self.topology.layout

    @property
    def weight(self) -> Tensor:
        """The dense weight, zero where pruned: a new tensor at each access, differentiable in ``weight_values``."""
        try:
            return self.dense("weight")
        except AttributeError as error:  # nn.Module would report it as a missing attribute 'weight'
            raise RuntimeError(f"{type(self).__name__}.weight: {error}") from error

    def forward_operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, values and bias in the dtype to compute in: autocast's, where it is on, as for the dense module."""
        values, bias = cast(Tensor, self.weight_values), cast("Tensor | None", self.bias)
        dtype = compute_dtype(x)
        if dtype is None:
            return x, values, bias
        return x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)

    def reset_parameters(self) -> None:
        """Draws new values and bias from the dense module's default distribution (uniform, 1 / sqrt(fan in))."""
        bound = self.topology.cols**-0.5
        with torch.no_grad():
            self.weight_values.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *described(self.topology)])


class SparseLinear(SparseWeight, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """An ``nn.Linear`` that computes with its kept weights only; see :class:`SparseWeight`."""

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        mask: Mask,
        block: tuple[int, int] | None = None,
        layout: Layout | None = None,
        cover: Layout | None = None,
    ) -> SparseLinear:
        """A sparse copy of a linear layer; the original stays as it is.

        Args:
            linear: Its weight ``[out_features, in_features]`` gives the values; the bias is copied.
            mask: Of the weight's shape.
            block: Height and width, for a mask that keeps whole blocks: to compute with those.
            layout: The same, with orders and single weights.
            cover: A grid of blocks for a mask of single weights, to compute with those that hold any: see
                :func:`snipkern.topology.cover.covering`.
        """
        from snipkern.nn.convert import sparse_copy

        layout = one_layout("SparseLinear.from_dense", block, layout)
        return cast(SparseLinear, sparse_copy(linear, {"weight": mask}, "SparseLinear.from_dense", layout, cover))

    def forward(self, input: Tensor) -> Tensor:
        x, values, bias = self.forward_operands(input)
        return functional.sparse_linear(x, values, bias, self.topology)


class SparseConv2d(SparseWeight, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """An ``nn.Conv2d`` (one group) that computes with its kept weights only; see :class:`SparseWeight`."""

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        mask: Mask,
        block: tuple[int, int] | None = None,
        layout: Layout | None = None,
        cover: Layout | None = None,
    ) -> SparseConv2d:
        """A sparse copy of a convolution; the original stays as it is.

        Args:
            conv: Its weight ``[out_channels, channels, height, width]`` gives the values; the bias is copied.
            mask: Of the weight's shape.
            block: Height and width in the view ``[out_channels, everything else]``, for a mask that keeps whole blocks
                of it: to compute with those.
            layout: The same, with single weights; rows and columns stay in the weight's order.
            cover: A grid of blocks in that view for a mask of single weights, to compute with those that hold any.
        """
        from snipkern.nn.convert import sparse_copy

        layout = one_layout("SparseConv2d.from_dense", block, layout)
        return cast(SparseConv2d, sparse_copy(conv, {"weight": mask}, "SparseConv2d.from_dense", layout, cover))

    def forward(self, input: Tensor) -> Tensor:
        x, values, bias = self.forward_operands(input)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        elif padding == "valid":
            padding = (0, 0)
        elif padding == "same":
            x, padding = functional.same_padding(x, self.kernel_size, self.dilation)
        return functional.sparse_conv2d(x, values, bias, self.topology, self.stride, padding, self.dilation)
