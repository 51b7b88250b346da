"""Recurrent layers as the graph sees them: hidden units that hear inputs and each other through their gates.

A hidden unit is alive where any of its gates hears something that is alive (without biases, where its candidate does),
or where it was so in a first state that the model made of its inputs. A unit that is read needs all of its gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from snipkern.allocation.channels import Channels, Constant, Outputs, Outside, Unknown, concatenated, gated, united
from snipkern.allocation.following import Origin
from snipkern.allocation.functions import CELLS, RECURRENT
from snipkern.nn.recurrent import SparseRecurrent

__all__ = ["Call", "Step", "called", "called_sparse", "run"]


@dataclass(frozen=True)
class Step:
    """One layer and direction of a recurrent function.

    Attributes:
        gates: How many.
        needs: The gate without which nothing comes out; None: any will do.
        hidden, outputs: Units, and what comes out of them; as many without a projection.
        ih, hh: Weights, ``[gates * hidden, inputs]`` and ``[gates * hidden, outputs]``, or what is kept of them.
        hr: The projection of hidden units to outputs, or None.
    """

    gates: int
    needs: int | None
    hidden: int
    outputs: int
    ih: Tensor
    hh: Tensor
    hr: Tensor | None


@dataclass(frozen=True)
class Call:
    """How a recurrent function was called.

    Attributes:
        kind: Key of ``RECURRENT``.
        x: Input; its channels are its last dimension.
        state, cell: First hidden and cell state, or None: zeros. The cell is an LSTM's.
        layers: Of each its directions.
    """

    kind: str
    x: Tensor
    state: Tensor | None
    cell: Tensor | None
    layers: list[list[Step]]


def called(name: str, args: Sequence[Any]) -> Call:
    """Reads the arguments of ``torch.lstm`` and its kin, with padded or packed sequences, and of cells."""
    kind = CELLS.get(name, name)
    if name in CELLS:
        x, state, ih, hh = args[:4]
        has_biases = len(args) > 4 and args[4] is not None
        layers = [[_step_of(kind, has_biases, ih, hh, None)]]
    else:
        packed = isinstance(args[3], (list, tuple))
        x, state, weights, has_biases, depth = (args[0], *args[2:6]) if packed else args[:5]
        ways = 2 if args[8 if packed else 7] else 1
        each = len(weights) // (depth * ways)
        rows = [weights[i : i + each] for i in range(0, len(weights), each)]
        last = 4 if has_biases else 2
        steps = [_step_of(kind, has_biases, row[0], row[1], row[last] if each > last else None) for row in rows]
        layers = [steps[i : i + ways] for i in range(0, len(steps), ways)]
    hidden, cell = state if isinstance(state, (list, tuple)) else (state, None)
    return Call(kind, x, hidden, cell, layers)


def _step_of(kind: str, has_biases: bool, ih: Tensor, hh: Tensor, hr: Tensor | None) -> Step:
    gates, candidate = RECURRENT[kind]
    hidden = ih.shape[0] // gates
    outputs = hidden if hr is None else hr.shape[0]
    return Step(gates, None if has_biases else candidate, hidden, outputs, ih, hh, hr)


def called_sparse(module: SparseRecurrent, x: Any, hx: Any) -> Call:
    """A sparse module's call: what it is given, and what it keeps of its weights."""
    kind = module.mode.lower()
    gates, candidate = RECURRENT[kind]
    needs, projected = None if module.bias else candidate, module.proj_size > 0

    def step(end: str) -> Step:
        ih, hh = (module.values_of(f"weight_{way}_{end}") for way in ("ih", "hh"))
        hr = module.values_of(f"weight_hr_{end}") if projected else None
        outputs = module.proj_size if projected else module.hidden_size
        return Step(gates, needs, module.hidden_size, outputs, ih, hh, hr)

    ways = ("", "_reverse") if module.bidirectional else ("",)
    layers = [[step(f"l{layer}{way}") for way in ways] for layer in range(module.num_layers)]
    hidden, cell = hx if isinstance(hx, (list, tuple)) else (hx, None)
    return Call(kind, x.data if isinstance(x, PackedSequence) else x, hidden, cell, layers)


def run(
    call: Call,
    name_of: Callable[[Tensor], str | None],
    origins: Mapping[Tensor, Origin | None],
    layer: Callable[[str, Channels], None],
) -> tuple[list[Channels], list[Channels], list[Channels]] | None:
    """Follows channels through all layers.

    Args:
        call: From :func:`called`.
        name_of: Name of a weight in the pool, or None.
        origins: Of tensors that are known.
        layer: Told the name of each pooled weight and the channels it is multiplied with, in forward order.

    Returns:
        The channels of the last layer's outputs; then those of each layer's and direction's last outputs, and hidden
        units. None if no weight is pooled.
    """
    if not any(name_of(weight) for row in call.layers for step in row for weight in (step.ih, step.hh)):
        return None
    x = _channels(call.x, origins)
    states: list[Channels] = []
    units: list[Channels] = []
    for row in call.layers:
        for step in row:
            out, hidden = _step(call, step, x, name_of, origins, layer)
            states.append(out)
            units.append(hidden)
        x = states[-1] if len(row) == 1 else concatenated(states[-2:])
    return [x], states, units


def _step(
    call: Call,
    step: Step,
    x: Channels,
    name_of: Callable[[Tensor], str | None],
    origins: Mapping[Tensor, Origin | None],
    layer: Callable[[str, Channels], None],
) -> tuple[Channels, Channels]:
    ih, hh, hr = name_of(step.ih), name_of(step.hh), None if step.hr is None else name_of(step.hr)
    rows = step.gates * step.hidden
    # What a dense weight passes on is alive if anything is.
    parts = [Outside(rows) if name is None else Outputs(rows, name) for name in (ih, hh)]
    units = gated(united(parts), step.gates, step.needs)
    first = _first(call.state, step.outputs, origins)
    carried = first if call.kind == "gru" else _first(call.cell, step.hidden, origins)
    if not isinstance(carried, Constant):
        units = united([units, carried])  # it goes from step to step without any weight
    out = units
    if step.hr is not None:
        out = Outside(step.outputs) if hr is None else Outputs(step.outputs, hr)
    if ih is not None:
        layer(ih, x)
    if hh is not None:
        layer(hh, united([out, first]))
    if hr is not None:
        layer(hr, units)
    return out, units


def _channels(tensor: Tensor, origins: Mapping[Tensor, Origin | None]) -> Channels:
    origin = origins.get(tensor)
    if origin is None:
        return Outside(tensor.shape[-1])
    return origin.channels if origin.dim == tensor.dim() - 1 else Unknown()


def _first(state: Tensor | None, size: int, origins: Mapping[Tensor, Origin | None]) -> Channels:
    """Of a first state: zeros are the same for all inputs, as is a parameter."""
    if state is None:
        return Constant(size)
    if origins.get(state) is None and (state.is_leaf and (state.requires_grad or not bool(state.any()))):
        return Constant(state.shape[-1])
    return _channels(state, origins)
