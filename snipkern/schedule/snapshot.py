"""Snapshots: a model's numbers at initialisation or after some steps, to go back to with fewer weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.distributed import team_of
from snipkern.masks import Mask
from snipkern.nn.masked import guards
from snipkern.nn.sparse_module import SparseModule
from snipkern.nn.state import VALUES_SUFFIX
from snipkern.topology import BaseTopology

__all__ = ["Snapshot"]

VERSION = 1


class Snapshot:
    """What a model's weights, biases and buffers are now, to rewind them to once more of them are pruned.

    A lottery ticket is a mask found by training, with the weights from before that training: at initialisation, or
    after some steps, where larger nets need it::

        snapshot = sk.Snapshot(model)
        train(model)
        sk.prune_(model, loader, keep=0.2, criterion="magnitude", optimizer=optimizer)
        snapshot.rewind_(model, optimizer=optimizer)      # kept weights as they were
        train(model)

    Args:
        model: Dense or pruned, plain or wrapped in DistributedDataParallel; of a pruned one the kept weights are copied.
        device: Where to keep the copies, such as ``"cpu"``; None: where each tensor is.

    Raises:
        ValueError: For parameters that are sharded, lazy or on the meta device.

    Cost: a copy of all parameters and buffers, those that state dicts leave out as well.

    Source: Frankle and Carbin: The lottery ticket hypothesis, ICLR 2019; Frankle, Dziugaite, Roy and Carbin: Linear mode
    connectivity and the lottery ticket hypothesis, ICML 2020, for later steps than initialisation.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        team = team_of(model, None)
        self._tensors: dict[str, Tensor] = {}
        self._masks: dict[str, Mask] = {}
        for name, tensor, topology in _entries(team.model):
            _require_readable(name, tensor)
            value = tensor.detach()
            if topology is not None and not topology.row_major:
                value = value[topology.flat_index(value.device).argsort()]
            self._tensors[name] = value.to(device or value.device, copy=True)
            if topology is not None:
                self._masks[name] = topology.mask

    def __repr__(self) -> str:
        numbers = sum(tensor.numel() for tensor in self._tensors.values())
        return f"Snapshot({len(self._tensors)} tensors, {numbers:,} numbers)"

    def rewind_(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Sets a model's kept weights, its biases, norms and buffers to what they were, bit for bit.

        Gradients are dropped: they belong to other weights. What is pruned stays pruned.

        Args:
            model: The one that the snapshot is of, or one like it, pruned as much or more; its engines may differ.
            optimizer: Its state of the model's parameters is dropped, so that it starts over.

        Returns:
            The model.

        Raises:
            ValueError: For a model with other parameters, buffers, shapes or dtypes, or one that keeps weights which
                the snapshot doesn't have; it is untouched.
        """
        team = team_of(model, None)
        entries = _entries(team.model)
        names = {name for name, _, _ in entries}
        if names != self._tensors.keys():
            differing = sorted(names ^ self._tensors.keys())
            shown = ", ".join(map(repr, differing[:3])) + (", ..." if len(differing) > 3 else "")
            raise ValueError(f"rewind_: the model must have the snapshot's parameters and buffers (got others: {shown})")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):  # pyright: ignore
            raise ValueError(f"rewind_: optimizer must be a torch.optim.Optimizer (got {type(optimizer).__name__})")
        masks = {name: guard.mask for name, guard in _guards(team.model).items()}
        changes = [(tensor, self._of(name, tensor, topology, masks.get(name))) for name, tensor, topology in entries]
        with torch.no_grad():
            for tensor, value in changes:
                tensor.copy_(value)
                if isinstance(tensor, nn.Parameter):
                    tensor.grad = None
        if optimizer is not None:
            for tensor, _ in changes:
                optimizer.state.pop(tensor, None)
        return model

    def _of(self, name: str, tensor: Tensor, topology: BaseTopology | None, mask: Mask | None) -> Tensor:
        """The snapshot's numbers for one tensor of a model, as that lies in it."""
        _require_readable(name, tensor)
        value, held = self._tensors[name], self._masks.get(name)
        kept = topology.mask if topology is not None else mask
        shape, got = (tensor.shape if kept is None else kept.shape), value.shape if held is None else held.shape
        if shape != got or tensor.dtype != value.dtype:
            raise ValueError(
                f"rewind_: {name!r} must be {list(got)} {value.dtype}, as in the snapshot (got {list(shape)}"
                f" {tensor.dtype})"
            )
        if held is not None and (kept is None or bool((kept.words & ~held.words).any())):
            raise ValueError(
                f"rewind_: {name!r} must keep nothing that the snapshot lacks (got {held.count()} of {held.numel}"
                " weights in the snapshot)"
            )
        value = value.to(tensor.device)
        if kept is None:
            return value
        if held is not None:
            whole = value.new_zeros(held.shape)
            whole[held.to_dense(value.device)] = value
            value = whole
        if topology is not None:
            return value.reshape(-1)[topology.flat_index(value.device)]
        return value.masked_fill(~kept.to_dense(value.device), 0)

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors, dicts and lists: ``torch.save`` it, and load it with ``weights_only=True``."""
        masks = {name: {"words": mask.words, "shape": list(mask.shape)} for name, mask in self._masks.items()}
        return {"version": VERSION, "tensors": dict(self._tensors), "masks": masks}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device | str | None = None) -> Snapshot:
        """The snapshot that was saved.

        Args:
            state: From :meth:`state_dict`.
            device: Where to keep the tensors; None: where they are.

        Raises:
            ValueError: For something else, or of another version.
        """
        if not isinstance(state, Mapping) or state.get("version") != VERSION:  # pyright: ignore[reportUnnecessaryIsInstance]
            got = repr(state.get("version")) if isinstance(state, Mapping) else type(state).__name__  # pyright: ignore
            raise ValueError(f"Snapshot: the state dict must be a snapshot's, of version {VERSION} (got {got})")
        found = cls.__new__(cls)
        found._tensors = {name: tensor.detach().to(device or tensor.device) for name, tensor in state["tensors"].items()}
        found._masks = {name: Mask(mask["words"].cpu(), mask["shape"]) for name, mask in state["masks"].items()}
        for name, mask in found._masks.items():
            if name not in found._tensors or found._tensors[name].shape != (mask.count(),):
                raise ValueError(f"Snapshot: the state dict must hold what its mask of {name!r} keeps (got otherwise)")
        return found


def _entries(model: nn.Module) -> list[tuple[str, Tensor, BaseTopology | None]]:
    """Parameters and buffers by the dense model's names, all names of each, with the topology of a sparse weight."""
    found: list[tuple[str, Tensor, BaseTopology | None]] = []
    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        sparse = module.topologies if isinstance(module, SparseModule) else {}
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            dense = name.removesuffix(VALUES_SUFFIX)
            topology = sparse.get(dense) if dense != name else None
            found.append((dot + (name if topology is None else dense), tensor, topology))
    return found


def _guards(model: nn.Module) -> dict[str, Any]:
    """The guards of all masked parameters, by name; of a tied one by all its names."""
    by_id = {id(guard.parameter): guard for module in model.modules() for guard in guards(module).values()}
    return {name: by_id[id(tensor)] for name, tensor, _ in _entries(model) if id(tensor) in by_id}


def _require_readable(name: str, tensor: Tensor) -> None:
    got = "a sharded one" if hasattr(tensor, "device_mesh") else "one on the meta device" if tensor.is_meta else None
    got = "a lazy one" if nn.parameter.is_lazy(tensor) else got
    if got:
        raise ValueError(f"Snapshot: parameters must be whole and initialised (got {got}, {name!r})")
