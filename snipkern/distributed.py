"""Several processes with torch.distributed: DDP, FSDP2 (``fully_shard``) and tensor parallelism.

``prune_`` and ``plan`` take part in whatever process group is there by themselves. DDP: prune before or after wrapping.
FSDP2: prune before ``fully_shard``; or, for a model that fits no single process, plan on the sharded dense model and
train a sparse one that never was dense::

    masks = snipkern.plan(dense, loader, keep=0.05).masks       # dense: after fully_shard
    with torch.device("meta"):
        model = Model()
    snipkern.sparsify_(model, masks, engine="csr")
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device=device)
    snipkern.distributed.copy_kept_(model, dense)

The plan's ``layouts`` go to ``sparsify_`` as well where it has blocks. Where a layer keeps nothing at all, call
``requires_grad_(False)`` on its empty ``weight_values`` before ``fully_shard``, which can't reduce empty gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snipkern.nn.masked import guards
from snipkern.nn.sparse_module import kept_entries
from snipkern.parallel.ranks import ranks_of
from snipkern.parallel.shards import full, is_sharded, like, local
from snipkern.selection.sources import Alone, Ranks

__all__ = ["Team", "copy_kept_", "team_of"]

SHARDED = (
    "a sharded model can be pruned in place with engine='masked' alone; prune it before fully_shard, or sparsify_ a"
    " copy on the meta device with plan(...).masks (see snipkern.distributed)"
)


@dataclass(frozen=True)
class Team:
    """How a model lies on the ranks that prune it.

    Attributes:
        model: Without DDP's wrapper.
        ranks: Who prunes together.
        sharded: Whether some of its parameters are DTensors.
        wrapper: DDP's, if it is in one.
    """

    model: nn.Module
    ranks: Ranks = field(default_factory=Alone)
    sharded: bool = False
    wrapper: DistributedDataParallel | None = None

    def require_convertible(self, engine: str) -> None:
        """Whether the model can change in place.

        Raises:
            ValueError: For a sharded model, unless it stays dense.
        """
        if self.sharded and engine != "masked":
            raise ValueError(f"prune: {SHARDED} (got engine={engine!r})")

    def rewrap_(self) -> None:
        """Makes DDP reduce the parameters that the model has now, after a conversion."""
        if self.wrapper is not None:
            _rebuild_reducer_(self.wrapper)


def team_of(model: nn.Module, group: Any = None) -> Team:
    """Who prunes a model together, and how it lies on them.

    Args:
        model: Plain, wrapped in DDP, or sharded.
        group: A process group; None: DDP's, or the default one if there is one; False: this process alone.

    Raises:
        ValueError: For a group that does not fit, or a DDP wrapper that can't be brought up to date.
    """
    wrapper = model if isinstance(model, DistributedDataParallel) else None
    if wrapper is not None:
        _require_plain_reducer(wrapper)
        model = wrapper.module
        group = wrapper.process_group if group is None else group
        if group is False:
            raise ValueError("prune: process_group must not be False for a model wrapped in DistributedDataParallel")
    sharded = any(map(is_sharded, model.parameters()))
    return Team(model, ranks_of(group, sharded), sharded, wrapper)


# What a reducer is made by; private, but what unpickling a DDP model goes through as well.
_MAKERS = ("_build_params_for_reducer", "_build_debug_param_to_name_mapping", "_ddp_init_helper", "_set_static_graph")


def _require_plain_reducer(wrapper: DistributedDataParallel) -> None:
    special = [name for name in ("mixed_precision", "_use_python_reducer") if getattr(wrapper, name, None)]
    missing = [name for name in _MAKERS if not hasattr(wrapper, name)]
    if special or missing:
        raise ValueError(
            "prune: this DistributedDataParallel can't follow a change of its model; prune before wrapping (got"
            f" {', '.join(special) or 'one without ' + ', '.join(missing)})"
        )


def _rebuild_reducer_(wrapper: Any) -> None:
    # The old reducer has hooks on parameters that stay: it must be gone before the new one hooks them.
    wrapper.reducer = wrapper.logger = cast(Any, None)
    parameters, expect_sparse_gradient = wrapper._build_params_for_reducer()
    wrapper._module_parameters = parameters
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    static_graph, wrapper.static_graph = wrapper.static_graph, False
    wrapper._ddp_init_helper(parameters, expect_sparse_gradient, names, static_graph)
    wrapper._has_rebuilt_buckets = False
    if static_graph:
        wrapper._set_static_graph()
    for hook, state in wrapper._comm_hooks:
        torch.distributed._register_comm_hook(wrapper.reducer, state, hook)  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def copy_kept_(sparse: nn.Module, dense: nn.Module) -> nn.Module:
    """Copies what a pruned model keeps, and its other parameters and buffers, from the dense model it was pruned like.

    Either model may be sharded, in any way. All ranks call this together.

    Args:
        sparse: Pruned, on a real device; overwritten.
        dense: With the same names and shapes; only read.

    Returns:
        The pruned model.

    Raises:
        ValueError: For a parameter or buffer that the dense model lacks or has in another shape, or that is on the meta
            device; nothing is copied then.

    Cost: gathers one dense parameter at a time on every rank.
    """
    sources = {**dict(dense.named_parameters(remove_duplicate=False)), **dict(dense.named_buffers())}
    copies: list[tuple[str, Tensor, nn.Module, str]] = []
    for path, module in sparse.named_modules():
        dot, kept = f"{path}." if path else "", kept_entries(module)
        for name, target in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            source, shape = f"{dot}{name}", target.shape
            if name in kept:
                source, shape = f"{dot}{kept[name][0]}", kept[name][1].mask.shape
            if target.is_meta:
                raise ValueError(f"copy_kept_: call to_empty first (got {dot}{name} on the meta device)")
            if source not in sources or sources[source].shape != shape:
                got = f"shape {list(sources[source].shape)}" if source in sources else "none"
                raise ValueError(f"copy_kept_: the dense model must have {source!r} of shape {list(shape)} (got {got})")
            copies.append((source, target, module, name))
    for source, target, module, name in copies:
        whole = full(sources[source].detach())
        kept = kept_entries(module)
        if name in kept:
            whole = whole.reshape(-1)[kept[name][1].flat_index(whole.device)]
        elif name in guards(module):
            whole = whole.masked_fill(~guards(module)[name].mask.to_dense(whole.device), 0)
        local(target).copy_(local(like(whole.to(local(target).device, target.dtype), target)))
    return sparse
