"""Recurrent layers as the graph sees them: hidden units that hear inputs and each other through their gates.

A hidden unit is alive where any of its gates hears something that is alive (without biases, where its candidate does),
or where it was so in a first state that the model made of its inputs. A unit that is read needs all of its gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snipkern.allocation.channels import Channels, Constant, Outputs, Outside, Unknown, concatenated, gated, united
from snipkern.allocation.following import Origin
from snipkern.allocation.functions import CELLS, RECURRENT

__all__ = ["Step", "called", "run"]


@dataclass(frozen=True)
class Step:
    """One layer and direction of a recurrent function.

    Attributes:
        gates: How many.
        needs: The gate without which nothing comes out; None: any will do.
        ih, hh: Weights, ``[gates * hidden, inputs]`` and ``[gates * hidden, outputs]``.
        hr: The projection of hidden units to outputs, or None.
    """

    gates: int
    needs: int | None
    ih: Tensor
    hh: Tensor
    hr: Tensor | None


@dataclass(frozen=True)
class Call:
    """How a recurrent function was called.

    Attributes:
        kind: Key of ``RECURRENT``.
        x: Input; its channels are its last dimension.
        state, cell: First hidden and cell state; the cell's is None but for an LSTM.
        layers: Of each its directions.
    """

    kind: str
    x: Tensor
    state: Tensor
    cell: Tensor | None
    layers: list[list[Step]]


def called(name: str, args: Sequence[Any]) -> Call:
    """Reads the arguments of ``torch.lstm`` and its kin, with padded or packed sequences, and of cells."""
    kind = CELLS.get(name, name)
    gates, candidate = RECURRENT[kind]
    if name in CELLS:
        x, state, ih, hh = args[:4]
        has_biases = len(args) > 4 and args[4] is not None
        layers = [[Step(gates, None if has_biases else candidate, ih, hh, None)]]
    else:
        packed = isinstance(args[3], (list, tuple))
        x, state, weights, has_biases, depth = (args[0], *args[2:6]) if packed else args[:5]
        ways = 2 if args[8 if packed else 7] else 1
        each = len(weights) // (depth * ways)
        rows = [weights[i : i + each] for i in range(0, len(weights), each)]
        needs = None if has_biases else candidate
        last = 4 if has_biases else 2
        steps = [Step(gates, needs, row[0], row[1], row[last] if each > last else None) for row in rows]
        layers = [steps[i : i + ways] for i in range(0, len(steps), ways)]
    hidden, cell = state if isinstance(state, (list, tuple)) else (state, None)
    return Call(kind, x, hidden, cell, layers)


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
    # What a dense weight passes on is alive if anything is.
    parts = [Outside(w.shape[0]) if n is None else Outputs(w.shape[0], n) for n, w in ((ih, step.ih), (hh, step.hh))]
    units = gated(united(parts), step.gates, step.needs)
    first = _first(call.state, origins)
    carried = first if call.kind == "gru" else _first(call.cell, origins) if call.cell is not None else None
    if carried is not None and not isinstance(carried, Constant):
        units = united([units, carried])  # it goes from step to step without any weight
    out = units
    if step.hr is not None:
        out = Outside(step.hr.shape[0]) if hr is None else Outputs(step.hr.shape[0], hr)
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


def _first(state: Tensor, origins: Mapping[Tensor, Origin | None]) -> Channels:
    """Of a first state: zeros are the same for all inputs, as is a parameter."""
    if origins.get(state) is None and (state.is_leaf and (state.requires_grad or not bool(state.any()))):
        return Constant(state.shape[-1])
    return _channels(state, origins)
