"""Masked parameters: dense weights, of layers without a sparse kernel, whose pruned entries stay exactly zero.

A guard zeroes the pruned entries of the gradient as it arrives (so that norms, clipping and moments never see them)
and, after every step of any optimiser, those of the weight and of new optimiser state. Guards follow their module
through ``deepcopy``, pickling, ``.to`` and ``load_state_dict``.

Cost: one read and one write of each gradient, and one read of the weight after a step, which writes only what is not
zero as it should be; the mask is read as bits.
"""

from __future__ import annotations

import copy
import operator
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from snipkern import backends
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn import state
from snipkern.nn.state import MASK_SUFFIX
from snipkern.ops.checks import FLOATS
from snipkern.ops.eager import differentiable
from snipkern.parallel.shards import is_sharded, like, local

__all__ = ["MaskGuard", "guard_", "guard_own_", "guards", "unguard_"]

GUARDS = "_snipkern_guards"
# Modules whose parameters are guarded: fully_shard puts others in their places, and does not tell.
_modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# By id of the parameter, which lives as long as its guard does.
_guarded: weakref.WeakValueDictionary[int, MaskGuard] = weakref.WeakValueDictionary()

zero_pruned = differentiable("zero_pruned")


class MaskGuard:
    """Keeps one parameter's pruned entries at zero for as long as it is attached.

    The layout says how the kept ones lie in blocks, if they do: nothing here computes with it, but whoever prunes them
    again does.
    """

    def __init__(self, parameter: nn.Parameter, mask: Mask, layout: Layout | None = None) -> None:
        self.mask, self.layout = mask, layout
        self._pruned: dict[tuple[int, torch.device], Tensor] = {}
        self._words: dict[tuple[int, torch.device], Tensor] = {}
        self._shards: list[tuple[object, object, Mask]] = []
        self._handle: RemovableHandle | None = None
        self._cleaned: list[weakref.ref[Tensor]] = []
        self.parameter = parameter
        self.attach(parameter)

    def attach(self, parameter: nn.Parameter) -> None:
        """Starts guarding this parameter (again), in place of the one before."""
        self.detach()
        self.parameter = parameter
        _guarded[id(parameter)] = self
        if parameter.requires_grad and is_sharded(parameter):
            # fully_shard sets the gradient itself, and runs these hooks alone.
            self._handle = parameter.register_post_accumulate_grad_hook(self._clean_grad)
        elif parameter.requires_grad:
            self._handle = parameter.register_hook(self.clean)

    def detach(self) -> None:
        """Stops guarding."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if _guarded.get(id(self.parameter)) is self:
            del _guarded[id(self.parameter)]

    @property
    def hook_id(self) -> int | None:
        """The key of its hook among the parameter's; None where it has none."""
        return None if self._handle is None else self._handle.id

    def here(self, tensor: Tensor) -> Mask:
        """The mask of what this rank has of a tensor of the parameter's shape; of shards, kept for the next call."""
        if not is_sharded(tensor):
            return self.mask
        at: Any = tensor
        for mesh, placements, mask in self._shards:
            if mesh == at.device_mesh and placements == at.placements:
                return mask
        whole = self.mask.to_dense(at.device_mesh.device_type)
        mask = Mask.from_dense(local(like(whole, tensor)))
        self._shards.append((at.device_mesh, at.placements, mask))
        return mask

    def pruned(self, device: torch.device, mask: Mask | None = None) -> Tensor:
        """Bool tensor of the parameter's shape (or of a shard's mask), True where pruned; kept for the next call."""
        mask = mask or self.mask
        key = (id(mask), device)
        if key not in self._pruned:
            self._pruned[key] = ~mask.to_dense(device)
        return self._pruned[key]

    def words(self, device: torch.device, mask: Mask | None = None) -> Tensor:
        """The words of the parameter's mask (or of a shard's) on a device; kept for the next call."""
        mask = mask or self.mask
        if device.type == "cpu":
            return mask.words
        key = (id(mask), device)
        if key not in self._words:
            self._words[key] = mask.words.to(device)
        return self._words[key]

    def clean(self, tensor: Tensor) -> Tensor:
        """A copy with zeros where pruned, even where there was NaN."""
        if _is_plain(tensor, "zero_pruned"):
            return zero_pruned(tensor, self.words(tensor.device))
        return tensor.masked_fill(self.pruned(tensor.device), 0)

    @torch.no_grad()
    def clean_(self, tensor: Tensor) -> None:
        """Zeroes what is pruned, in place."""
        mask, tensor = self.here(tensor), local(tensor)
        if _is_plain(tensor, "zero_pruned_"):
            torch.ops.snipkern.zero_pruned_(tensor, self.words(tensor.device, mask))
            torch.autograd.graph.increment_version(tensor)
        else:
            tensor.masked_fill_(self.pruned(tensor.device, mask), 0)

    def _clean_grad(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.clean_(parameter.grad)

    def clean_state_(self, state: dict[str, Any]) -> None:
        """Zeroes what an optimiser remembers of pruned entries, once for each tensor.

        Moments of clean gradients start no step of their own; tensors that are new since the last step (first step,
        loaded state) may.
        """
        moments = [value for value in state.values() if isinstance(value, Tensor) and value.shape == self.mask.shape]
        known = [reference() for reference in self._cleaned]
        if len(known) == len(moments) and all(map(operator.is_, known, moments)):
            return
        for value in moments:
            if not any(value is before for before in known):
                self.clean_(value)
        self._cleaned = [weakref.ref(value) for value in moments]

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskGuard:
        return MaskGuard(copy.deepcopy(self.parameter, memo), self.mask, self.layout)

    def __reduce__(self) -> tuple[type[MaskGuard], tuple[nn.Parameter, Mask, Layout | None]]:
        return MaskGuard, (self.parameter, self.mask, self.layout)


def _is_plain(tensor: Tensor, op: str) -> bool:
    """Whether a compiled op does for it; what none takes is left to torch."""
    return (
        tensor.dtype in FLOATS
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_contiguous()
        and not tensor.is_inference()
        and backends.active(tensor.device, op) != "reference"
    )


def guards(module: nn.Module) -> dict[str, MaskGuard]:
    """The guards of a module's own parameters, by parameter name."""
    return module.__dict__.get(GUARDS, {})


def guard_(module: nn.Module, name: str, mask: Mask, layout: Layout | None = None) -> None:
    """Zeroes a parameter's pruned entries and guards them from now on."""
    found = module.__dict__.get(GUARDS)
    if found is None:
        found = module.__dict__[GUARDS] = {}
        handles = (
            module.register_forward_pre_hook(_follow_parameter),
            module.register_state_dict_post_hook(_save_masks),
            module.register_load_state_dict_pre_hook(_check_masks),
            module.register_load_state_dict_post_hook(_reattach),
        )
        module.__dict__[f"{GUARDS}_handles"] = handles
    _modules.add(module)
    parameter = module._parameters[name]
    assert parameter is not None
    guard = found[name] = MaskGuard(parameter, mask, layout)
    guard.clean_(parameter)
    if parameter.grad is not None:
        guard.clean_(parameter.grad)


def unguard_(module: nn.Module) -> None:
    """Removes a module's guards; its weights stay as they are."""
    for guard in guards(module).values():
        guard.detach()
    for handle in module.__dict__.pop(f"{GUARDS}_handles", ()):
        handle.remove()
    module.__dict__.pop(GUARDS, None)


def _follow_parameter(module: nn.Module, args: Any) -> None:
    """Forward pre-hook: re-attaches where the parameter was replaced or has been frozen and thawed."""
    if torch.compiler.is_compiling():
        return
    _modules.add(module)
    _reattach(module, None)


def guard_own_(model: nn.Module) -> None:
    """Has all guards guard their modules' own parameters again, after a call with others in their places."""
    for module in model.modules():
        _reattach(module, None)


def _reattach(module: nn.Module, incompatible_keys: Any) -> None:
    for name, guard in guards(module).items():
        parameter = module._parameters[name]
        if parameter is None or (is_sharded(guard.parameter) and not is_sharded(parameter)):
            continue  # fully_shard puts whole parameters there for a forward pass
        if guard.parameter is not parameter or (guard._handle is None and parameter.requires_grad):
            guard.attach(parameter)


def _save_masks(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name, guard in guards(module).items():
        state.write(state_dict, f"{prefix}{name}", guard.mask, guard.layout)


def _check_masks(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Load pre-hook: takes the mask entries, and compact values as well, and refuses another mask or stray weights."""
    for name, guard in guards(module).items():
        key, mask = f"{prefix}{name}", guard.mask
        words = state_dict.pop(key + MASK_SUFFIX, None)
        values = state_dict.pop(f"{key}_values", None)
        try:
            saved = state.take_layout(state_dict, key, mask)
            state.require_mask(key, words, values, mask)
            if values is not None:
                dense = values.new_zeros(mask.shape)
                dense[mask.to_dense(dense.device)] = state.row_major(key, values, mask, saved)
                state_dict[key] = dense
            elif key in state_dict and state_dict[key].shape == mask.shape:
                state.require_zeros(key, local(state_dict[key]), guard.here(state_dict[key]))
        except ValueError as error:
            error_msgs.append(str(error))
            state_dict[key] = guard.parameter.detach()


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """After any optimiser's step: pruned weights, and what the optimiser remembers of them, are zero again."""
    if not _guarded:
        return
    for module in list(_modules):
        _reattach(module, None)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            guard = _guarded.get(id(parameter))
            if guard is None:
                continue
            guard.clean_(parameter)
            guard.clean_state_(optimizer.state.get(parameter, {}))


register_optimizer_step_post_hook(_after_step)
