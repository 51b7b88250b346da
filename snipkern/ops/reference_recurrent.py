"""Recurrent layers in plain PyTorch, step by step; see schema_recurrent.py.

:func:`recurrence` takes any way to multiply: dense weights here, sparse ops where derivatives of derivatives or devices
without a kernel need them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snipkern.ops import schema_recurrent
from snipkern.ops.schema_recurrent import GATES, GRU, LSTM, RNN_RELU, SAVED, require_sizes, tile_samples
from snipkern.topology.csr import flat_index

#: Output (without a projection that is the hidden state) and cell (None but for an LSTM).
State = tuple[Tensor, Tensor | None]
Product = Callable[[Tensor], Tensor]


def recurrence(
    mode: int,
    gates: Tensor,
    sizes: list[int],
    first: State,
    product: Product,
    projection: Product | None,
    reverse: bool,
    record: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All steps, given the input's share of the gates ``[rows, gates * hidden]``, its bias included.

    Args:
        mode: A place in ``MODES``.
        sizes: ``batch_sizes``.
        first: h0 and c0.
        product: Of an output with hh, and the bias.
        projection: Of a hidden state with hr, or None.
        record: Filled with what is saved of each step, ``[samples, SAVED * hidden]``.

    Returns:
        output, h_n and c_n.
    """
    order = range(len(sizes))[:: -1 if reverse else 1]
    inputs = gates.split(sizes) if sizes else ()
    outputs: list[Tensor] = [first[0][:0]] * len(sizes)
    if record is not None:
        record[:] = outputs
    state = _cut(first, 0, sizes[order[0]]) if sizes else first
    ended: list[State] = []  # states of samples that have no further steps
    for t in order:
        active = state[0].shape[0]
        if sizes[t] < active:
            ended.insert(0, _cut(state, sizes[t], active))
            state = _cut(state, 0, sizes[t])
        elif sizes[t] > active:
            state = _joined([state, _cut(first, active, sizes[t])])
        state, saved = CELLS[mode](inputs[t], state, product)
        if projection is not None:
            state = projection(state[0]), state[1]
        outputs[t] = state[0]
        if record is not None and saved:
            record[t] = torch.cat(saved, 1)
    h_n, c_n = _joined([state, *ended]) if ended else state
    return torch.cat([first[0][:0], *outputs]), h_n, c_n


def _cut(state: State, begin: int, end: int) -> State:
    return state[0][begin:end], None if state[1] is None else state[1][begin:end]


def _joined(states: list[State]) -> State:
    cells = [cell for _, cell in states if cell is not None]
    return torch.cat([hidden for hidden, _ in states]), torch.cat(cells) if cells else None


Cell = Callable[[Tensor, State, Product], tuple[State, list[Tensor]]]


def _lstm(gates: Tensor, state: State, product: Product) -> tuple[State, list[Tensor]]:
    h, c = state
    assert c is not None
    i, f, g, o = (gates + product(h)).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return (o * c.tanh(), c), [i, f, g, o, c]


def _gru(gates: Tensor, state: State, product: Product) -> tuple[State, list[Tensor]]:
    h, _ = state
    of_input, of_state = gates.chunk(3, 1), product(h).chunk(3, 1)
    r = (of_input[0] + of_state[0]).sigmoid()
    z = (of_input[1] + of_state[1]).sigmoid()
    n = (of_input[2] + r * of_state[2]).tanh()
    return ((1 - z) * n + z * h, None), [r, z, n, of_state[2]]


def _rnn_tanh(gates: Tensor, state: State, product: Product) -> tuple[State, list[Tensor]]:
    return ((gates + product(state[0])).tanh(), None), []


def _rnn_relu(gates: Tensor, state: State, product: Product) -> tuple[State, list[Tensor]]:
    return ((gates + product(state[0])).relu(), None), []


CELLS: tuple[Cell, ...] = (_lstm, _gru, _rnn_tanh, _rnn_relu)


class Layer:
    """The arguments of both ops in the sums' dtype, weights dense."""

    def __init__(self, name: str, given: list[Any], mode: int) -> None:
        x, batch_sizes, h0, c0, values_ih, ih, values_hh, hh, values_hr, hr, bias_ih, bias_hh = given
        self.sizes = require_sizes(name, batch_sizes, h0.shape[0], x.shape[0])
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.batch, self.outputs = h0.shape
        self.hidden = self.outputs if c0 is None else c0.shape[1]
        self.mode, rows = mode, GATES[mode] * self.hidden
        self.x, self.h0, self.c0, self.bias_ih, self.bias_hh = map(self.wide, (x, h0, c0, bias_ih, bias_hh))
        # Positions of the kept weights, and the weights.
        self.at = {
            "ih": flat_index(ih, rows, x.shape[1], values_ih.shape[0]),
            "hh": flat_index(hh, rows, self.outputs, values_hh.shape[0]),
        }
        self.ih = self.dense("ih", values_ih, rows, x.shape[1])
        self.hh = self.dense("hh", values_hh, rows, self.outputs)
        self.hr: Tensor | None = None
        if values_hr is not None:
            self.at["hr"] = flat_index(hr, self.outputs, self.hidden, values_hr.shape[0])
            self.hr = self.dense("hr", values_hr, self.outputs, self.hidden)

    def wide(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(self.dtype)

    def dense(self, name: str, values: Tensor, rows: int, cols: int) -> Tensor:
        weight = values.new_zeros(rows * cols, dtype=self.dtype)
        weight[self.at[name]] = values.to(self.dtype)
        return weight.view(rows, cols)

    def kept(self, name: str, gradient: Tensor) -> Tensor:
        """Of a weight's dense gradient."""
        return gradient.reshape(-1)[self.at[name]]


def recurrent_csr(*args: Any) -> tuple[Tensor, ...]:
    empty = schema_recurrent.recurrent_csr(*args)
    assert isinstance(empty, tuple)
    *given, mode, reverse, save = args
    layer = Layer("recurrent_csr", given, mode)
    record: list[Tensor] | None = [] if save else None
    product = functools.partial(F.linear, weight=layer.hh, bias=layer.bias_hh)
    projection = None if layer.hr is None else functools.partial(F.linear, weight=layer.hr)
    gates, first = F.linear(layer.x, layer.ih, layer.bias_ih), (layer.h0, layer.c0)
    *results, c_n = recurrence(mode, gates, layer.sizes, first, product, projection, reverse, record)
    results.append(gates.new_empty(0) if c_n is None else c_n)
    saved = packed(record, layer.batch) if record and SAVED[mode] else gates.new_empty(0)
    # Copied: without steps, the last state is the first, and an op's result must be a tensor of its own.
    return *(result.to(args[0].dtype, copy=True) for result in results), saved


def packed(steps: list[Tensor], batch: int) -> Tensor:
    """``[samples, features]`` of every step as ``[tiles][steps][features][samples]``, flat; zeros for no sample."""
    samples = tile_samples(batch)
    tiles, features = -(-batch // samples), steps[0].shape[1]
    padded = torch.stack([F.pad(step, (0, 0, 0, tiles * samples - step.shape[0])) for step in steps])
    return padded.view(len(steps), tiles, samples, features).permute(1, 0, 3, 2).reshape(-1)


def unpacked(saved: Tensor, sizes: list[int], batch: int, features: int) -> list[Tensor]:
    """The way back."""
    if saved.numel() == 0:
        return [saved.new_empty(size, features) for size in sizes]
    samples = tile_samples(batch)
    tiles = -(-batch // samples)
    steps = saved.view(tiles, len(sizes), features, samples).permute(1, 0, 3, 2).reshape(len(sizes), -1, features)
    return [step[:size] for step, size in zip(steps, sizes, strict=True)]


def recurrent_csr_backward(*args: Any) -> tuple[Tensor, ...]:
    schema_recurrent.recurrent_csr_backward(*args)
    grad_output, grad_h_n, grad_c_n, *given, output, saved, mode, reverse, with_x = args
    layer = Layer("recurrent_csr_backward", given, mode)
    hidden, sizes = layer.hidden, layer.sizes
    order = range(len(sizes))[:: -1 if reverse else 1]
    given_grads = layer.wide(grad_output).split(sizes) if sizes else ()
    outputs = layer.wide(output).split(sizes) if sizes else ()
    kept = unpacked(saved, sizes, layer.batch, SAVED[mode] * hidden)
    dh, dc = layer.wide(grad_h_n).clone(), None if grad_c_n is None else layer.wide(grad_c_n).clone()
    of_input: list[Tensor] = [layer.x.new_empty(0)] * len(sizes)  # gradients of gates, for the input and for the state
    of_state, before, wholes, projected = list(of_input), list(of_input), list(of_input), list(of_input)
    for place in reversed(range(len(sizes))):
        t = order[place]
        size = sizes[t]
        # Rows of dh and dc are of the whole batch: those of samples without this step wait.
        had = min(size, sizes[order[place - 1]]) if place > 0 else 0
        last = outputs[order[place - 1]][:had] if place > 0 else outputs[t][:0]
        before[t] = torch.cat([last, layer.h0[had:size]])
        dh[:size] += given_grads[t]
        grad = dh[:size]
        if mode == LSTM:
            assert dc is not None
            i, f, g, o, c = kept[t].chunk(5, 1)
            last_c = kept[order[place - 1]][:had, 4 * hidden :] if place > 0 else c[:0]
            cell_before = torch.cat([last_c, layer.c0[had:size]])
            if layer.hr is not None:
                projected[t], wholes[t] = grad.clone(), o * c.tanh()
                grad = grad @ layer.hr
            cell = dc[:size] + grad * o * (1 - c.tanh() ** 2)
            parts = [
                cell * g * i * (1 - i),
                cell * cell_before * f * (1 - f),
                cell * i * (1 - g**2),
                grad * c.tanh() * o * (1 - o),
            ]
            of_input[t] = of_state[t] = torch.cat(parts, 1)
            dc[:size] = cell * f
            dh[:size] = of_state[t] @ layer.hh
        elif mode == GRU:
            r, z, n, of_h = kept[t].chunk(4, 1)
            dn = grad * (1 - z) * (1 - n**2)
            dz = grad * (before[t] - n) * z * (1 - z)
            dr = dn * of_h * r * (1 - r)
            of_input[t], of_state[t] = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
            dh[:size] = grad * z + of_state[t] @ layer.hh
        else:
            h = outputs[t]
            of_input[t] = of_state[t] = grad.masked_fill(h <= 0, 0) if mode == RNN_RELU else grad * (1 - h**2)
            dh[:size] = of_state[t] @ layer.hh
    rows, none = GATES[mode] * hidden, layer.x.new_empty(0)
    of_inputs = torch.cat([layer.x.new_empty(0, rows), *of_input])
    of_states = torch.cat([layer.x.new_empty(0, rows), *of_state])
    befores = torch.cat([layer.x.new_empty(0, layer.outputs), *before])
    of_hr = none
    if layer.hr is not None:
        left, right = layer.x.new_empty(0, layer.outputs), layer.x.new_empty(0, hidden)
        of_hr = layer.kept("hr", torch.cat([left, *projected]).t() @ torch.cat([right, *wholes]))
    results = (
        of_inputs @ layer.ih if with_x else none,
        dh,
        none if dc is None else dc,
        layer.kept("ih", of_inputs.t() @ layer.x),
        layer.kept("hh", of_states.t() @ befores),
        of_hr,
        none if layer.bias_ih is None else of_inputs.sum(0),
        none if layer.bias_hh is None else of_states.sum(0),
    )
    return tuple(result.to(output.dtype, copy=True) for result in results)
