"""Sparse modules: an nn.Linear or nn.Conv2d that holds, trains and computes with its kept weights only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipkern.layout import Layout, one_layout
from snipkern.masks import Mask
from snipkern.nn import functional, state
from snipkern.nn.state import BLOCK_SUFFIX as BLOCK_SUFFIX
from snipkern.nn.state import MASK_SUFFIX as MASK_SUFFIX
from snipkern.topology import BaseTopology, CoverTopology

__all__ = ["SparseConv2d", "SparseLinear", "SparseWeight"]


class SparseWeight(nn.Module):
    """What sparse modules share: a weight of which only the kept entries exist.

    ``weight_values`` is the one trainable parameter for the weight, 1-D: the kept entries in row-major order, or where
    a layout has orders or single weights in that of its topology (``topology.flat_index`` tells which one is which).
    ``mask`` and ``topology`` are fixed. ``weight`` is a dense tensor made on demand; writing to it changes nothing.

    A state dict holds ``weight_values`` and ``weight_mask`` (the packed words of the mask), and what there is of a
    layout: ``weight_block`` (height and width), ``weight_order`` (the row order, and behind it the column order) and
    ``weight_singles`` (words as the mask's). Loading takes that, checking that the mask is the same one and bringing
    the values of another layout into the module's order, or a dense ``weight`` that is zero wherever the mask is.
    """

    topology: BaseTopology
    weight_values: nn.Parameter
    bias: nn.Parameter | None
    #: The class to become again when made dense.
    dense_class: type[nn.Module]

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
            return functional.dense_weight(self.weight_values, self.topology)
        except AttributeError as error:  # nn.Module would report it as a missing attribute 'weight'
            raise RuntimeError(f"{type(self).__name__}.weight: {error}") from error

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__}: weight is made from weight_values and cannot be set; change weight_values,"
                " load a state dict, or call snipkern.to_dense_(model) first"
            )
        super().__setattr__(name, value)

    def forward_operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, values and bias in the dtype to compute in: autocast's, where it is on, as for the dense module."""
        values, bias = cast(Tensor, self.weight_values), cast("Tensor | None", self.bias)
        if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
            return x, values, bias
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the topology along, at once: later it would be a copy inside of a forward pass, or of a CUDA graph."""
        applied = super()._apply(fn, recurse)
        device = self.weight_values.device
        if device.type != "meta":
            self.topology.place(device)
        return applied

    def reset_parameters(self) -> None:
        """Draws new values and bias from the dense module's default distribution (uniform, 1 / sqrt(fan in))."""
        bound = self.topology.cols**-0.5
        with torch.no_grad():
            self.weight_values.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"kept={self.topology.nnz} ({self.mask.density:.2%})"]
        layout = self.topology.layout
        if layout is not None:
            parts.append(f"block={layout.block[0]}x{layout.block[1]}")
            parts += ["ordered"] if layout.ordered else []
            parts += [f"singles={layout.singles.count()}"] if layout.singles else []
        if isinstance(self.topology, CoverTopology):
            height, width = self.topology.cover.block
            parts.append(f"cover={height}x{width} ({self.topology.fill:.1%} full)")
        return ", ".join(parts)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state.write(destination, f"{prefix}weight", self.mask, self.topology.layout)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        values_key = f"{prefix}weight_values"
        error = self._take_weight(state_dict, prefix)
        if error:
            error_msgs.append(error)
            state_dict[values_key] = self.weight_values.detach()  # else "missing key" would be reported as well
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take_weight(self, state_dict: dict[str, Any], prefix: str) -> str | None:
        """Turns the entries for the weight into ``weight_values`` alone; returns what is wrong with them, or None."""
        key = f"{prefix}weight"
        words, dense = state_dict.pop(key + MASK_SUFFIX, None), state_dict.pop(key, None)
        values = state_dict.get(f"{key}_values")
        try:
            saved = state.take_layout(state_dict, key, self.mask)
            state.require_mask(key, words, values if dense is None else None, self.mask)
            if dense is not None:
                state.require_zeros(key, dense, self.mask)
                state_dict[f"{key}_values"] = dense.detach().reshape(-1)[self.topology.flat_index(dense.device)]
            elif values is not None:
                state_dict[f"{key}_values"] = state.rearranged(key, values, self.mask, saved, self.topology)
        except ValueError as error:
            return str(error)
        return None


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
        return cast(SparseLinear, sparse_copy(linear, mask, "SparseLinear.from_dense", layout, cover))

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
        return cast(SparseConv2d, sparse_copy(conv, mask, "SparseConv2d.from_dense", layout, cover))

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
