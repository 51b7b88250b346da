"""Recurrent modules that hold, train and compute with their kept weights only: nn.LSTM, nn.GRU and nn.RNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from snipkern.masks import Mask
from snipkern.nn.functional_recurrent import recurrent_layer
from snipkern.nn.sparse_module import SparseModule, compute_dtype
from snipkern.topology import BaseTopology

__all__ = ["SparseGRU", "SparseLSTM", "SparseRNN", "SparseRecurrent"]


class SparseRecurrent(SparseModule, nn.RNNBase):
    """What sparse recurrent modules share: every ``weight_ih``, ``weight_hh`` and ``weight_hr`` has only kept entries.

    They are the parameters ``weight_ih_l0_values`` and so on, each with its own mask; see :class:`SparseModule` for
    their order and for state dicts. ``weight_ih_l0`` is a dense tensor made on demand. Everything else is as in the
    dense module: layers, directions, dropout between layers, projections, packed and unbatched sequences, states.

    Under autocast all is computed, and returned, in its dtype; of the dense modules some are, and some are not.

    Cost: of one step, ``2 * batch * kept`` operations forward, twice that backward.
    """

    @staticmethod
    def weight_names(module: nn.Module) -> tuple[str, ...]:
        return tuple(name for name in cast(nn.RNNBase, module)._flat_weights_names if name.startswith("weight"))

    @property
    def masks(self) -> dict[str, Mask]:
        """Which entries of each weight are kept, by the dense weight's name."""
        return {name: topology.mask for name, topology in self._topologies.items()}

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As the dense module's.

        Args:
            input: ``[steps, batch, input_size]``, with ``batch_first`` ``[batch, steps, input_size]``, or without the
                batch; or a ``PackedSequence``.
            hx: First states, of an LSTM a pair of hidden and cell states: ``[layers * directions, batch, size]``, for
                an input without a batch ``[layers * directions, size]``. None: zeros.

        Returns:
            Outputs of the last layer, like the input, and the last states, like ``hx``.
        """
        if isinstance(input, PackedSequence):
            if hx is not None:
                hx = self.permute_hidden(hx, input.sorted_indices)
            self._check(input.data, hx, input.batch_sizes)
            y, hidden = self._run(input.data, input.batch_sizes, hx)
            packed = PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            return packed, self.permute_hidden(hidden, input.unsorted_indices)
        if input.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: input must be 2-D or 3-D (got {input.dim()}-D)")
        batched = input.dim() == 3
        if hx is not None:
            for state in _states(hx):
                if state.dim() != input.dim():
                    needs = f"hx must be {input.dim()}-D for {input.dim()}-D input"
                    raise RuntimeError(f"{type(self).__name__}: {needs} (got {state.dim()}-D)")
            hx = hx if batched else _each(hx, lambda state: state.unsqueeze(1))
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        self._check(x, hx, None)
        x = x.transpose(0, 1) if self.batch_first else x
        steps, batch, size = x.shape
        if steps == 0:
            raise RuntimeError(f"{type(self).__name__}: input must have at least one step (got none)")
        sizes = torch.full((steps,), batch, dtype=torch.int64)
        y, hidden = self._run(x.reshape(steps * batch, size), sizes, hx)
        y = y.reshape(steps, batch, y.shape[1])
        y = y.transpose(0, 1) if self.batch_first else y
        if not batched:
            y, hidden = y.squeeze(0 if self.batch_first else 1), _each(hidden, lambda state: state.squeeze(1))
        return y, hidden

    def _check(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> None:
        """What the dense module requires; states are sorted as the packed input is."""
        if hx is None:
            self.check_input(x, batch_sizes)
            return
        self.check_forward_args(x, hx, batch_sizes)
        for state in _states(hx):
            if state.dtype != x.dtype and compute_dtype(x) is None:
                raise ValueError(f"{type(self).__name__}: hx must be {x.dtype} as the input is (got {state.dtype})")

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """As the dense module's, whose dtype is that of the values."""
        dtype = self.values_of("weight_ih_l0").dtype
        if input.dtype != dtype and compute_dtype(input) is None:
            raise ValueError(f"{type(self).__name__}: input must be {dtype} as the weights are (got {input.dtype})")
        wanted = 3 if batch_sizes is None else 2
        if input.dim() != wanted or input.shape[-1] != self.input_size:
            shape = f"[..., {self.input_size}] of {wanted} dimensions"
            raise RuntimeError(f"{type(self).__name__}: input must be {shape} (got {list(input.shape)})")

    def _run(self, x: Tensor, batch_sizes: Tensor, hx: Any) -> tuple[Tensor, Any]:
        """All layers and directions over packed rows ``[rows, size]``: outputs, and last states as ``hx`` are."""
        dtype = compute_dtype(x)

        def cast_(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or dtype is None else tensor.to(dtype)

        def weight(name: str) -> tuple[Tensor, BaseTopology]:
            return cast(Tensor, cast_(self.values_of(name))), self._topologies[name]

        x = cast(Tensor, cast_(x))
        states = () if hx is None else _states(hx)
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        last: list[tuple[Tensor, Tensor | None]] = []
        for layer in range(self.num_layers):
            outputs: list[Tensor] = []
            for suffix in suffixes:
                at = f"l{layer}{suffix}"
                h0, c0 = (cast_(states[i][len(last)]) if i < len(states) else None for i in (0, 1))
                y, h_n, c_n = recurrent_layer(
                    self.mode,
                    x,
                    batch_sizes,
                    h0,
                    c0,
                    weight(f"weight_ih_{at}"),
                    weight(f"weight_hh_{at}"),
                    weight(f"weight_hr_{at}") if self.proj_size else None,
                    cast_(getattr(self, f"bias_ih_{at}")) if self.bias else None,
                    cast_(getattr(self, f"bias_hh_{at}")) if self.bias else None,
                    suffix != "",
                )
                outputs.append(y)
                last.append((h_n, c_n))
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, True)
        h_n = torch.stack([h for h, _ in last])
        if self.mode != "LSTM":
            return x, h_n
        return x, (h_n, torch.stack([cast(Tensor, c) for _, c in last]))

    def flatten_parameters(self) -> None:
        """Does nothing: there are no dense weights to lay out for a fused dense kernel."""

    def extra_repr(self) -> str:
        kept = sum(topology.nnz for topology in self._topologies.values())
        numel = sum(topology.mask.numel for topology in self._topologies.values())
        return f"{super().extra_repr()}, kept={kept} ({kept / max(numel, 1):.2%})"

    # nn.RNNBase keeps a list of its dense weights beside its parameters, for its fused kernels. Here it stays empty.

    def _init_flat_weights(self) -> None:
        self.__dict__["_flat_weights"], self.__dict__["_flat_weight_refs"] = [], []

    def _weights_have_changed(self) -> bool:
        return False

    def converted_(self) -> None:
        self._init_flat_weights()

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_topologies", ()):
            return self.dense(name)
        return super().__getattr__(name)


def _states(hx: Any) -> tuple[Tensor, ...]:
    """Hidden states, and behind them an LSTM's cell states."""
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _each(hx: Any, change: Any) -> Any:
    return change(hx) if isinstance(hx, Tensor) else tuple(map(change, hx))


class SparseLSTM(SparseRecurrent, nn.LSTM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """An ``nn.LSTM`` that computes with its kept weights only; see :class:`SparseRecurrent`."""

    @classmethod
    def from_dense(cls, lstm: nn.LSTM, masks: Mapping[str, Mask]) -> SparseLSTM:
        """A sparse copy of an LSTM; the original stays as it is.

        Args:
            lstm: Its weights give the values; biases are copied.
            masks: One for each weight, by its name ("weight_ih_l0") and of its shape.
        """
        return cast(SparseLSTM, _sparse_copy(cls, lstm, masks))


class SparseGRU(SparseRecurrent, nn.GRU):  # pyright: ignore[reportIncompatibleMethodOverride]
    """An ``nn.GRU`` that computes with its kept weights only; see :class:`SparseRecurrent`."""

    @classmethod
    def from_dense(cls, gru: nn.GRU, masks: Mapping[str, Mask]) -> SparseGRU:
        """A sparse copy of a GRU, as :meth:`SparseLSTM.from_dense`."""
        return cast(SparseGRU, _sparse_copy(cls, gru, masks))


class SparseRNN(SparseRecurrent, nn.RNN):  # pyright: ignore[reportIncompatibleMethodOverride]
    """An ``nn.RNN`` (tanh or ReLU) that computes with its kept weights only; see :class:`SparseRecurrent`."""

    @classmethod
    def from_dense(cls, rnn: nn.RNN, masks: Mapping[str, Mask]) -> SparseRNN:
        """A sparse copy of an RNN, as :meth:`SparseLSTM.from_dense`."""
        return cast(SparseRNN, _sparse_copy(cls, rnn, masks))


def _sparse_copy(cls: type[SparseRecurrent], dense: nn.RNNBase, masks: Mapping[str, Mask]) -> nn.Module:
    from snipkern.nn.convert import SPARSE_CLASSES, sparse_copy

    if SPARSE_CLASSES.get(type(dense)) is not cls:
        wanted = next(kind.__name__ for kind, sparse in SPARSE_CLASSES.items() if sparse is cls)
        got = type(dense).__name__
        raise ValueError(f"{cls.__name__}.from_dense: the module must be a dense nn.{wanted} (got {got})")
    return sparse_copy(dense, masks, f"{cls.__name__}.from_dense")
