"""Stateless sparse recurrent layers: one layer and direction of an LSTM, a GRU or a plain RNN over packed sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from snipkern.nn.functional import sparse_linear
from snipkern.ops.checks import require, require_bias, require_float, require_like
from snipkern.topology import BaseTopology

__all__ = ["GATES", "Weight", "recurrent_layer"]

NAME = "recurrent_layer"
#: Gates of each mode: its weights have ``GATES[mode] * hidden`` rows.
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}

#: The kept values of a weight, and where they are.
Weight = tuple[Tensor, BaseTopology]
#: Output (without a projection that is the hidden state) and cell (None but for an LSTM).
State = tuple[Tensor, Tensor | None]


def recurrent_layer(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    ih: Weight,
    hh: Weight,
    hr: Weight | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One direction of one layer, as ``torch.nn.LSTM``, ``GRU`` and ``RNN`` define it, over the kept weights only.

    Args:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU". Gates are in torch's order: i, f, g, o; r, z, n.
        x: ``[rows, in]``: the samples of step 0, of step 1, ..., as ``PackedSequence.data``. An unpacked
            ``[steps, batch, in]`` is that with equal batch sizes.
        batch_sizes: int64 ``[steps]`` on the CPU, never rising: how many samples each step has.
        h0: ``[batch, out]``, where ``batch`` is ``batch_sizes[0]``; None for zeros.
        c0: ``[batch, hidden]``, of an LSTM only; None for zeros.
        ih, hh: Values and topology of ``[gates * hidden, in]`` and ``[gates * hidden, out]``.
        hr: Of an LSTM's projection ``[out, hidden]``, or None: ``out`` is ``hidden``.
        bias_ih, bias_hh: ``[gates * hidden]`` or None.
        reverse: From the last step to the first.

    Returns:
        ``(output [rows, out], h_n [batch, out], c_n [batch, hidden])``, ``c_n`` of an LSTM only; differentiable any
        number of times in all floating tensors.

    Raises:
        OpError: For sizes, dtypes or devices that do not fit together.

    Cost: ``2 * rows * kept`` operations forward, twice that backward, besides the gates.
    """
    _check(mode, x, batch_sizes, h0, c0, ih, hh, hr, bias_ih, bias_hh)
    sizes: list[int] = batch_sizes.tolist()
    hidden, out = hh[1].rows // GATES[mode], hh[1].cols
    batch = sizes[0] if sizes else 0 if h0 is None else h0.shape[0]
    first: State = (
        x.new_zeros(batch, out) if h0 is None else h0,
        (x.new_zeros(batch, hidden) if c0 is None else c0) if mode == "LSTM" else None,
    )
    product = functools.partial(_product, hh, bias_hh)
    projection = None if hr is None else functools.partial(_product, hr, None)
    return recurrence(mode, sparse_linear(x, ih[0], bias_ih, ih[1]), sizes, first, product, projection, reverse)


def _product(weight: Weight, bias: Tensor | None, x: Tensor) -> Tensor:
    return sparse_linear(x, weight[0], bias, weight[1])


def _check(
    mode: str,
    x: Tensor,
    batch_sizes: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    ih: Weight,
    hh: Weight,
    hr: Weight | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> None:
    require(mode in GATES, NAME, f"mode must be one of {', '.join(GATES)}", mode)
    rows, out = hh[1].rows, hh[1].cols
    hidden = rows // GATES[mode]
    require_float(NAME, "x", x)
    require(rows % GATES[mode] == 0, NAME, f"hh must have {GATES[mode]} * hidden rows", rows)
    require(ih[1].rows == rows, NAME, f"ih must have {rows} rows, as hh", ih[1].rows)
    require(x.dim() == 2 and x.shape[1] == ih[1].cols, NAME, f"x must be [rows, {ih[1].cols}]", list(x.shape))
    if hr is None:
        require(out == hidden, NAME, f"hh must have {hidden} columns, as there is no hr", out)
    else:
        require(mode == "LSTM", NAME, "only an LSTM has a projection hr", mode)
        size = hr[1].rows, hr[1].cols
        require(size == (out, hidden), NAME, f"hr must be {out} x {hidden}", f"{size[0]} x {size[1]}")
    for name, weight in (("ih", ih), ("hh", hh), ("hr", hr)):
        if weight is not None:
            values, topology = weight
            require(list(values.shape) == [topology.nnz], NAME, f"{name} must have {topology.nnz} values", values.shape)
            require_like(NAME, f"the values of {name}", values, x, "x")
    for bias in (bias_ih, bias_hh):
        require_bias(NAME, bias, rows, x)
    require(
        batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 and batch_sizes.device.type == "cpu",
        NAME,
        "batch_sizes must be int64 [steps] on the CPU",
        f"{list(batch_sizes.shape)} {batch_sizes.dtype} on {batch_sizes.device}",
    )
    sizes = batch_sizes.tolist()
    require(
        all(a >= b for a, b in zip(sizes, [*sizes[1:], 0], strict=True)) and sum(sizes) == x.shape[0],
        NAME,
        f"batch_sizes must never rise, nor fall below 0, and add up to x's {x.shape[0]} rows",
        f"{len(sizes)} sizes that add up to {sum(sizes)}",
    )
    batch = sizes[0] if sizes else 0 if h0 is None else h0.shape[0]
    require(c0 is None or mode == "LSTM", NAME, "only an LSTM has a cell c0", mode)
    for name, state, size in (("h0", h0, out), ("c0", c0, hidden)):
        if state is not None:
            require(list(state.shape) == [batch, size], NAME, f"{name} must be [{batch}, {size}]", list(state.shape))
            require_like(NAME, name, state, x, "x")


# The recurrence itself, for any way to multiply.

Product = Callable[[Tensor], Tensor]


def recurrence(
    mode: str,
    gates: Tensor,
    sizes: list[int],
    first: State,
    product: Product,
    projection: Product | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All steps, given the input's share of the gates ``[rows, gates * hidden]``; see :func:`recurrent_layer`.

    Args:
        sizes: ``batch_sizes``.
        first: The states of the whole batch before its first step.
        product: Of an output with hh, and the bias.
        projection: Of a hidden state with hr, or None.
    """
    order = range(len(sizes))[:: -1 if reverse else 1]
    inputs = gates.split(sizes) if sizes else ()
    outputs: list[Tensor] = [first[0][:0]] * len(sizes)
    state = _cut(first, 0, sizes[order[0]]) if sizes else first
    ended: list[State] = []  # states of samples that have no further steps
    for t in order:
        active = state[0].shape[0]
        if sizes[t] < active:
            ended.insert(0, _cut(state, sizes[t], active))
            state = _cut(state, 0, sizes[t])
        elif sizes[t] > active:
            state = _joined([state, _cut(first, active, sizes[t])])
        state = CELLS[mode](inputs[t], state, product)
        if projection is not None:
            state = projection(state[0]), state[1]
        outputs[t] = state[0]
    h_n, c_n = _joined([state, *ended]) if ended else state
    return torch.cat([first[0][:0], *outputs]), h_n, c_n


def _cut(state: State, begin: int, end: int) -> State:
    return state[0][begin:end], None if state[1] is None else state[1][begin:end]


def _joined(states: list[State]) -> State:
    cells = [cell for _, cell in states if cell is not None]
    return torch.cat([hidden for hidden, _ in states]), torch.cat(cells) if cells else None


def _lstm(gates: Tensor, state: State, product: Product) -> State:
    h, c = state
    assert c is not None
    i, f, g, o = (gates + product(h)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(gates: Tensor, state: State, product: Product) -> State:
    h, _ = state
    of_input, of_state = gates.chunk(3, 1), product(h).chunk(3, 1)
    r = (of_input[0] + of_state[0]).sigmoid()
    z = (of_input[1] + of_state[1]).sigmoid()
    n = (of_input[2] + r * of_state[2]).tanh()
    return (1 - z) * n + z * h, None


def _rnn_tanh(gates: Tensor, state: State, product: Product) -> State:
    return (gates + product(state[0])).tanh(), None


def _rnn_relu(gates: Tensor, state: State, product: Product) -> State:
    return (gates + product(state[0])).relu(), None


CELLS: dict[str, Callable[[Tensor, State, Product], State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _rnn_tanh,
    "RNN_RELU": _rnn_relu,
}
