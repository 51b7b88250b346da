"""Conversion in place: a dense module becomes sparse by a change of class, and dense again.

The module object stays the same, so references to it, hooks on it and the root module itself survive. A conversion is
prepared as a whole (everything that can fail) before anything is changed.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn.masked import guard_, guards, unguard_
from snipkern.nn.sparse import SparseConv2d, SparseLinear, SparseWeight
from snipkern.nn.sparse_module import SparseModule
from snipkern.ops.checks import FLOATS
from snipkern.topology import BaseTopology, build

__all__ = ["Conversion", "apply_", "prepare", "sparse_obstacle", "to_dense_"]

SPARSE_CLASSES: dict[type[nn.Module], type[SparseWeight]] = {
    nn.Linear: SparseLinear,
    NonDynamicallyQuantizableLinear: SparseLinear,
    nn.Conv2d: SparseConv2d,
}


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
    if kind not in SPARSE_CLASSES or name != "weight":
        known = next((c for c in SPARSE_CLASSES if isinstance(module, c)), None)
        if known is not None and name == "weight":
            return f"{kind.__name__} is its own subclass of {known.__name__}"
        return f"no sparse kernel for {kind.__name__}.{name}"
    if shared:
        return "weight shared with another module"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"no sparse kernel for {module.groups} groups"
    if module.weight.dtype not in FLOATS:
        return f"no sparse kernel for {module.weight.dtype}"
    if weight_read:
        return "MultiheadAttention multiplies by the weight itself"
    return None


def dense_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, or the one that a sparse module had before."""
    return module.dense_class if isinstance(module, SparseModule) else type(module)


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
        ValueError: For a layout that does not fit the mask, and for one of a convolution with orders.
    """
    parameter = module._parameters[name]
    assert parameter is not None
    if not sparse:
        return Conversion(module, name, mask, parameter, None, None, layout)
    require_unordered(module, layout, cover)
    topology = build(mask, layout, cover)
    if parameter.is_meta:
        values = nn.Parameter(parameter.detach().new_empty(topology.nnz), parameter.requires_grad)
        vars(values).update(vars(parameter))
        return Conversion(module, name, mask, parameter, values, topology)
    index = topology.flat_index(parameter.device)
    values = nn.Parameter(parameter.detach().reshape(-1)[index], parameter.requires_grad)
    vars(values).update(vars(parameter))
    if parameter.grad is not None:
        values.grad = parameter.grad.detach().reshape(-1)[index]
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        warnings.warn(
            f"{type(module).__name__}.{name}: hooks on the parameter are not carried over to weight_values",
            stacklevel=2,
        )
    return Conversion(module, name, mask, parameter, values, topology)


def require_unordered(module: nn.Module, *grids: Layout | None) -> None:
    """That a convolution gets no grid with orders, which its kernels don't know."""
    if any(grid is not None and grid.ordered for grid in grids) and isinstance(module, nn.Conv2d):
        raise ValueError("a convolution's layout must leave rows and columns in the weight's order (got another order)")


def apply_(model: nn.Module, conversions: list[Conversion]) -> None:
    """Makes prepared conversions, and turns off fast paths that would compute with dense weights."""
    for change in conversions:
        if change.topology is None:
            guard_(change.module, change.name, change.mask, change.layout)
        else:
            make_sparse(change.module, change.values, change.topology)
    _leave_fast_paths(model)


# Attributes by which torch's Transformer modules, in eval mode, hand their weights to one fused dense kernel, and the
# values that keep them from it.
FAST_PATHS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
FAST_PATH_BEFORE = "_snipkern_fast_path"


def _leave_fast_paths(model: nn.Module) -> None:
    for kind, (attribute, off) in FAST_PATHS.items():
        for module in model.modules():
            sparse = isinstance(module, kind) and any(isinstance(child, SparseWeight) for child in module.modules())
            if sparse and FAST_PATH_BEFORE not in module.__dict__:
                module.__dict__[FAST_PATH_BEFORE] = getattr(module, attribute)
                setattr(module, attribute, off)


def _restore_fast_paths(model: nn.Module) -> None:
    for kind, (attribute, _) in FAST_PATHS.items():
        for module in model.modules():
            if isinstance(module, kind) and FAST_PATH_BEFORE in module.__dict__:
                setattr(module, attribute, module.__dict__.pop(FAST_PATH_BEFORE))


def make_sparse(module: nn.Module, values: nn.Parameter | None, topology: BaseTopology) -> None:
    """Changes a dense module's class."""
    others = {name: p for name, p in module._parameters.items() if name != "weight"}
    module._parameters.clear()
    module._parameters["weight_values"] = values
    module._parameters.update(others)
    module.__dict__["_topologies"] = {"weight": topology}
    module.__dict__["dense_class"] = type(module)
    module.__class__ = SPARSE_CLASSES[type(module)]


def sparse_copy(
    dense: nn.Module, mask: Mask, op: str, layout: Layout | None = None, cover: Layout | None = None
) -> nn.Module:
    """A sparse copy of one dense module; the original stays as it is."""
    if not isinstance(dense, tuple(SPARSE_CLASSES)) or isinstance(dense, SparseWeight):
        raise ValueError(f"{op}: the module must be a dense nn.Linear or nn.Conv2d (got {type(dense).__name__})")
    require_mask(op, "weight", mask, cast(Tensor, dense.weight).shape)
    obstacle = sparse_obstacle(dense, "weight", shared=False, weight_read=False)
    if obstacle:
        raise ValueError(f"{op}: the module must have a sparse kernel (got: {obstacle})")
    module = copy.deepcopy(dense)
    apply_(module, [prepare(module, "weight", mask, True, layout, cover)])
    return module


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
        if isinstance(module, SparseWeight):
            make_dense(module)
    _restore_fast_paths(model)
    return model


def make_dense(module: SparseWeight, weight: nn.Parameter | None = None) -> None:
    """Changes it back; the dense weight is made if none is given."""
    values = module.weight_values
    if weight is None:
        weight = nn.Parameter(module.weight.detach(), values.requires_grad)
        vars(weight).update(vars(values))
    others = {name: p for name, p in module._parameters.items() if name != "weight_values"}
    dense_class = module.dense_class
    del module.__dict__["_topologies"], module.__dict__["dense_class"]
    cast(nn.Module, module).__class__ = dense_class
    module._parameters.clear()
    module._parameters["weight"] = weight
    module._parameters.update(others)


def masks(model: nn.Module) -> dict[str, Mask]:
    """The masks of a pruned model, by the dense model's parameter names ("0.weight"); empty for a dense model."""
    found: dict[str, Mask] = {}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, SparseWeight):
            found[f"{dot}weight"] = module.mask
        for name, guard in guards(module).items():
            found[f"{dot}{name}"] = guard.mask
    return found


def owner(model: nn.Module, fqn: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and the parameter's name in it."""
    path, _, name = fqn.rpartition(".")
    return model.get_submodule(path), name
