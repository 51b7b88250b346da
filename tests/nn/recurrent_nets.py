"""Recurrent modules of random options for tests, dense with masked weights and sparse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import snipkern as sk

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


@dataclass(frozen=True)
class Options:
    """One module's options and how it is called."""

    kind: str = "LSTM"
    input_size: int = 5
    hidden_size: int = 6
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    projection: int = 0
    nonlinearity: str = "tanh"
    form: str = "batched"  # "unbatched", "packed", "unsorted"
    states: bool = True
    keep: float = 0.4
    seed: int = 0

    def module(self, dtype: torch.dtype = torch.float64) -> nn.RNNBase:
        more = {}
        if self.kind == "LSTM":
            more["proj_size"] = self.projection
        if self.kind == "RNN":
            more["nonlinearity"] = self.nonlinearity
        torch.manual_seed(self.seed)
        return KINDS[self.kind](
            self.input_size,
            self.hidden_size,
            self.layers,
            bias=self.bias,
            batch_first=self.batch_first,
            dropout=self.dropout if self.layers > 1 else 0.0,
            bidirectional=self.bidirectional,
            dtype=dtype,
            **more,
        )

    def masks(self, module: nn.Module) -> dict[str, sk.Mask]:
        torch.manual_seed(self.seed + 1)
        weights = {name: weight for name, weight in module.named_parameters() if name.startswith("weight")}
        return {name: sk.Mask.from_dense(torch.rand(weight.shape) < self.keep) for name, weight in weights.items()}

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor | PackedSequence, Tensor, object]:
        """The input, the leaf tensor that it is made of, and first states (leaves) or None."""
        torch.manual_seed(self.seed + 2)
        steps, batch = 7, 3
        lengths = torch.tensor([7, 4, 2]) if self.form == "packed" else torch.tensor([2, 7, 4])
        shape = (steps, self.input_size) if self.form == "unbatched" else (steps, batch, self.input_size)
        if self.batch_first and self.form != "unbatched":
            shape = (batch, steps, self.input_size)
        leaf = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
        x: Tensor | PackedSequence = leaf
        if self.form in ("packed", "unsorted"):
            x = pack_padded_sequence(leaf, lengths, self.batch_first, enforce_sorted=self.form == "packed")
        count = self.layers * (1 + self.bidirectional)
        made: list[Tensor] = []
        for size in (self.projection or self.hidden_size, self.hidden_size):
            shape = (count, size) if self.form == "unbatched" else (count, batch, size)
            made.append(torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_())
        return x, leaf, None if not self.states else tuple(made) if self.kind == "LSTM" else made[0]


def zeroed_(module: nn.Module, masks: dict[str, sk.Mask]) -> nn.Module:
    """The dense module with zeros where pruned."""
    with torch.no_grad():
        for name, mask in masks.items():
            module.get_parameter(name).mul_(mask.to_dense())
    return module


def flat(result: tuple[object, object]) -> list[Tensor]:
    """Output and last states as a list of tensors."""
    output, hidden = result
    tensors = [output.data] if isinstance(output, PackedSequence) else [output]
    return [*tensors, *(hidden if isinstance(hidden, tuple) else [hidden])]
