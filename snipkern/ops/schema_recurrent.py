"""The contract of one direction of one recurrent layer with sparse weights, over packed sequences.

Rows of x and output are the samples of step 0, of step 1, ..., as in ``torch.nn.utils.rnn.PackedSequence``. Gates are
in torch's order: i, f, g, o of an LSTM, r, z, n of a GRU.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from snipkern.ops.checks import require, require_bias, require_float, require_like, require_topology
from snipkern.ops.schema import op

#: The op's ``mode`` is a place in this list.
MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
LSTM, GRU, RNN_TANH, RNN_RELU = range(4)
#: Gates of each mode: its weights have ``GATES[mode] * hidden`` rows.
GATES = (4, 3, 1, 1)
#: What is saved of a sample and step, in units of ``hidden``: i, f, g, o and the cell; r, z, n and what r multiplies.
SAVED = (5, 4, 0, 0)

ARGUMENTS = (
    "Tensor x, Tensor batch_sizes, Tensor h0, Tensor? c0, Tensor values_ih, Tensor topology_ih, Tensor values_hh,"
    " Tensor topology_hh, Tensor? values_hr, Tensor? topology_hr, Tensor? bias_ih, Tensor? bias_hh"
)


def tile_samples(batch: int) -> int:
    """Samples of a tile: the kernel takes the batch tile by tile, and saves what it saves so."""
    return 16 if batch <= 256 else 32 if batch <= 1024 else 64


def saved_size(mode: int, steps: int, batch: int, hidden: int) -> int:
    """Elements of ``saved``: ``[tiles][steps][SAVED * hidden][samples]``."""
    samples = tile_samples(batch)
    return (batch + samples - 1) // samples * steps * SAVED[mode] * hidden * samples


def require_layer(
    name: str,
    x: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    values_ih: Tensor,
    topology_ih: Tensor,
    values_hh: Tensor,
    topology_hh: Tensor,
    values_hr: Tensor | None,
    topology_hr: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    mode: int,
) -> int:
    """Checks what forward and backward are given alike; returns ``hidden``."""
    require_float(name, "x", x)
    require(0 <= mode < len(MODES), name, "mode must be 0 (LSTM), 1 (GRU), 2 (RNN_TANH) or 3 (RNN_RELU)", mode)
    require(x.dim() == 2, name, "x must be [rows, inputs]", list(x.shape))
    require(h0.dim() == 2, name, "h0 must be [batch, outputs]", list(h0.shape))
    require_like(name, "h0", h0, x, "x")
    require((c0 is not None) == (mode == LSTM), name, "c0 must be given for an LSTM alone", MODES[mode])
    batch, outputs = h0.shape
    hidden = outputs
    if c0 is not None:
        require(c0.dim() == 2 and c0.shape[0] == batch, name, f"c0 must be [{batch}, hidden]", list(c0.shape))
        require_like(name, "c0", c0, x, "x")
        hidden = c0.shape[1]
    require_steps(name, batch_sizes)
    require(
        (values_hr is None) == (topology_hr is None) and (values_hr is None or mode == LSTM),
        name,
        "values_hr and topology_hr must be given together, for an LSTM alone",
        MODES[mode],
    )
    require(
        values_hr is not None or hidden == outputs, name, f"h0 must be [{batch}, {hidden}] without hr", list(h0.shape)
    )
    rows = GATES[mode] * hidden
    for values, topology, size in (
        (values_ih, topology_ih, (rows, x.shape[1])),
        (values_hh, topology_hh, (rows, outputs)),
        (values_hr, topology_hr, (outputs, hidden)),
    ):
        if values is not None and topology is not None:
            require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
            require_like(name, "values", values, x, "x")
            require_topology(name, topology, values.shape[0], *size)
    require_bias(name, bias_ih, rows, x)
    require_bias(name, bias_hh, rows, x)
    return hidden


def require_steps(name: str, batch_sizes: Tensor) -> None:
    """What can be told of batch sizes without reading them."""
    on_cpu = batch_sizes.device.type == "cpu"
    require(
        batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 and on_cpu,
        name,
        "batch_sizes must be int64 [steps] on the CPU",
        f"{list(batch_sizes.shape)} {batch_sizes.dtype}{'' if on_cpu else f' on {batch_sizes.device}'}",
    )


def require_sizes(name: str, batch_sizes: Tensor, batch: int, rows: int) -> list[int]:
    """Checks and returns the batch sizes themselves: for kernels, as fakes may not read them."""
    sizes: list[int] = batch_sizes.tolist()
    first, total = sizes[0] if sizes else batch, sum(sizes)
    falling = all(a >= b for a, b in itertools.pairwise([*sizes, 0]))
    require(
        falling and first == batch and total == rows,
        name,
        f"batch_sizes must begin with {batch}, never rise, nor fall below 0, and add up to {rows}",
        f"{first} at first, {total} together{'' if falling else ', not falling'}",
    )
    return sizes


@op(f"({ARGUMENTS}, int mode, bool reverse, bool save) -> (Tensor, Tensor, Tensor, Tensor)")
def recurrent_csr(
    x: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    values_ih: Tensor,
    topology_ih: Tensor,
    values_hh: Tensor,
    topology_hh: Tensor,
    values_hr: Tensor | None,
    topology_hr: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    mode: int,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All steps of an LSTM, a GRU or a plain RNN.

    Args:
        x: ``[rows, inputs]``.
        batch_sizes: int64 ``[steps]`` on the CPU: how many samples each step has, never more than the one before.
        h0: ``[batch, outputs]``; ``batch`` is ``batch_sizes[0]``.
        c0: ``[batch, hidden]``, of an LSTM.
        values_ih, topology_ih: Of the weight ``[gates * hidden, inputs]``; values are row-major.
        values_hh, topology_hh: Of ``[gates * hidden, outputs]``.
        values_hr, topology_hr: Of the projection ``[outputs, hidden]`` that an LSTM may have; else ``outputs`` is
            ``hidden``.
        bias_ih, bias_hh: ``[gates * hidden]``.
        mode: A place in ``MODES``.
        reverse: From the last step to the first.
        save: Whether to keep what derivatives need.

    Returns:
        ``output [rows, outputs]``, ``h_n`` and ``c_n`` as h0 and c0 (``c_n [0]`` but for an LSTM), all of x's dtype,
        and what the backward needs (:func:`saved_size` elements, ``[0]`` unless asked for), in the sums' dtype. States
        of 16-bit types are float32 from step to step.

    Cost: ``2 * rows * kept`` operations and ``gates * rows * hidden`` activations.
    """
    hidden = require_layer(
        "recurrent_csr",
        x,
        batch_sizes,
        h0,
        c0,
        values_ih,
        topology_ih,
        values_hh,
        topology_hh,
        values_hr,
        topology_hr,
        bias_ih,
        bias_hh,
        mode,
    )
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    size = saved_size(mode, batch_sizes.shape[0], h0.shape[0], hidden) if save else 0
    c_n = x.new_empty(0) if c0 is None else x.new_empty(c0.shape)
    return x.new_empty(x.shape[0], h0.shape[1]), x.new_empty(h0.shape), c_n, x.new_empty(size, dtype=sums)


@op(
    f"(Tensor grad_output, Tensor grad_h_n, Tensor? grad_c_n, {ARGUMENTS}, Tensor output, Tensor saved, int mode,"
    " bool reverse, bool with_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def recurrent_csr_backward(
    grad_output: Tensor,
    grad_h_n: Tensor,
    grad_c_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    values_ih: Tensor,
    topology_ih: Tensor,
    values_hh: Tensor,
    topology_hh: Tensor,
    values_hr: Tensor | None,
    topology_hr: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    output: Tensor,
    saved: Tensor,
    mode: int,
    reverse: bool,
    with_x: bool,
) -> tuple[Tensor, ...]:
    """All gradients of ``recurrent_csr``.

    Args:
        grad_output, grad_h_n, grad_c_n: Of its results; ``grad_c_n`` of an LSTM.
        output, saved: Its results, with ``save``.
        with_x: Whether x's gradient is wanted.
        x, ...: As ``recurrent_csr`` had them.

    Returns:
        The gradients of x (``[0]`` without ``with_x``), h0, c0, the values of ih, hh and hr, and the biases; ``[0]``
        for what there is none of.

    Cost: ``4 * rows * kept`` operations, with x's gradient.
    """
    name = "recurrent_csr_backward"
    hidden = require_layer(
        name,
        x,
        batch_sizes,
        h0,
        c0,
        values_ih,
        topology_ih,
        values_hh,
        topology_hh,
        values_hr,
        topology_hr,
        bias_ih,
        bias_hh,
        mode,
    )
    rows, state = [x.shape[0], h0.shape[1]], list(h0.shape)
    shapes = (("grad_output", grad_output, rows), ("output", output, rows), ("grad_h_n", grad_h_n, state))
    for what, tensor, size in shapes:
        require(list(tensor.shape) == size, name, f"{what} must be {size}", list(tensor.shape))
        require_like(name, what, tensor, x, "x")
    require((grad_c_n is None) == (c0 is None), name, "grad_c_n must be given for an LSTM alone", MODES[mode])
    if grad_c_n is not None and c0 is not None:
        size = list(c0.shape)
        require(list(grad_c_n.shape) == size, name, f"grad_c_n must be {size}", list(grad_c_n.shape))
        require_like(name, "grad_c_n", grad_c_n, x, "x")
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    size = saved_size(mode, batch_sizes.shape[0], h0.shape[0], hidden)
    require(
        list(saved.shape) == [size] and saved.dtype == sums,
        name,
        f"saved must be {sums} [{size}], what recurrent_csr returns with save",
        f"{saved.dtype} {list(saved.shape)}",
    )
    none = x.new_empty(0)

    def like(tensor: Tensor | None) -> Tensor:
        return none.clone() if tensor is None else x.new_empty(tensor.shape)

    return (
        like(x if with_x else None),
        like(h0),
        like(c0),
        like(values_ih),
        like(values_hh),
        like(values_hr),
        like(bias_ih),
        like(bias_hh),
    )
