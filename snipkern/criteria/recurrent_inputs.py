"""What the weights of recurrent layers are multiplied with: inputs, and hidden states of the step before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from snipkern.criteria.squares import squares

__all__ = ["recurrent_squares"]

FUNCTIONS = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def recurrent_squares(module: nn.Module, x: Any, hx: Any, output: Any) -> Iterator[tuple[str, Tensor]]:
    """Sums of squares, by the weight's name in the module, from a call's arguments and output.

    Layers below the last are run once more, since nobody sees their outputs. What the projection of an LSTM
    (``weight_hr``) sees is not among them.
    """
    if isinstance(module, nn.RNNCellBase):
        yield "weight_ih", squares(x)
        hidden = hx[0] if isinstance(hx, tuple) else hx
        yield "weight_hh", x.new_zeros(module.hidden_size, dtype=torch.float64) if hidden is None else squares(hidden)
        return
    assert isinstance(module, nn.RNNBase)
    data, sizes, states = _packed(module, x, hx)
    last, _, _ = _packed(module, output[0], None)
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        here = [state[layer * directions : (layer + 1) * directions] for state in states]
        out = last if layer == module.num_layers - 1 else _run(module, layer, data, sizes, here)
        for direction, h in enumerate(out.chunk(directions, dim=1)):
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            yield f"weight_ih{suffix}", squares(data)
            before = _before(h, sizes, reverse=direction == 1)
            yield f"weight_hh{suffix}", squares(before) + squares(here[0][direction])
        data = out


def _packed(module: nn.RNNBase, x: Any, hx: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows of all steps, one step after the other; how many each has; and initial states (h, for an LSTM c too)."""
    order = None
    if isinstance(x, PackedSequence):
        data, sizes, order = x.data, x.batch_sizes, x.sorted_indices
    else:
        steps = x[:, None] if x.dim() == 2 else x.transpose(0, 1) if module.batch_first else x
        data, sizes = steps.reshape(-1, steps.shape[-1]), torch.full((steps.shape[0],), steps.shape[1])
        hx = _batched(hx) if x.dim() == 2 else hx
    layers, batch = module.num_layers * (2 if module.bidirectional else 1), int(sizes[0])
    if hx is None:
        widths = [module.proj_size or module.hidden_size, module.hidden_size]
        zeros = [data.new_zeros(layers, batch, width) for width in widths]
        return data, sizes, zeros if module.mode == "LSTM" else zeros[:1]
    states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
    return data, sizes, states if order is None else [state.index_select(1, order) for state in states]


def _batched(hx: Any) -> Any:
    if hx is None:
        return None
    return tuple(state[:, None] for state in hx) if isinstance(hx, (tuple, list)) else hx[:, None]


def _run(module: nn.RNNBase, layer: int, data: Tensor, sizes: Tensor, states: list[Tensor]) -> Tensor:
    """The outputs of one layer, of all directions."""
    directions = 2 if module.bidirectional else 1
    of_layer = module.all_weights[layer * directions : (layer + 1) * directions]
    weights = [weight for direction in of_layer for weight in direction]
    state: Any = states if module.mode == "LSTM" else states[0]
    function: Any = FUNCTIONS[module.mode]
    return function(data, sizes, state, weights, module.bias, 1, 0.0, False, module.bidirectional)[0]


def _before(h: Tensor, sizes: Tensor, reverse: bool) -> Tensor:
    """The outputs that another step follows."""
    if reverse:
        return h[int(sizes[0]) :]
    followed = [step[: int(size)] for step, size in zip(h.split(sizes.tolist())[:-1], sizes[1:], strict=True)]
    return torch.cat(followed) if followed else h[:0]
