"""Recurrent modules at work: what one has to compute in a training step, and what that is predicted to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from snipkern.engine.cost_model import predict
from snipkern.engine.prediction import Prediction
from snipkern.engine.workload import ASSUMED_ROWS, CPU, Call, Workload

__all__ = ["RecurrentWorkload", "predict_recurrent", "recurrent_workload", "shortened"]

# Of a module that nobody has seen at work.
ASSUMED_STEPS, ASSUMED_BATCH = 32, ASSUMED_ROWS // 4
# The cost model knows single products of few hundred rows and more, each called by itself; a recurrent module has other
# costs for each of its steps. What it says is believed this far from break-even only.
SPREAD = 3.0
# To be timed, a module is given so many steps of its sequence at least, and more where that takes no longer than this.
FEWEST_STEPS, MICROSECONDS = 8, 5e3
MODULES: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


@dataclass(frozen=True)
class RecurrentWorkload:
    """One recurrent module and its input.

    Attributes:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        input_size, hidden_size, proj_size, num_layers, bidirectional, bias: As of the module.
        kept: Kept entries of each weight, in the module's order.
        steps: Of the sequence.
        batch: Samples that a step has, on average where sequences are packed.
        dtype: What it computes in; under autocast that is not the weights'.
        device: Where the module is.
        input_grad: Whether the input wants a gradient; an embedding's output does.
        assumed: Whether the input is a guess.
    """

    mode: str
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    bias: bool
    kept: tuple[int, ...]
    steps: int
    batch: int
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    input_grad: bool = True
    assumed: bool = False

    @property
    def rows(self) -> int:
        """Samples of all steps."""
        return self.steps * self.batch

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of the input, steps first."""
        return self.steps, self.batch, self.input_size

    def module(self) -> nn.RNNBase:
        """A dense module like it, on its device, with weights that are not set yet; draws no random numbers."""
        options: dict[str, Any] = {"bias": self.bias, "bidirectional": self.bidirectional}
        if self.mode == "LSTM":
            options["proj_size"] = self.proj_size
        elif self.mode.startswith("RNN"):
            options["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        sizes = self.input_size, self.hidden_size, self.num_layers
        made = MODULES[self.mode](*sizes, **options, dtype=self.dtype, device="meta")
        return made if self.device.type == "meta" else made.to_empty(device=self.device)

    def products(self) -> list[tuple[Workload, int]]:
        """The matrix products with each weight, and how many times each is done in a training step."""
        made: list[tuple[Workload, int]] = []
        shapes = [
            tuple(weight.shape) for name, weight in _on_meta(self).named_parameters() if name.startswith("weight")
        ]
        directions = 1 + self.bidirectional
        of_one = len(shapes) // (self.num_layers * directions)
        for i, (shape, kept) in enumerate(zip(shapes, self.kept, strict=True)):
            of_input = i % of_one == 0
            input_grad = self.input_grad or not of_input or i >= directions * of_one
            rows, times = (self.rows, 1) if of_input else (self.batch, self.steps)
            image = rows, shape[1]
            made.append((Workload(shape, kept, image, self.dtype, self.device, input_grad=input_grad), times))
        return made


def _on_meta(work: RecurrentWorkload) -> nn.RNNBase:
    return replace(work, device=torch.device("meta")).module()


def recurrent_workload(module: nn.RNNBase, kept: Sequence[int], call: Call | None) -> RecurrentWorkload:
    """Of a recurrent module, as it was called, or for an input of usual size where that is not known.

    Args:
        module: Dense.
        kept: Kept entries of each weight, in the module's order.
        call: How it was called.
    """
    weight = cast(torch.Tensor, module.weight_ih_l0)
    seen = None if call is None else _sequence(call, bool(module.batch_first))
    steps, batch = seen or (ASSUMED_STEPS, ASSUMED_BATCH)
    return RecurrentWorkload(
        module.mode,
        module.input_size,
        module.hidden_size,
        module.proj_size,
        module.num_layers,
        bool(module.bidirectional),
        bool(module.bias),
        tuple(kept),
        steps,
        batch,
        weight.dtype if call is None else call.dtype,
        weight.device,
        input_grad=call is None or call.input_grad,
        assumed=seen is None,
    )


def _sequence(call: Call, batch_first: bool) -> tuple[int, int] | None:
    """Steps and batch of an input; None for an empty one."""
    size = call.input
    if len(size) < 2 or math.prod(size) == 0:
        return None
    if call.steps:
        return call.steps, max(1, round(size[0] / call.steps))
    if len(size) == 2:
        return size[0], 1
    return (size[1], size[0]) if batch_first else (size[0], size[1])


def predict_recurrent(work: RecurrentWorkload) -> Prediction:
    """What the cost model says of a module's products on the CPU, one by one."""
    dense = guard = sparse = 0.0
    for product, times in work.products():
        found = predict(product, "csr")
        dense += times * found.dense
        sparse += times * found.sparse
        guard += found.masked - found.dense
    return Prediction(dense, dense + guard, sparse, SPREAD, "csr")


def shortened(work: RecurrentWorkload) -> RecurrentWorkload:
    """The same module with fewer steps, for which what is to be compared comes out the same in less time."""
    most = int(work.steps * MICROSECONDS / max(predict_recurrent(work).dense, 1.0))
    return replace(work, steps=min(work.steps, max(FEWEST_STEPS, most)))
