"""The pool: which parameters of a model take part in pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from snipkern.masks import Mask
from snipkern.nn.masked import guards
from snipkern.nn.narrow import Held, dense_name, held_by
from snipkern.nn.sparse_module import SparseModule
from snipkern.nn.state import VALUES_SUFFIX
from snipkern.parallel.shards import is_sharded
from snipkern.topology import BaseTopology

__all__ = ["Prunable", "dense_pool", "prunable"]

FilterFn = Callable[[nn.Module, str], bool]

# Tables and gains: they are looked up or scale whole channels, and are no connections between units.
NOT_CONNECTIONS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)
# Modules whose biases the published SNIP code pools beside their weights.
BIASED = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
# Wrappers that hold a model's parameters in a way of their own.
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
OLD_STYLE_HOOKS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)


@dataclass(frozen=True)
class Prunable:
    """One pooled parameter: its full name, its owner, its name there, and whether another owner shares it.

    Names and shape are the dense model's. Of one that is pruned already, ``held`` is what is left, and where its module
    is sparse, ``parameter`` holds that alone, in the order of ``topology``.
    """

    fqn: str
    module: nn.Module
    module_fqn: str
    name: str
    parameter: nn.Parameter
    shared: bool
    held: Held | None = None

    @property
    def mask(self) -> Mask | None:
        """What is left; None: all of it."""
        return None if self.held is None else self.held.mask

    @property
    def topology(self) -> BaseTopology | None:
        """Of the values, where the module is sparse."""
        return None if self.held is None else self.held.topology

    @property
    def shape(self) -> torch.Size:
        """Of the dense weight."""
        return self.parameter.shape if self.mask is None else self.mask.shape

    @property
    def left(self) -> int:
        """Weights that are not pruned yet."""
        return self.parameter.numel() if self.mask is None else self.mask.count()

    def unchanged(self, model: nn.Module) -> bool:
        """Whether this is still what the model has in that place."""
        try:
            owner = model.get_submodule(self.module_fqn)
        except AttributeError:
            return False
        name = self.name if self.topology is None else self.name + VALUES_SUFFIX
        return owner._parameters.get(name) is self.parameter and held_by(owner, self.name) == self.held


def prunable(
    model: nn.Module, filter_fn: FilterFn | None = None, biases: bool = False, sharded: bool = False
) -> list[Prunable]:
    """The pool, in the order of ``model.named_parameters()``.

    By default: trainable parameters of two or more dimensions with "weight" in their names (linear, convolution,
    recurrent, attention projections; the last layer too), but no biases, norms or embeddings, and nothing that is
    shared with one of these; and whatever is pruned already. A tied parameter is listed once.

    Args:
        model: Any module with initialised parameters.
        filter_fn: ``filter_fn(module, fqn)`` decides per module instead: where it says yes, all its own parameters of
            two or more dimensions are pooled.
        biases: Pool the biases of linear, convolution and recurrent modules as well.
        sharded: Whether DTensors will do.

    Raises:
        ValueError: For a model that is parametrized or not initialised, one that is pruned and sharded, or one whose
            pool is empty.
    """
    owners: dict[nn.Parameter, list[tuple[nn.Module, str, str]]] = {}
    for module_fqn, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((module, module_fqn, dense_name(module, name)))
        _require_plain(module, module_fqn, sharded)
    pool: list[Prunable] = []
    frozen: list[str] = []
    for parameter, places in owners.items():
        pruned = (place for place in places if held_by(place[0], place[2]) is not None)
        module, module_fqn, name = next(pruned, places[0])
        held = held_by(module, name)
        dims = 0 if nn.parameter.is_lazy(parameter) else parameter.dim() if held is None else len(held.mask.shape)
        everywhere = (_is_pooled(*place, parameter, dims, filter_fn, biases) for place in places)
        if not all(everywhere) and (held is None or filter_fn is not None):
            continue
        fqn = f"{module_fqn}.{name}" if module_fqn else name
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"prune: parameters must be initialised; run one batch first (got lazy {fqn!r})")
        if not parameter.requires_grad:
            frozen.append(fqn)
            continue
        pool.append(Prunable(fqn, module, module_fqn, name, parameter, len(places) > 1, held))
    if not pool and frozen:
        raise ValueError(
            "prune: at least one prunable weight must be trainable (got requires_grad=False for all:"
            f" {', '.join(map(repr, frozen[:3]))}{', ...' if len(frozen) > 3 else ''})"
        )
    if not pool:
        chosen = "the default choice" if filter_fn is None else "filter_fn"
        raise ValueError(
            "prune: the model must have a prunable weight, a trainable parameter of 2 or more dimensions"
            f" (got none with {chosen} in {type(model).__name__})"
        )
    return pool


def dense_pool(op: str, model: nn.Module, filter_fn: FilterFn | None = None) -> list[Prunable]:
    """The pool of a model for what works on dense weights alone.

    Raises:
        ValueError: As :func:`prunable`, and for a model that is pruned.
    """
    pool = prunable(model, filter_fn)
    for entry in pool:
        if entry.mask is not None:
            where = f"{entry.module_fqn or 'the model'} ({type(entry.module).__name__})"
            raise ValueError(
                f"{op}: the model must not be pruned yet; call snipkern.to_dense_(model) first (got {where})"
            )
    return pool


def _is_pooled(
    module: nn.Module,
    module_fqn: str,
    name: str,
    parameter: nn.Parameter,
    dims: int,
    filter_fn: FilterFn | None,
    biases: bool,
) -> bool:
    if not parameter.is_floating_point():
        return False
    if name.startswith("bias") or name == "in_proj_bias":
        return biases and isinstance(module, BIASED) and (filter_fn is None or filter_fn(module, module_fqn))
    if not nn.parameter.is_lazy(parameter) and dims < 2:
        return False
    if filter_fn is not None:
        return filter_fn(module, module_fqn)
    return "weight" in name and not isinstance(module, NOT_CONNECTIONS)


def _require_plain(module: nn.Module, module_fqn: str, sharded: bool) -> None:
    where = f"{module_fqn or 'the model'} ({type(module).__name__})"
    if type(module).__name__ in WRAPPERS or (not sharded and any(map(is_sharded, module._parameters.values()))):
        raise ValueError(f"prune: the model must be pruned before it is wrapped or sharded (got {where})")
    shards = sharded and any(map(is_sharded, module._parameters.values()))
    if shards and (isinstance(module, SparseModule) or guards(module)):
        raise ValueError(
            "prune: a sharded model can be pruned once; prune it again before fully_shard, or make a dense one of it by"
            f" snipkern.to_dense_(model) (got {where})"
        )
    if parametrize.is_parametrized(module):
        raise ValueError(
            "prune: parametrizations must be removed first, by torch.nn.utils.parametrize.remove_parametrizations"
            f" (got {where})"
        )
    if any(isinstance(hook, OLD_STYLE_HOOKS) for hook in module._forward_pre_hooks.values()):
        raise ValueError(
            "prune: weights must be plain parameters; remove torch.nn.utils.prune, weight_norm or spectral_norm first"
            f" (got {where})"
        )
