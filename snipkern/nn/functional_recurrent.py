"""Stateless sparse recurrent layers: one layer and direction of an LSTM, a GRU or a plain RNN over packed sequences."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from snipkern.nn.functional import sparse_linear
from snipkern.ops.checks import require, require_bias, require_float, require_like
from snipkern.ops.eager import differentiable
from snipkern.ops.reference_recurrent import recurrence
from snipkern.ops.schema_recurrent import GATES, MODES, require_sizes, require_steps
from snipkern.topology import BaseTopology, Topology

__all__ = ["Weight", "recurrent_layer"]

NAME = "recurrent_layer"
# Devices with a kernel for all steps; what computes without one on the CPU is the op's reference.
FUSED_DEVICES = ("cpu", "meta")

#: The kept values of a weight, and where they are.
Weight = tuple[Tensor, BaseTopology]

recurrent_csr = differentiable("recurrent_csr")


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

    Cost: ``2 * rows * kept`` operations forward, twice that backward, besides the gates. On the CPU one kernel takes
    all steps where all weights keep single ones. On other devices, and with blocks, every step is a product of its
    own, and autograd keeps what each of them needs.
    """
    hidden, out = _check(mode, x, batch_sizes, h0, c0, ih, hh, hr, bias_ih, bias_hh)
    if h0 is None or (c0 is None and mode == "LSTM"):
        batch = int(batch_sizes[0]) if h0 is None and len(batch_sizes) else 0 if h0 is None else h0.shape[0]
        h0 = x.new_zeros(batch, out) if h0 is None else h0
        c0 = x.new_zeros(batch, hidden) if c0 is None and mode == "LSTM" else c0
    weights = [weight for weight in (ih, hh, hr) if weight is not None]
    if x.device.type in FUSED_DEVICES and all(type(topology) is Topology for _, topology in weights):
        indexed = [(values, topology.on(x.device)) for values, topology in weights if isinstance(topology, Topology)]
        flat = [tensor for pair in indexed for tensor in pair] + [None] * (6 - 2 * len(indexed))
        given = (x, batch_sizes, h0, c0, *flat, bias_ih, bias_hh)
        save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given)
        output, h_n, c_n, _ = recurrent_csr(*given, MODES.index(mode), reverse, save)
        return output, h_n, c_n if mode == "LSTM" else None
    sizes = require_sizes(NAME, batch_sizes, h0.shape[0], x.shape[0])
    gates = sparse_linear(x, ih[0], bias_ih, ih[1])
    product = functools.partial(_product, hh, bias_hh)
    projection = None if hr is None else functools.partial(_product, hr, None)
    return recurrence(MODES.index(mode), gates, sizes, (h0, c0), product, projection, reverse)


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
) -> tuple[int, int]:
    """Returns how many features the hidden state and the output have."""
    require(mode in MODES, NAME, f"mode must be one of {', '.join(MODES)}", mode)
    gates = GATES[MODES.index(mode)]
    rows, out = hh[1].rows, hh[1].cols
    hidden = rows // gates
    require_float(NAME, "x", x)
    require(rows % gates == 0, NAME, f"hh must have {gates} * hidden rows", rows)
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
    require_steps(NAME, batch_sizes)
    require(c0 is None or mode == "LSTM", NAME, "only an LSTM has a cell c0", mode)
    for name, state, size in (("h0", h0, out), ("c0", c0, hidden)):
        if state is not None:
            fits = state.dim() == 2 and state.shape[1] == size
            require(fits, NAME, f"{name} must be [batch, {size}]", list(state.shape))
            require_like(NAME, name, state, x, "x")
    return hidden, out
