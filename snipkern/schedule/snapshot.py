"""Snapshots: a model's numbers at initialisation or after some steps, to go back to with fewer weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.distributed import team_of
from snipkern.masks import Mask
from snipkern.nn.masked import guards
from snipkern.nn.narrow import dense_name, held_by
from snipkern.parallel.shards import is_sharded
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
        model: Dense or pruned, plain or wrapped in DistributedDataParallel; what is pruned already is not kept.
        device: Where to keep the copies, such as ``"cpu"``; None: where each tensor is.

    Raises:
        ValueError: For parameters that are sharded, lazy or on the meta device.

    Cost: a copy of all parameters and buffers, those that state dicts leave out as well.

    Source: Frankle and Carbin: The lottery ticket hypothesis, ICLR 2019; for later steps than initialisation: Frankle,
    Dziugaite, Roy and Carbin: Linear mode connectivity and the lottery ticket hypothesis, ICML 2020.
    """

    def __init__(self, model: nn.Module, device: torch.device | str | None = None) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._masks: dict[str, Mask] = {}
        for entry in entries_of(team_of(model).model):
            _require_readable(entry)
            value, topology = entry.tensor.detach(), entry.topology
            if entry.mask is not None:
                self._masks[entry.name] = entry.mask
                if topology is None:
                    value = value[entry.mask.to_dense(value.device)]
                elif not topology.row_major:
                    value = value[topology.flat_index(value.device).argsort()]
            self._tensors[entry.name] = value.to(device or value.device, copy=True)

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
        entries = self.require_fits(model)
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):  # pyright: ignore
            raise ValueError(f"rewind_: optimizer must be a torch.optim.Optimizer (got {type(optimizer).__name__})")
        with torch.no_grad():
            for entry in entries:
                entry.tensor.copy_(self._value(entry))
                if isinstance(entry.tensor, nn.Parameter):
                    entry.tensor.grad = None
        if optimizer is not None:
            for entry in entries:
                optimizer.state.pop(entry.tensor, None)
        return model

    def require_fits(self, model: nn.Module) -> list[Entry]:
        """That a model can be rewound to this; returns what it has. More pruning can't change that.

        Raises:
            ValueError: As :meth:`rewind_`.
        """
        entries = entries_of(team_of(model).model)
        differing = sorted({entry.name for entry in entries} ^ self._tensors.keys())
        if differing:
            shown = ", ".join(map(repr, differing[:3])) + (", ..." if len(differing) > 3 else "")
            raise ValueError(f"rewind_: the model must have what the snapshot has (got differing names: {shown})")
        for entry in entries:
            _require_readable(entry)
            value, held = self._tensors[entry.name], self._masks.get(entry.name)
            shape, got = entry.shape, value.shape if held is None else held.shape
            if shape != got or entry.tensor.dtype != value.dtype:
                raise ValueError(
                    f"rewind_: {entry.name!r} must be {list(got)} {value.dtype}, as in the snapshot (got {list(shape)}"
                    f" {entry.tensor.dtype})"
                )
            if held is not None and (entry.mask is None or bool((entry.mask.words & ~held.words).any())):
                raise ValueError(
                    f"rewind_: {entry.name!r} must keep nothing that the snapshot lacks (got a snapshot of"
                    f" {held.count()} of {held.numel} weights, and others in the model)"
                )
        return entries

    def _value(self, entry: Entry) -> Tensor:
        """The numbers for one tensor of a model, as that lies in it."""
        value, held = self._tensors[entry.name].to(entry.tensor.device), self._masks.get(entry.name)
        if entry.mask is None:
            return value
        if held is not None:
            whole = value.new_zeros(held.shape)
            whole[held.to_dense(value.device)] = value
            value = whole
        if entry.topology is not None:
            return value.reshape(-1)[entry.topology.flat_index(value.device)]
        return value.masked_fill(~entry.mask.to_dense(value.device), 0)

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
        found._tensors = {
            name: tensor.detach().to(device or tensor.device) for name, tensor in state["tensors"].items()
        }
        found._masks = {name: Mask(mask["words"].cpu(), mask["shape"]) for name, mask in state["masks"].items()}
        for name, mask in found._masks.items():
            if name not in found._tensors or found._tensors[name].shape != (mask.count(),):
                raise ValueError(f"Snapshot: the state dict must hold what its mask of {name!r} keeps (got otherwise)")
        return found


@dataclass(frozen=True)
class Entry:
    """A parameter or buffer: its name in the dense model, its mask if it is pruned, its topology if it is sparse."""

    name: str
    tensor: Tensor
    mask: Mask | None
    topology: BaseTopology | None

    @property
    def shape(self) -> torch.Size:
        """In the dense model."""
        return self.tensor.shape if self.mask is None else self.mask.shape


def entries_of(model: nn.Module) -> list[Entry]:
    """All parameters and buffers of a model, of shared ones all names."""
    masked: dict[int, Mask] = {}
    for module in model.modules():
        for name, guard in guards(module).items():
            masked[id(module._parameters[name])] = guard.mask
    found: list[Entry] = []
    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            dense = dense_name(module, name)
            held = held_by(module, dense)
            topology = None if held is None else held.topology
            mask = masked.get(id(tensor)) if held is None else held.mask
            found.append(Entry(dot + dense, tensor, mask, topology))
    return found


def _require_readable(entry: Entry) -> None:
    tensor = entry.tensor
    got = "a sharded one" if is_sharded(tensor) else "one on the meta device" if tensor.is_meta else None
    got = "a lazy one" if nn.parameter.is_lazy(tensor) else got
    if got:
        raise ValueError(f"Snapshot: parameters must be whole and initialised (got {got}, {entry.name!r})")
