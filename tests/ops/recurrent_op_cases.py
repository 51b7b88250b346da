"""Sparse recurrent layers beside torch's own, which hold the same zeros and compute in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from snipkern.nn.functional_recurrent import recurrent_layer
from snipkern.ops import schema_recurrent
from snipkern.testing import random_mask, run_on
from snipkern.topology import Topology

MODES = schema_recurrent.MODES
GATES = dict(zip(MODES, schema_recurrent.GATES, strict=True))


def sizes_of(lengths):
    """Batch sizes of sequences of these lengths."""
    return torch.tensor([sum(length > step for length in lengths) for step in range(max(lengths, default=0))]).long()


@dataclass
class Recurrent:
    mode: str
    x: Tensor
    batch_sizes: Tensor
    h0: Tensor
    c0: Tensor | None
    masks: dict
    values: dict
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    reverse: bool
    topologies: dict = field(default_factory=dict)

    def __post_init__(self):
        self.topologies = self.topologies or {name: Topology(mask) for name, mask in self.masks.items()}

    @property
    def floats(self):
        """What is differentiated, by name."""
        named = {"x": self.x, "h0": self.h0, "c0": self.c0, "bias_ih": self.bias_ih, "bias_hh": self.bias_hh}
        return {name: tensor for name, tensor in (named | self.values).items() if tensor is not None}

    def layer(self, given):
        """The layer of these tensors, by name."""
        weights = {name: (given[name], self.topologies[name]) for name in self.masks}
        return recurrent_layer(
            self.mode,
            given["x"],
            self.batch_sizes,
            given["h0"],
            given.get("c0"),
            weights["ih"],
            weights["hh"],
            weights.get("hr"),
            given.get("bias_ih"),
            given.get("bias_hh"),
            self.reverse,
        )

    def run(self, tier):
        """Outputs and gradients of the sum of their squares, by name."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.floats.items()}
        with run_on(tier):
            return _results(self.layer(leaves), leaves)

    def expected(self):
        """The same of torch's own layer in float64, values' gradients at the kept weights."""
        out, inputs, hidden = self.h0.shape[1], self.x.shape[1], self.masks["hh"].shape[0] // GATES[self.mode]
        options = {"proj_size": out} if "hr" in self.masks else {}
        kind = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(self.mode, nn.RNN)
        if kind is nn.RNN:
            options["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        both = {} if not self.reverse else {"bidirectional": True}  # of which the second one is wanted
        bias = self.bias_ih is not None
        dense = kind(inputs, hidden, bias=bias, dtype=torch.float64, **options, **both)
        suffix = "_l0_reverse" if self.reverse else "_l0"
        leaves, found = {}, {}
        for name, tensor in self.floats.items():
            if name in self.masks:
                weight = torch.zeros(self.masks[name].shape, dtype=torch.float64)
                weight[self.masks[name].to_dense()] = tensor.double()
                found[name] = getattr(dense, f"weight_{name}{suffix}")
                found[name].data.copy_(weight)
            elif name.startswith("bias"):
                found[name] = getattr(dense, name + suffix)
                found[name].data.copy_(tensor.double())
            else:
                leaves[name] = tensor.double().detach().requires_grad_()
        if len(self.batch_sizes) == 0:
            raise ValueError("torch's layers take no empty sequences")
        states = [torch.stack([leaves[name]] * (2 if self.reverse else 1)) for name in ("h0", "c0") if name in leaves]
        packed = PackedSequence(leaves["x"], self.batch_sizes)
        output, last = dense(packed, tuple(states) if self.mode == "LSTM" else states[0])
        output = output.data[:, -out:]
        last = last if self.mode == "LSTM" else (last,)
        results = _results((output, *(state[-1] for state in last)), leaves | found)
        for name, mask in self.masks.items():
            results[f"grad {name}"] = results[f"grad {name}"][mask.to_dense()]
        return results


def _results(outputs, leaves):
    named = dict(zip(("output", "h_n", "c_n"), outputs, strict=False))
    named = {name: tensor for name, tensor in named.items() if tensor is not None}
    loss = sum((tensor.double() ** 2).sum() * (1 + place) for place, tensor in enumerate(named.values()))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {name: tensor.detach() for name, tensor in named.items()} | {
        f"grad {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }


def random_recurrent(
    generator,
    mode="LSTM",
    lengths=(5, 3, 3, 1),
    inputs=7,
    hidden=6,
    projection=None,
    density=0.4,
    bias=True,
    reverse=False,
    dtype=torch.float32,
):
    """A case with random everything, of sequences of these lengths, the longest first."""
    out, rows = projection or hidden, GATES[mode] * hidden

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shapes = {"ih": (rows, inputs), "hh": (rows, out)} | ({"hr": (out, hidden)} if projection else {})
    masks = {name: random_mask(shape, density, generator) for name, shape in shapes.items()}
    fan_in = max(1.0, density * hidden) ** 0.5
    return Recurrent(
        mode,
        draw(sum(lengths), inputs),
        sizes_of(lengths),
        draw(len(lengths), out),
        draw(len(lengths), hidden) if mode == "LSTM" else None,
        masks,
        {name: draw(mask.count()) / fan_in for name, mask in masks.items()},
        draw(rows) if bias else None,
        draw(rows) if bias else None,
        reverse,
    )


def op_args(case, given=None):
    """Arguments of the op without its ``save``."""
    given = given or case.floats
    index = {name: topology.on(torch.device("cpu")) for name, topology in case.topologies.items()}
    weights = [tensor for name in ("ih", "hh", "hr") for tensor in (given.get(name), index.get(name))]
    head = [given["x"], case.batch_sizes, given["h0"], given.get("c0")]
    tail = [given.get("bias_ih"), given.get("bias_hh"), MODES.index(case.mode), case.reverse]
    return [*head, *weights, *tail]
