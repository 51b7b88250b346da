"""Changes of a model on trial: parameters, buffers and sizes that are cut, and put back if that won't do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snipkern.masks import Mask
from snipkern.pool import Prunable

__all__ = ["Cuts", "picker"]


class Cuts:
    """Changes of a model, which can be undone until they are finished."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.model, self.optimizer = model, optimizer
        self.shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._undo: list[Callable[[], object]] = []
        self._moves: list[tuple[nn.Parameter, nn.Parameter, Callable[[Tensor], Tensor]]] = []

    def zero(self, entry: Prunable, mask: Mask) -> None:
        parameter, before = entry.parameter, entry.parameter.detach().clone()
        self._undo.append(lambda: parameter.data.copy_(before))
        parameter.data.masked_fill_(~mask.to_dense(parameter.device), 0)

    def parameter(self, module: nn.Module, own: str, name: str, rows: Any, cols: Any) -> None:
        before = module._parameters[own]
        assert before is not None
        pick = picker(rows, cols, before.device)
        after = nn.Parameter(pick(before.detach()), before.requires_grad)
        if before.grad is not None:
            after.grad = pick(before.grad)
        self._undo.append(lambda: module._parameters.__setitem__(own, before))
        self._moves.append((before, after, pick))
        self.shapes[name] = tuple(before.shape), tuple(after.shape)
        module._parameters[own] = after

    def buffer(self, module: nn.Module, own: str, name: str, rows: Any) -> None:
        before = module._buffers[own]
        assert before is not None
        after = picker(rows, None, before.device)(before)
        self._undo.append(lambda: module._buffers.__setitem__(own, before))
        self.shapes[name] = tuple(before.shape), tuple(after.shape)
        module._buffers[own] = after

    def attributes(self, module: nn.Module, **values: int) -> None:
        for name, value in values.items():
            before = getattr(module, name)
            self._undo.append(lambda name=name, before=before: setattr(module, name, before))
            setattr(module, name, value)

    def undo(self) -> None:
        with torch.no_grad():
            for action in reversed(self._undo):
                action()

    def finish(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The optimiser trains the smaller parameters from now on; returns the shapes before and after."""
        for before, after, pick in self._moves if self.optimizer else ():
            assert self.optimizer is not None
            for group in self.optimizer.param_groups:
                group["params"] = [after if parameter is before else parameter for parameter in group["params"]]
            state = self.optimizer.state.pop(before, None)
            if state is not None:
                self.optimizer.state[after] = {
                    key: pick(value) if isinstance(value, Tensor) and value.shape == before.shape else value
                    for key, value in state.items()
                }
        return self.shapes


def picker(rows: Any, cols: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    at = [None if index is None else torch.as_tensor(index, device=device) for index in (rows, cols)]

    def pick(tensor: Tensor) -> Tensor:
        for dim, index in enumerate(at):
            tensor = tensor if index is None else tensor.index_select(dim, index)
        return tensor.clone() if all(index is None for index in at) else tensor

    return pick
