"""One layer: forward and both backward products of a whole module, rows in and rows out, however it computes."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snipkern import engine
from snipkern import nn as sparse_nn
from snipkern.masks import Mask
from snipkern.workload import Call, workload

__all__ = ["DENSE", "SUBJECT", "Layer", "Shape", "build", "build_sweep", "predicted", "sweep_name"]

SUBJECT = "snipkern"
# Dense contenders in float32: the fastest of them is "best dense".
DENSE = ("torch", "onednn", "channels_last")
Step = Callable[[], tuple[Tensor, ...]]
# Largest error of y and dx, in units of their largest element, that a contender may have.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Shape:
    """A layer: features or channels, batch, and for a convolution image side, kernel side and padding."""

    kind: str
    inputs: int
    outputs: int
    batch: int
    side: int = 0
    kernel: int = 0
    padding: int = 0

    @property
    def rows(self) -> int:
        """Rows of the matrix product: samples, times output positions for a convolution."""
        return (
            self.batch if self.kind == "linear" else self.batch * (self.side + 2 * self.padding - self.kernel + 1) ** 2
        )

    @property
    def name(self) -> str:
        if self.kind == "linear":
            return f"Linear {self.inputs}->{self.outputs} b{self.batch}"
        size = f"{self.inputs}->{self.outputs} {self.kernel}x{self.kernel} @{self.side}x{self.side}"
        return f"Conv {size} b{self.batch}"

    def module(self) -> nn.Linear | nn.Conv2d:
        if self.kind == "linear":
            return nn.Linear(self.inputs, self.outputs)
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, padding=self.padding)

    def input(self) -> Tensor:
        image = () if self.kind == "linear" else (self.side, self.side)
        return torch.randn(self.batch, self.inputs, *image)


def predicted(shape: Shape, mask: Mask) -> dict[str, str]:
    """What ``engine="auto"`` says about the layer."""
    module = shape.module()
    call = Call(tuple(shape.input().shape), module.weight.dtype, input_grad=True)
    choice = engine.choose("auto", workload(module, mask.count(), call), mask)
    return {"auto": choice.engine, "reason": choice.reason}


class Layer:
    """A dense module whose weight has zeros, with an input and an output gradient: what all contenders compute."""

    def __init__(self, shape: Shape, density: float) -> None:
        self.shape = shape
        self.dense = shape.module()
        self.mask = Mask.from_dense(torch.rand(self.dense.weight.shape) < density)
        with torch.no_grad():
            self.dense.weight.mul_(self.mask.to_dense())
        self.x = shape.input()
        self.dy = torch.randn_like(self.dense(self.x))

    def cast(self, dtype: torch.dtype) -> Layer:
        """The same layer in another dtype."""
        other = object.__new__(Layer)
        other.shape, other.mask = self.shape, self.mask
        other.dense = copy.deepcopy(self.dense).to(dtype)
        other.x, other.dy = self.x.to(dtype), self.dy.to(dtype)
        return other

    def sparse(self) -> Step:
        kind = sparse_nn.SparseLinear if isinstance(self.dense, nn.Linear) else sparse_nn.SparseConv2d
        return module_step(kind.from_dense(self.dense, self.mask), self.x, self.dy)

    def torch_default(self) -> Step:
        return module_step(self.dense, self.x, self.dy)

    def channels_last(self) -> Step:
        """Convolution with input, weight and output gradient in the layout that oneDNN likes best."""
        form = {"memory_format": torch.channels_last}
        return module_step(copy.deepcopy(self.dense).to(**form), self.x.to(**form), self.dy.to(**form))

    def onednn(self) -> Step:
        """Linear by oneDNN on operands that are in its own form already: no module gets quite as fast."""
        multiply = torch._C._nn.mkldnn_linear
        weight = self.dense.weight.detach()
        x, x_t, dy, dy_t, w, w_t = (
            t.contiguous().to_mkldnn() for t in (self.x, self.x.t(), self.dy, self.dy.t(), weight, weight.t())
        )
        bias = self.dense.bias.detach().to_mkldnn()

        def step() -> tuple[Tensor, ...]:
            return multiply(x, w, bias), multiply(dy, w_t), multiply(dy_t, x_t), self.dy.sum(0)

        return step

    def torch_csr(self) -> Step:
        """torch.sparse: a CSR weight times the transposed rows, with its own backward."""
        weight = self.dense.weight.detach().to_sparse_csr().requires_grad_()
        bias = self.dense.bias.detach().requires_grad_()
        x = self.x.clone().requires_grad_()

        def step() -> tuple[Tensor, ...]:
            y = torch.sparse.addmm(bias[:, None], weight, x.t()).t()
            return y, *torch.autograd.grad(y, (x, weight, bias), self.dy)

        return step

    def sparseprop(self) -> Step:
        modules = importlib.import_module("sparseprop.modules")
        if isinstance(self.dense, nn.Linear):
            return module_step(modules.SparseLinear.from_dense(self.dense), self.x, self.dy)
        return module_step(modules.SparseConv2d.from_dense(self.dense), self.x, self.dy)


def module_step(module: nn.Module, x: Tensor, dy: Tensor) -> Step:
    """Forward and backward of a module: output, input gradient and parameter gradients."""
    x = x.detach().requires_grad_()
    wanted = (x, *module.parameters())

    def step() -> tuple[Tensor, ...]:
        y = module(x)
        return y, *torch.autograd.grad(y, wanted, dy)

    return step


def build(shape: Shape, density: float) -> tuple[dict[str, Step], dict[str, Any], list[str]]:
    """Everything that can compute this layer, with what it cannot do said in notes."""
    layer = Layer(shape, density)
    half = layer.cast(torch.bfloat16)
    linear = shape.kind == "linear"
    makers: dict[str, Callable[[], Step]] = {
        SUBJECT: layer.sparse,
        "torch": layer.torch_default,
        "onednn" if linear else "channels_last": layer.onednn if linear else layer.channels_last,
        "bf16": half.torch_default if linear else half.channels_last,
        f"{SUBJECT} bf16": half.sparse,
    }
    notes: list[str] = []
    if linear:
        makers["torch csr"] = layer.torch_csr
    if importlib.util.find_spec("sparseprop"):
        makers["sparseprop"] = layer.sparseprop
    else:
        notes.append("sparseprop is not installed")
    reference = layer.torch_default()()[:2]
    contenders: dict[str, Step] = {}
    for name, make in makers.items():
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                step = make()
                found = step()
        except Exception as error:
            notes.append(f"{name} cannot do it: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        wrong = _wrong(found, reference)
        if wrong:
            notes.append(f"{name} is left out, its {wrong}")
        else:
            contenders[name] = step
    return contenders, {"kept": layer.mask.count(), "numel": layer.mask.numel, **predicted(shape, layer.mask)}, notes


def _wrong(found: Sequence[Tensor], reference: Sequence[Tensor]) -> str | None:
    """What is not as dense torch computes it, if anything: y and, where it comes as a plain tensor, dx."""
    for what, got, want in zip(("y", "dx"), found, reference, strict=False):
        plain = (got if got.layout == torch.strided else got.to_dense()).detach()
        largest = want.detach().abs().max().clamp_min(1e-12)
        error = float((plain.float() - want.detach()).abs().max() / largest)
        if not error <= TOLERANCE[plain.dtype]:
            return f"{what} is off by {error:.1e} of its largest element"
    return None


def sweep_name(density: float) -> str:
    """The contender of one density."""
    return f"{SUBJECT} {density:.0%}"


def build_sweep(shape: Shape, densities: Sequence[float]) -> tuple[dict[str, Step], dict[str, Any], list[str]]:
    """One layer at several densities, all in turns with its dense forms."""
    layers = {density: Layer(shape, density) for density in densities}
    first = layers[densities[0]]
    contenders: dict[str, Step] = {"torch": first.torch_default()}
    if shape.kind == "linear":
        contenders["onednn"] = first.onednn()
    else:
        contenders["channels_last"] = first.channels_last()
    facts: dict[str, Any] = {"densities": {}}
    for density, layer in layers.items():
        contenders[sweep_name(density)] = layer.sparse()
        facts["densities"][sweep_name(density)] = {"density": density, **predicted(shape, layer.mask)}
    return contenders, facts, []
