"""Recurrent layers: one layer at 5 %, forward and all gradients over a whole batch of sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snipkern import Mask
from snipkern.nn.functional_recurrent import recurrent_layer
from snipkern.topology import Topology

__all__ = ["SUBJECT", "Sequences", "build"]

SUBJECT = "snipkern"
DENSITY = 0.05
TOLERANCE = 1e-4
HALF = torch.bfloat16
# Gates of a layer of each mode.
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1}


@dataclass(frozen=True)
class Sequences:
    """A layer and its batch; ``training``: with all gradients, x's among them."""

    mode: str
    inputs: int
    hidden: int
    steps: int
    batch: int
    training: bool = True

    @property
    def name(self) -> str:
        kind = "" if self.training else " forward"
        return f"{self.mode} {self.inputs}-{self.hidden} t{self.steps} b{self.batch}{kind}"


class Sparse:
    """The layer with its kept weights only."""

    def __init__(self, dense: nn.RNNBase, masks: dict[str, Mask], mode: str, dtype: torch.dtype) -> None:
        def weight(name: str) -> tuple[Tensor, Topology]:
            values = getattr(dense, f"weight_{name}_l0").detach()[masks[name].to_dense()].to(dtype)
            return nn.Parameter(values), Topology(masks[name])

        self.mode, self.ih, self.hh = mode, weight("ih"), weight("hh")
        self.biases = [nn.Parameter(getattr(dense, f"bias_{name}_l0").detach().to(dtype)) for name in ("ih", "hh")]

    def parameters(self) -> list[Tensor]:
        return [self.ih[0], self.hh[0], *self.biases]

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        sizes = torch.full((x.shape[0],), x.shape[1])
        rows = x.flatten(0, 1)
        output, _, _ = recurrent_layer(self.mode, rows, sizes, None, None, self.ih, self.hh, None, *self.biases, False)
        return output.view(*x.shape[:2], -1), None


def build(shape: Sequences) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]:
    """What is compared, with a note for each that gives other results than the float64 layer."""
    exact, masks = _dense(shape)
    x = torch.randn(shape.steps, shape.batch, shape.inputs)
    grad = torch.randn(shape.steps, shape.batch, shape.hidden) / x.numel() ** 0.5
    expected = _results(exact.double(), x.double(), grad.double())
    exact.float()
    half = _copy(exact, shape).to(HALF)
    layers: dict[str, tuple[Any, Any, float, bool]] = {
        SUBJECT: (Sparse(exact, masks, shape.mode, torch.float32), torch.float32, TOLERANCE, True),
        "torch": (exact, torch.float32, TOLERANCE, True),
        "torch without onednn": (_copy(exact, shape), torch.float32, TOLERANCE, False),
        f"{SUBJECT} bf16": (Sparse(exact, masks, shape.mode, HALF), HALF, 0.1, True),
        "torch bf16": (half, HALF, 0.1, True),
    }
    contenders: dict[str, Callable[[], Any]] = {}
    notes: list[str] = []
    for name, (layer, dtype, tolerance, onednn) in layers.items():
        run = _runner(layer, x.to(dtype), grad.to(dtype), onednn, shape.training)
        found = _with_onednn(onednn, lambda layer=layer, dtype=dtype: _results(layer, x.to(dtype), grad.to(dtype)))
        apart = max(
            float((one.double() - other).abs().max() / other.abs().max())
            for one, other in zip(found, expected, strict=True)
        )
        if apart <= tolerance:
            contenders[name] = run
        else:
            notes.append(f"WRONG: {name} is {apart:.1e} apart from the float64 layer")
    kept = sum(mask.count() for mask in masks.values())
    return contenders, {"kept": kept, "weights": round(kept / DENSITY)}, notes


def _dense(shape: Sequences) -> tuple[nn.RNNBase, dict[str, Mask]]:
    layer = _layer(shape)
    masks: dict[str, Mask] = {}
    for name in ("ih", "hh"):
        weight = getattr(layer, f"weight_{name}_l0")
        # As if chosen by a criterion and trained: each unit's inputs bring about as much as dense ones would.
        kept = torch.rand(weight.shape) < DENSITY
        masks[name] = Mask.from_dense(kept)
        with torch.no_grad():
            weight.mul_(kept).mul_(DENSITY**-0.5)
    return layer, masks


def _layer(shape: Sequences) -> nn.RNNBase:
    kind = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(shape.mode, nn.RNN)
    return kind(shape.inputs, shape.hidden)


def _copy(layer: nn.RNNBase, shape: Sequences) -> nn.RNNBase:
    copy = _layer(shape)
    copy.load_state_dict(layer.state_dict())
    return copy


def _with_onednn(enabled: bool, function: Callable[[], Any]) -> Any:
    with torch.backends.mkldnn.flags(enabled=enabled):
        return function()


def _results(layer: Any, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and x's gradient."""
    x = x.clone().requires_grad_()
    output, _ = layer(x)
    return [output.detach(), torch.autograd.grad(output, x, grad)[0]]


def _runner(layer: Any, x: Tensor, grad: Tensor, onednn: bool, training: bool) -> Callable[[], Any]:
    x = x.clone().requires_grad_(training)
    given = [x, *layer.parameters()]

    def run() -> Any:
        if not training:
            with torch.no_grad():
                return layer(x)
        output, _ = layer(x)
        return torch.autograd.grad(output, given, grad)

    return lambda: _with_onednn(onednn, run)
