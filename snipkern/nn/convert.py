"""Conversion in place: a dense module becomes sparse by a change of class, and dense again.

The module object stays the same, so references to it, hooks on it and the root module itself survive. A conversion is
prepared as a whole (everything that can fail) before anything is changed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn.fast_paths import leave_fast_paths_, restore_fast_paths_
from snipkern.nn.masked import guard_, guards, unguard_
from snipkern.nn.recurrent import SparseGRU, SparseLSTM, SparseRNN
from snipkern.nn.sparse import SparseConv2d, SparseLinear
from snipkern.nn.sparse_module import SparseModule
from snipkern.nn.state import VALUES_SUFFIX
from snipkern.ops.checks import FLOATS
from snipkern.topology import BaseTopology, build

__all__ = ["Conversion", "apply_", "prepare", "sparse_names", "sparse_obstacle", "to_dense_"]

SPARSE_CLASSES: dict[type[nn.Module], type[SparseModule]] = {
    nn.Linear: SparseLinear,
    NonDynamicallyQuantizableLinear: SparseLinear,
    nn.Conv2d: SparseConv2d,
    nn.LSTM: SparseLSTM,
    nn.GRU: SparseGRU,
    nn.RNN: SparseRNN,
}


def dense_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, or the one that a sparse module had before."""
    return module.dense_class if isinstance(module, SparseModule) else type(module)


def sparse_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the weights of a module that become sparse, all or none; empty where it has no sparse class."""
    kind = SPARSE_CLASSES.get(dense_class(module))
    return () if kind is None else kind.weight_names(module)


def attention_projections(model: nn.Module) -> set[nn.Module]:
    """Output projections whose weights nn.MultiheadAttention reads instead of calling the module."""
    return {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}


def sparse_obstacle(module: nn.Module, name: str, shared: bool, weight_read: bool) -> str | None:
    """Why a parameter of a module can't be computed with sparsely; None where it can.

    Args:
        module: Owner of the parameter.
        name: The parameter's name in the module.
        shared: Whether the same Parameter appears elsewhere in the model too.
        weight_read: Whether another module multiplies by this one's weight itself (attention_projections).
    """
    kind = type(module)
    if name not in sparse_names(module):
        known = next((c for c in SPARSE_CLASSES if isinstance(module, c)), None)
        if known is not None and known is not kind and name in SPARSE_CLASSES[known].weight_names(module):
            return f"{kind.__name__} is its own subclass of {known.__name__}"
        return f"no sparse kernel for {kind.__name__}.{name}"
    weight = module._parameters[name]
    assert weight is not None
    if shared:
        return "weight shared with another module"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"no sparse kernel for {module.groups} groups"
    if weight.dtype not in FLOATS:
        return f"no sparse kernel for {weight.dtype}"
    if isinstance(module, nn.RNNBase) and weight.device.type not in ("cpu", "meta"):
        return f"no fused recurrent kernel for {weight.device.type}"
    if weight_read:
        return "MultiheadAttention multiplies by the weight itself"
    return None


@dataclass(frozen=True)
class Conversion:
    """One parameter's change, ready to be made: to a sparse module, or to a guarded dense weight."""

    module: nn.Module
    name: str
    mask: Mask
    before: nn.Parameter
    values: nn.Parameter | None
    topology: BaseTopology | None
    #: How a guarded weight's kept entries lie in blocks, for when it is pruned again.
    layout: Layout | None = None

    def carried(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape (a gradient, an optimiser's moment) as one of the new parameter's."""
        assert self.topology is not None
        return tensor.reshape(-1)[self.topology.flat_index(tensor.device)]


def prepare(
    module: nn.Module,
    name: str,
    mask: Mask,
    sparse: bool,
    layout: Layout | None = None,
    cover: Layout | None = None,
) -> Conversion:
    """Builds what a conversion needs, changing nothing. Cost: sorts the kept weights' indices once.

    Args:
        sparse: To a sparse module; else to a guarded dense weight.
        layout: The blocks that the sparse module is to compute with; None: single weights.
        cover: The grid of blocks for it to compute with single weights on.

    Raises:
        ValueError: For a layout that does not fit the mask, for one of a convolution with orders, and for any of a
            recurrent module.
    """
    parameter = module._parameters[name]
    assert parameter is not None
    if not sparse:
        return Conversion(module, name, mask, parameter, None, None, layout)
    require_kernels_for(module, layout, cover)
    topology = build(mask, layout, cover)
    if parameter.is_meta:
        values = successor(parameter, lambda tensor: tensor.new_empty(topology.nnz))
        return Conversion(module, name, mask, parameter, values, topology)
    index = topology.flat_index(parameter.device)
    values = successor(parameter, lambda tensor: tensor.reshape(-1)[index])
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        warnings.warn(
            f"{type(module).__name__}.{name}: hooks on the parameter are not carried over to weight_values",
            stacklevel=2,
        )
    return Conversion(module, name, mask, parameter, values, topology)


def successor(before: nn.Parameter, carry: Callable[[Tensor], Tensor]) -> nn.Parameter:
    """The parameter that takes another one's place, with its attributes, its values and its gradient.

    Args:
        carry: Makes a tensor of the new parameter's shape from one of the old one's.
    """
    after = nn.Parameter(carry(before.detach()), before.requires_grad)
    vars(after).update(vars(before))
    if before.grad is not None:
        after.grad = carry(before.grad.detach())
    return after


def require_kernels_for(module: nn.Module, *grids: Layout | None) -> None:
    """That a module's kernels know how its weight is to lie: a convolution's no orders, a recurrent one's no blocks."""
    if isinstance(module, nn.RNNBase) and any(grid is not None for grid in grids):
        raise ValueError("a recurrent module computes with single weights (got a layout)")
    if any(grid is not None and grid.ordered for grid in grids) and isinstance(module, nn.Conv2d):
        raise ValueError("a convolution's layout must leave rows and columns in the weight's order (got another order)")


def apply_(model: nn.Module, conversions: list[Conversion]) -> None:
    """Makes prepared conversions, and turns off fast paths that would compute with dense weights."""
    for module, changes in sparse_changes(conversions).items():
        _make_sparse(module, changes)
    for change in conversions:
        if change.topology is None:
            guard_(change.module, change.name, change.mask, change.layout)
    leave_fast_paths_(model)


def sparse_changes(conversions: Iterable[Conversion]) -> dict[nn.Module, dict[str, Conversion]]:
    """What is to become sparse, by module and name.

    Raises:
        ValueError: For a module of which some weights only are to become sparse.
    """
    found: dict[nn.Module, dict[str, Conversion]] = {}
    for change in conversions:
        if change.topology is not None:
            found.setdefault(change.module, {})[change.name] = change
    for module, changes in found.items():
        missing = [name for name in sparse_names(module) if name not in changes]
        if missing:
            kind = type(module).__name__
            raise ValueError(f"all weights of {kind} must become sparse together (got none for {', '.join(missing)})")
    return found


def _make_sparse(module: nn.Module, changes: Mapping[str, Conversion]) -> None:
    topologies: dict[str, BaseTopology] = {}
    parameters = dict(module._parameters)
    module._parameters.clear()
    for name, parameter in parameters.items():
        change = changes.get(name)
        if change is None or change.topology is None:
            module._parameters[name] = parameter
        else:
            module._parameters[name + VALUES_SUFFIX] = change.values
            topologies[name] = change.topology
    module.__dict__["_topologies"] = topologies
    module.__dict__["dense_class"] = type(module)
    module.__class__ = SPARSE_CLASSES[type(module)]
    cast(SparseModule, module).converted_()


def sparse_copy(
    dense: nn.Module, masks: Mapping[str, Mask], op: str, layout: Layout | None = None, cover: Layout | None = None
) -> nn.Module:
    """A sparse copy of one dense module, with a mask for each of its weights; the original stays as it is."""
    if type(dense) not in SPARSE_CLASSES:
        raise ValueError(f"{op}: the module must be a dense {_known_classes()} (got {type(dense).__name__})")
    names = sparse_names(dense)
    if set(masks) != set(names):
        raise ValueError(f"{op}: masks must be of {', '.join(names)} (got masks of {', '.join(masks) or 'nothing'})")
    for name, mask in masks.items():
        weight = dense._parameters[name]
        assert weight is not None
        require_mask(op, name, mask, weight.shape)
        obstacle = sparse_obstacle(dense, name, shared=False, weight_read=False)
        if obstacle:
            raise ValueError(f"{op}: the module must have a sparse kernel (got: {obstacle})")
    module = copy.deepcopy(dense)
    apply_(module, [prepare(module, name, masks[name], True, layout, cover) for name in names])
    return module


def _known_classes() -> str:
    *most, last = dict.fromkeys(f"nn.{kind.__name__}" for kind in SPARSE_CLASSES if hasattr(nn, kind.__name__))
    return f"{', '.join(most)} or {last}"


def require_mask(op: str, name: str, mask: Mask, shape: torch.Size) -> None:
    if mask.shape != shape:
        raise ValueError(f"{op}: the mask of {name!r} must have shape {list(shape)} (got {list(mask.shape)})")


def to_dense_(model: nn.Module) -> nn.Module:
    """Makes every sparse module of a model dense again and stops guarding masked weights, in place.

    The dense weights are zero where pruned and train freely from now on. Parameters are new objects: make a new
    optimiser. Returns the model.
    """
    for module in model.modules():
        if guards(module):
            unguard_(module)
        if isinstance(module, SparseModule):
            make_dense(module)
    restore_fast_paths_(model)
    return model


def make_dense(module: SparseModule, given: Mapping[str, nn.Parameter] | None = None) -> None:
    """Changes a sparse module's class back; dense weights that are not given are made."""
    weights: dict[str, nn.Parameter] = {}
    for name in module.topologies:
        if given is not None and name in given:
            weights[name + VALUES_SUFFIX] = given[name]
            continue
        values = module.values_of(name)
        weights[name + VALUES_SUFFIX] = weight = nn.Parameter(module.dense(name).detach(), values.requires_grad)
        vars(weight).update(vars(values))
    parameters, dense_class = dict(module._parameters), module.dense_class
    del module.__dict__["_topologies"], module.__dict__["dense_class"]
    plain = cast(nn.Module, module)
    plain.__class__ = dense_class
    plain._parameters.clear()
    for name, parameter in parameters.items():
        found = weights.get(name)
        plain._parameters[name if found is None else name.removesuffix(VALUES_SUFFIX)] = (
            parameter if found is None else found
        )
    if isinstance(plain, nn.RNNBase):
        plain._init_flat_weights()


def masks(model: nn.Module) -> dict[str, Mask]:
    """The masks of a pruned model, by the dense model's parameter names ("0.weight"); empty for a dense model."""
    found: dict[str, Mask] = {}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, SparseModule):
            found.update({f"{dot}{name}": topology.mask for name, topology in module.topologies.items()})
        for name, guard in guards(module).items():
            found[f"{dot}{name}"] = guard.mask
    return found


def owner(model: nn.Module, fqn: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and the parameter's name in it."""
    path, _, name = fqn.rpartition(".")
    return model.get_submodule(path), name
