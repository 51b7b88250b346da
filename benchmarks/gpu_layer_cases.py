"""One layer on a GPU: forward, or forward and both backward products, in every way that there is to compute it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from accelerator import rounded
from layer_cases import SUBJECT, wrong
from layers import Block, Layer, Shape, Step, block_name, module_step
from model_cases import HALF
from torch import Tensor

import snipkern as sk

__all__ = ["layer", "sweep"]

# Rounding of products: float32's own, TF32's, that of bfloat16's inputs and outputs.
TOLERANCE = {"": 1e-4, "tf32": 1e-2, "bf16": 5e-2}

Built = tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]
Makers = dict[str, tuple[Layer, Callable[[], Step]]]


def layer(shape: Shape, density: float, blocks: Sequence[Block], device: torch.device, backward: bool) -> Built:
    """One layer, every way to compute it: forward and both backward products, or forward alone without gradients."""
    single = Layer(shape, density).to(device)
    narrow = single.to(HALF)
    step = module_step if backward else forward_step

    def of(found: Layer, module: Callable[[Layer], torch.nn.Module]) -> tuple[Layer, Callable[[], Step]]:
        return found, lambda: step(module(found), found.x, found.dy)

    def blocked(block: Block) -> Layer:
        return Layer(shape, density, block).to(device)

    makers: Makers = {
        SUBJECT: of(single, Layer.sparse_module),
        f"{SUBJECT} bf16": of(narrow, Layer.sparse_module),
        "torch": (single, lambda: dense(single, step)),
        "torch bf16": (narrow, lambda: dense(narrow, step)),
        "torch tf32": (single, lambda: rounded(dense(single, step))),
    }
    if backward:
        makers["masked"] = of(single, masked)
    if shape.kind == "linear":
        makers["cusparse csr"] = single, single.torch_csr if backward else partial(multiply, single, None)
    facts: dict[str, Any] = {"kept": single.mask.count(), "numel": single.mask.numel, "operations": {}}
    facts["operations"] = {"dense": 2 * shape.rows * single.mask.numel, SUBJECT: shape.operations(single.mask)}
    for block in blocks:
        if shape.outputs < block[0] or shape.inputs < block[1]:
            continue
        whole, name = blocked(block), f"{SUBJECT} {block_name(block)}"
        makers[name] = of(whole, Layer.sparse_module)
        makers[f"{name} tf32"] = whole, partial(_rounded_sparse, whole, step)
        makers[f"{name} bf16"] = of(whole.to(HALF), Layer.sparse_module)
        facts["operations"][name] = shape.operations(whole.mask)
        if shape.kind == "linear" and not backward:
            makers[f"torch bsr {block_name(block)}"] = whole, partial(multiply, whole, block)
            makers[f"torch bsr {block_name(block)} bf16"] = whole, partial(multiply, whole.to(HALF), block)
    notes: list[str] = []
    return right_ones(makers, step, notes), facts, notes


def _rounded_sparse(found: Layer, step: Callable[..., Step]) -> Step:
    return rounded(step(found.sparse_module(), found.x, found.dy))


def dense(found: Layer, step: Callable[..., Step]) -> Step:
    """The module itself; convolutions with all that they read in the layout that cuDNN is fastest in."""
    tensors = copy.deepcopy(found.dense), found.x, found.dy
    if found.shape.kind == "linear":
        return step(*tensors)
    return step(*(tensor.to(memory_format=torch.channels_last) for tensor in tensors))


def masked(found: Layer) -> torch.nn.Module:
    """The dense module that sparse ones compete with: its pruned weights are held at zero."""
    module = copy.deepcopy(found.dense)
    sk.sparsify_(module, {"weight": found.mask}, engine="masked")
    return module


def forward_step(module: torch.nn.Module, x: Tensor, dy: Tensor) -> Step:
    """Inference."""

    def step() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return (module(x),)

    return step


def multiply(found: Layer, block: Block | None) -> Step:
    """Inference by torch's own sparse weights, CSR (which calls cuSPARSE) or BSR."""
    weight = found.dense.weight.detach()
    sparse = weight.to_sparse_csr() if block is None else weight.to_sparse_bsr(block)
    bias = found.dense.bias.detach()

    def step() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return (
                F.linear(found.x, sparse, bias)
                if block
                else torch.sparse.addmm(bias[:, None], sparse, found.x.t()).t(),
            )

    return step


def right_ones(makers: Makers, step: Callable[..., Step], notes: list[str]) -> dict[str, Step]:
    """The contenders that compute what dense torch does with the same zeros in float32; notes tell of the others."""
    references: dict[int, Sequence[Tensor]] = {}
    contenders: dict[str, Step] = {}
    for name, (found, make) in makers.items():
        plain = found if found.x.dtype == torch.float32 else found.to(torch.float32)
        if id(found) not in references:
            references[id(found)] = step(plain.dense, plain.x, plain.dy)()[:2]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
                contender = make()
            off = wrong(contender(), references[id(found)], TOLERANCE.get(name.rpartition(" ")[2], TOLERANCE[""]))
        except Exception as error:
            notes.append(f"{name} cannot do it: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        if off:
            notes.append(f"{name} is left out, its {off}")
        else:
            contenders[name] = contender
    return contenders


def sweep(shape: Shape, densities: Sequence[float], blocks: Sequence[Block], device: torch.device) -> Built:
    """Forward and backward at several densities: single weights in float32, blocks in bfloat16, dense layers."""
    first = Layer(shape, densities[0]).to(device)
    narrow = first.to(HALF)
    contenders = {
        "torch": dense(first, module_step),
        "torch tf32": rounded(dense(first, module_step)),
        "torch bf16": dense(narrow, module_step),
    }
    for density in densities:
        contenders[f"{SUBJECT} {density:.0%}"] = Layer(shape, density).to(device).sparse()
        for block in blocks:
            if shape.outputs >= block[0] and shape.inputs >= block[1]:
                whole = Layer(shape, density, block).to(device).to(HALF)
                contenders[f"{SUBJECT} {block_name(block)} {density:.0%} bf16"] = whole.sparse()
    return contenders, {}, []
