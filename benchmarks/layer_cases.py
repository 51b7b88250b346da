"""One layer: forward and both backward products of a whole module, rows in and rows out, and each product alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import limits
import peers
import torch
from layers import BLOCKS, PRODUCTS, Block, Layer, Shape, Step, block_name, product_steps
from torch import Tensor

import snipkern as sk

__all__ = [
    "DENSE",
    "SUBJECT",
    "Layer",
    "Shape",
    "build",
    "build_products",
    "build_sweep",
    "build_threads",
    "chosen",
    "sweep_name",
    "wrong",
]

SUBJECT = "snipkern"
# Dense contenders in float32: the fastest of them is "best dense".
DENSE = ("torch", "onednn", "tuned", "channels_last")
# Largest error of y and dx, in units of their largest element, that a contender may have.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
Built = tuple[dict[str, Step], dict[str, Any], list[str]]


def chosen(layer: Layer) -> dict[str, str]:
    """What ``engine="auto"`` says about a layer of this shape, dtype and density."""

    def loss(model: torch.nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) * batch[1]).float().sum()

    granularity = {} if layer.block is None else {"block": layer.block}
    with torch.random.fork_rng():
        module = copy.deepcopy(layer.dense)
        found = sk.plan(module, [(layer.x, layer.dy)], keep=layer.mask.count(), loss_fn=loss, **granularity)
    return {"auto": found.layers[0].engine, "reason": found.layers[0].reason}


def build(shape: Shape, density: float) -> Built:
    """Everything that can compute this layer, with what it cannot do said in notes."""
    layer = Layer(shape, density)
    half = layer.to(torch.bfloat16)
    dense = {"torch": layer.torch_default}
    if shape.kind == "linear":
        dense |= {"onednn": layer.onednn, "tuned": layer.tuned, "torch csr": layer.torch_csr}
        dense["bf16"] = half.torch_default
    else:
        dense |= {"channels_last": layer.channels_last, "bf16": half.channels_last}
    makers: dict[str, tuple[Layer, Callable[[], Step]]] = {SUBJECT: (layer, layer.sparse)}
    makers |= {name: (layer, make) for name, make in dense.items()}
    makers[f"{SUBJECT} bf16"] = (layer, half.sparse)
    notes: list[str] = []
    if peers.installed():
        makers["sparseprop"] = (layer, layer.sparseprop)
    else:
        notes.append(peers.MISSING)
    facts: dict[str, Any] = {"kept": layer.mask.count(), "numel": layer.mask.numel, **chosen(layer)}
    facts["operations"] = {SUBJECT: shape.operations(layer.mask)}
    facts["choices"] = {f"{SUBJECT} bf16": chosen(half)}
    for block, blocked in _blocked(shape, density).items():
        name, narrow = f"{SUBJECT} {block_name(block)}", blocked.to(torch.bfloat16)
        makers[name] = (blocked, blocked.sparse)
        makers[f"{name} bf16"] = (blocked, narrow.sparse)
        facts["operations"][name] = shape.operations(blocked.mask)
        facts["choices"][name] = chosen(blocked)
    return _right_ones(makers, notes), facts, notes


def _blocked(shape: Shape, density: float) -> dict[Block, Layer]:
    """The layer with masks of whole blocks."""
    return {block: Layer(shape, density, block) for block in BLOCKS if shape.outputs >= block[0]}


def _right_ones(makers: dict[str, tuple[Layer, Callable[[], Step]]], notes: list[str]) -> dict[str, Step]:
    """The contenders that compute what dense torch does with the same zeros; the others are told in the notes."""
    references: dict[int, Sequence[Tensor]] = {}
    contenders: dict[str, Step] = {}
    for name, (layer, make) in makers.items():
        reference = references.setdefault(id(layer), layer.torch_default()()[:2])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                step = make()
                found = step()
        except Exception as error:
            notes.append(f"{name} cannot do it: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        off = wrong(found, reference)
        if off:
            notes.append(f"{name} is left out, its {off}")
        else:
            contenders[name] = step
    return contenders


def wrong(found: Sequence[Tensor], reference: Sequence[Tensor], tolerance: float | None = None) -> str | None:
    """What is not as dense torch computes it, if anything: y and, where it comes as a plain tensor, dx.

    Args:
        tolerance: For another one than the dtype's.
    """
    for what, got, want in zip(("y", "dx"), found, reference, strict=False):
        plain = (got if got.layout == torch.strided else got.to_dense()).detach()
        largest = want.detach().abs().max().clamp_min(1e-12)
        error = float((plain.float() - want.detach()).abs().max() / largest)
        if not error <= (tolerance or TOLERANCE[plain.dtype]):
            return f"{what} is off by {error:.1e} of its largest element"
    return None


def build_products(shape: Shape, density: float) -> Built:
    """The three products of one layer, each on its own: "forward snipkern", "input gradient torch", ..."""
    layer = Layer(shape, density)
    half = layer.to(torch.bfloat16)
    modules = {
        SUBJECT: (layer, layer.sparse_module()),
        "torch": (layer, layer.dense),
        f"{SUBJECT} bf16": (half, half.sparse_module()),
    }
    for block, blocked in _blocked(shape, density).items():
        modules[f"{SUBJECT} {block_name(block)}"] = (blocked, blocked.sparse_module())
    steps = {name: product_steps(module, of.x, of.dy) for name, (of, module) in modules.items()}
    contenders = {f"{product} {name}": steps[name][product] for product in PRODUCTS for name in modules}
    operations = {name: shape.operations(of.mask) for name, (of, _) in modules.items() if name != "torch"}
    return contenders, {"operations": operations}, []


def sweep_name(density: float, block: Block | None = None) -> str:
    """The contender of one density."""
    kind = SUBJECT if block is None else f"{SUBJECT} {block_name(block)}"
    return f"{kind} {density:.0%}"


def build_sweep(shape: Shape, densities: Sequence[float]) -> Built:
    """One layer at several densities and granularities, all in turns with its dense forms."""
    found = [(density, None, Layer(shape, density)) for density in densities]
    for density in densities:
        found += [(density, block, layer) for block, layer in _blocked(shape, density).items()]
    first = found[0][2]
    for _, _, layer in found:
        layer.x, layer.dy = first.x, first.dy
    contenders: dict[str, Step] = {"torch": first.torch_default()}
    if shape.kind == "linear":
        contenders |= {"onednn": first.onednn(), "tuned": first.tuned()}
    else:
        contenders["channels_last"] = first.channels_last()
    facts: dict[str, Any] = {"densities": {}}
    for density, block, layer in found:
        name = sweep_name(density, block)
        contenders[name] = layer.sparse()
        told = {"density": density, "block": block_name(block) if block else None, **chosen(layer)}
        facts["densities"][name] = told
    return contenders, facts, []


def build_threads(shape: Shape, density: float) -> Built:
    """The layer with 1, 2, ... of the threads that torch has: "snipkern 1", "torch 1", "snipkern 2", ..."""
    layer = Layer(shape, density)
    dense = layer.torch_default() if shape.kind == "linear" else layer.channels_last()
    counts = limits.thread_counts()
    before = torch.get_num_threads()

    def on(threads: int, step: Step) -> Step:
        def run() -> tuple[Tensor, ...]:
            torch.set_num_threads(threads)
            try:
                return step()
            finally:
                torch.set_num_threads(before)

        return run

    steps = {SUBJECT: layer.sparse(), "dense": dense}
    contenders = {f"{name} {count}": on(count, step) for count in counts for name, step in steps.items()}
    return contenders, {"threads": counts}, [] if len(counts) > 1 else ["there is one thread: nothing to scale to"]
