"""What all sparse modules share: dense weights of which only the kept entries exist, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.nn import functional, state
from snipkern.nn.state import MASK_SUFFIX, VALUES_SUFFIX
from snipkern.topology import BaseTopology, CoverTopology

__all__ = ["SparseModule", "compute_dtype", "described", "kept_entries"]


class SparseModule(nn.Module):
    """A module some weights of which are sparse.

    For each of them, say ``weight``, ``weight_values`` is a trainable parameter, 1-D: the kept entries in row-major
    order, or where a layout has orders or single weights in that of its topology (``topology.flat_index`` tells which
    one is which). There is no parameter ``weight`` any more; topologies are fixed.

    A state dict holds ``weight_values`` and ``weight_mask`` (the packed words of the mask), and what there is of a
    layout: ``weight_block`` (height and width), ``weight_order`` (the row order, and behind it the column order) and
    ``weight_singles`` (words as the mask's). Loading takes that, checking that the mask is the same one and bringing
    the values of another layout into the module's order, or a dense ``weight`` that is zero wherever the mask is.
    """

    #: Topologies by the dense weights' names: not a buffer (see BaseTopology), and of ``__dict__`` like all they go by.
    _topologies: dict[str, BaseTopology]
    #: The class to become again when made dense.
    dense_class: type[nn.Module]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{type(self).__name__}: sparse modules are made from dense ones; call from_dense or sparsify_")

    @staticmethod
    def weight_names(module: nn.Module) -> tuple[str, ...]:
        """Names of those weights of a dense module of which its sparse one has the kept entries only."""
        return ("weight",)

    def converted_(self) -> None:
        """What is left to do once a dense module has changed to this class."""

    @property
    def topologies(self) -> Mapping[str, BaseTopology]:
        """Where the kept entries of each sparse weight are, by the dense parameter's name; read only."""
        return MappingProxyType(self._topologies)

    def values_of(self, name: str) -> nn.Parameter:
        """The kept entries of one sparse weight, by the dense parameter's name."""
        return getattr(self, name + VALUES_SUFFIX)

    def dense(self, name: str) -> Tensor:
        """A weight as a dense tensor, zero where pruned: a new one in each call, differentiable in the values."""
        return functional.dense_weight(self.values_of(name), self._topologies[name])

    def replace_(self, name: str, values: nn.Parameter, topology: BaseTopology) -> None:
        """Puts other kept entries in place of those of one sparse weight, in the same place among the parameters.

        Args:
            name: The dense parameter's name.
            values: ``[topology.nnz]``: a new parameter; optimisers that train the old one don't follow by themselves.
            topology: Of a mask of the same shape.

        Raises:
            ValueError: For a name that is no sparse weight, another shape, or another dtype.
        """
        where = f"replace_: {type(self).__name__}.{name}"
        if name not in self._topologies:
            raise ValueError(f"{where} must be a sparse weight, one of {', '.join(self._topologies)} (got {name!r})")
        before, shape = self.values_of(name), self._topologies[name].mask.shape
        if topology.mask.shape != shape:
            raise ValueError(f"{where}: the mask must be {list(shape)} (got {list(topology.mask.shape)})")
        if not isinstance(values, nn.Parameter) or values.shape != (topology.nnz,):
            got = f"{type(values).__name__} {list(values.shape)}"
            raise ValueError(f"{where}: values must be an nn.Parameter of shape [{topology.nnz}] (got {got})")
        if values.dtype != before.dtype or values.device != before.device:
            wanted, got = f"{before.dtype} on {before.device}", f"{values.dtype} on {values.device}"
            raise ValueError(f"{where}: values must be {wanted} (got {got})")
        if not values.is_meta:
            topology.place(values.device)
        self._parameters[name + VALUES_SUFFIX] = values
        self._topologies[name] = topology

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_topologies", ()):
            raise AttributeError(
                f"{type(self).__name__}: {name} is made from {name}_values and cannot be set; change {name}_values,"
                " load a state dict, or call snipkern.to_dense_(model) first"
            )
        nn.Module.__setattr__(self, name, value)  # that of nn.RNNBase keeps a list of dense weights

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the topologies along, now: later it would be a copy inside of a forward pass, or of a CUDA graph."""
        applied = super()._apply(fn, recurse)
        for name, topology in self._topologies.items():
            device = self.values_of(name).device
            if device.type != "meta":
                topology.place(device)
        return applied

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, topology in self._topologies.items():
            state.write(destination, prefix + name, topology.mask, topology.layout)

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
        for name, topology in self._topologies.items():
            error = _take_weight(state_dict, prefix + name, topology)
            if error:
                error_msgs.append(error)
                # Else "missing key" would be reported as well.
                state_dict[prefix + name + VALUES_SUFFIX] = self.values_of(name).detach()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _take_weight(state_dict: dict[str, Any], key: str, topology: BaseTopology) -> str | None:
    """Turns the entries for one weight into its values alone; returns what is wrong with them, or None."""
    mask = topology.mask
    words, dense = state_dict.pop(key + MASK_SUFFIX, None), state_dict.pop(key, None)
    values = state_dict.get(key + VALUES_SUFFIX)
    try:
        saved = state.take_layout(state_dict, key, mask)
        state.require_mask(key, words, values if dense is None else None, mask)
        if dense is not None:
            state.require_zeros(key, dense, mask)
            state_dict[key + VALUES_SUFFIX] = dense.detach().reshape(-1)[topology.flat_index(dense.device)]
        elif values is not None:
            state_dict[key + VALUES_SUFFIX] = state.rearranged(key, values, mask, saved, topology)
    except ValueError as error:
        return str(error)
    return None


def kept_entries(module: nn.Module) -> dict[str, tuple[str, BaseTopology]]:
    """By the names of a module's own parameters that are kept entries: the dense weight's name, and where they are."""
    topologies = module.topologies if isinstance(module, SparseModule) else {}
    return {name + VALUES_SUFFIX: (name, topology) for name, topology in topologies.items()}


def described(topology: BaseTopology) -> list[str]:
    """What ``repr`` tells of a sparse weight: kept entries, and the blocks that they are on."""
    parts = [f"kept={topology.nnz} ({topology.mask.density:.2%})"]
    layout = topology.layout
    if layout is not None:
        parts.append(f"block={layout.block[0]}x{layout.block[1]}")
        parts += ["ordered"] if layout.ordered else []
        parts += [f"singles={layout.singles.count()}"] if layout.singles else []
    if isinstance(topology, CoverTopology):
        height, width = topology.cover.block
        parts.append(f"cover={height}x{width} ({topology.fill:.1%} full)")
    return parts


def compute_dtype(x: Tensor) -> torch.dtype | None:
    """Autocast's dtype, if it is on for the input's device; None: that of the operands."""
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)
