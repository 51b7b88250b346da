"""Pruning again: a sparse or masked weight keeps less than before, and its module stays the same object.

As in :mod:`snipkern.nn.convert` a change is prepared as a whole before anything is changed. A layer may change its
engine on the way: a masked weight becomes sparse once it is sparse enough, or the other way round where that is asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn import convert
from snipkern.nn.masked import guards, unguard_
from snipkern.nn.sparse_module import SparseModule
from snipkern.nn.state import VALUES_SUFFIX
from snipkern.topology import BaseTopology, build

__all__ = ["Held", "Narrowing", "apply_", "dense_name", "held_by", "places_in", "prepare"]


@dataclass(frozen=True)
class Narrowing(convert.Conversion):
    """A change of a parameter that is pruned already.

    Attributes:
        carry: What makes a tensor of the new parameter's shape of one of the old one's.
    """

    carry: Callable[[Tensor], Tensor] = field(kw_only=True)

    def carried(self, tensor: Tensor) -> Tensor:
        return self.carry(tensor)


def dense_name(module: nn.Module, name: str) -> str:
    """The name that a parameter has in the dense module."""
    dense = name.removesuffix(VALUES_SUFFIX)
    return dense if isinstance(module, SparseModule) and dense in module.topologies else name


@dataclass(frozen=True)
class Held:
    """What a weight that is pruned already keeps.

    Attributes:
        mask: Which weights.
        topology: Of a sparse module's values.
        layout: How they lie in blocks, if they do.
    """

    mask: Mask
    topology: BaseTopology | None
    layout: Layout | None


def held_by(module: nn.Module, name: str) -> Held | None:
    """What a module keeps of a weight, by the dense parameter's name; None: it is dense."""
    if isinstance(module, SparseModule) and name in module.topologies:
        topology = module.topologies[name]
        return Held(topology.mask, topology, topology.layout)
    guard = guards(module).get(name)
    return None if guard is None else Held(guard.mask, None, guard.layout)


def prepare(
    module: nn.Module,
    name: str,
    mask: Mask,
    sparse: bool,
    layout: Layout | None = None,
    cover: Layout | None = None,
) -> Narrowing:
    """Builds what a weight needs to keep less, changing nothing. Arguments as for :func:`snipkern.nn.convert.prepare`.

    Raises:
        ValueError: For a mask that keeps what is pruned already; for a layout that does not fit the mask, and for one
            of a convolution with orders.
    """
    found = held_by(module, name)
    assert found is not None
    held, before = found.mask, found.topology
    require_nested(name, mask, held)
    if before is None:
        return _of_masked(module, name, mask, sparse, layout, cover)
    assert isinstance(module, SparseModule)
    values = module.values_of(name)
    if sparse:
        convert.require_kernels_for(module, layout, cover)
        after = build(mask, layout, cover)
        index = places_in(before, after)
        return _narrowing(module, name, mask, values, after, lambda tensor: tensor[index.to(tensor.device)])

    def spread(tensor: Tensor) -> Tensor:
        whole = tensor.new_zeros(held.shape)
        whole.view(-1)[before.flat_index(tensor.device)] = tensor
        return whole.masked_fill_(~mask.to_dense(tensor.device), 0)

    return _narrowing(module, name, mask, values, None, spread, layout)


def _of_masked(
    module: nn.Module, name: str, mask: Mask, sparse: bool, layout: Layout | None, cover: Layout | None
) -> Narrowing:
    parameter = module._parameters[name]
    assert parameter is not None
    if not sparse:
        return Narrowing(module, name, mask, parameter, None, None, layout, carry=lambda tensor: tensor)
    convert.require_kernels_for(module, layout, cover)
    after = build(mask, layout, cover)
    return _narrowing(
        module, name, mask, parameter, after, lambda tensor: tensor.reshape(-1)[after.flat_index(tensor.device)]
    )


def _narrowing(
    module: nn.Module,
    name: str,
    mask: Mask,
    before: nn.Parameter,
    after: BaseTopology | None,
    carry: Callable[[Tensor], Tensor],
    layout: Layout | None = None,
) -> Narrowing:
    """With a new parameter, which has the old one's gradient and attributes."""
    values = convert.successor(before, carry)
    guard = guards(module).get(name)
    own = {guard.hook_id} if guard is not None and guard.hook_id is not None else set[int]()
    hooks: Any = (before._backward_hooks or {}, before._post_accumulate_grad_hooks or {})  # pyright: ignore
    if any(key not in own for each in hooks for key in each):
        warnings.warn(
            f"{type(module).__name__}.{name}: hooks on the parameter are not carried over to the smaller one",
            stacklevel=2,
        )
    return Narrowing(module, name, mask, before, values, after, layout, carry=carry)


def places_in(before: BaseTopology, after: BaseTopology) -> Tensor:
    """int64 CPU ``[after.nnz]``: where each value of a topology is among those of one that keeps the same and more."""
    cpu = torch.device("cpu")
    wanted, held = after.flat_index(cpu), before.flat_index(cpu)
    if before.row_major:
        return torch.searchsorted(held, wanted)
    order = held.argsort()
    return order[torch.searchsorted(held[order], wanted)]


def require_nested(name: str, mask: Mask, held: Mask) -> None:
    """That what is pruned stays pruned.

    Raises:
        ValueError: For another shape, and for weights that come back.
    """
    convert.require_mask("prune", name, mask, held.shape)
    back = mask.words & ~held.words
    if bool(back.any()):
        count = Mask(back, mask.shape).count()
        raise ValueError(f"prune: what is pruned must stay pruned (got a mask of {name!r} with {count} weights back)")


def apply_(model: nn.Module, conversions: Sequence[convert.Conversion]) -> None:
    """Makes prepared conversions, first ones and further ones."""
    left: list[convert.Conversion] = []
    spread: dict[SparseModule, list[convert.Conversion]] = {}
    for change in conversions:
        module, name = change.module, change.name
        if not isinstance(change, Narrowing):
            left.append(change)
        elif not isinstance(module, SparseModule) or name not in module.topologies:
            guards(module)[name].detach()
            if change.topology is not None:
                del guards(module)[name]
            left.append(change)
        elif change.topology is None:
            spread.setdefault(module, []).append(change)
        else:
            assert change.values is not None
            module.replace_(name, change.values, change.topology)
    for module in {change.module for change in left if change.topology is not None}:
        if not guards(module):
            unguard_(module)
    for module, changes in spread.items():
        convert.make_dense(module, {change.name: change.values for change in changes if change.values is not None})
    convert.apply_(model, [*left, *(change for changes in spread.values() for change in changes)])
