"""The cases of ``--device cuda``: layers, training steps, memory and selection, beside what PyTorch has on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from cases import DENSITIES, QUICK_DENSITIES, QUICK_LAYERS, Case
from gpu_layer_cases import layer, sweep
from gpu_model_cases import memory, model, selection
from layer_cases import SUBJECT
from layers import Block, Shape
from networks import DENSITY, GPT_512, MLP, QUICK_NETS, VGG
from selection_cases import Choice

__all__ = ["COLD", "DEFAULT", "GROUPS", "cases"]

GROUPS = ("layers", "forward", "density", "models", "memory", "selection")
DEFAULT = ("layers", "forward", "models", "memory", "selection")
#: Measured with an empty L2 cache; the others hold more than it could.
COLD = ("layers", "forward", "density")
BLOCKS: tuple[Block, ...] = ((16, 16), (32, 32), (64, 64), (128, 128))

LAYERS = [
    Shape("linear", 1024, 4096, 8192),
    Shape("linear", 4096, 4096, 4096),
    Shape("linear", 4096, 16384, 2048),
    Shape("linear", 4096, 4096, 128),
    Shape("conv", 64, 64, 256, side=56, kernel=3, padding=1),
    Shape("conv", 256, 256, 256, side=14, kernel=3, padding=1),
    Shape("conv", 512, 512, 256, side=7, kernel=3, padding=1),
]
ANSWERING = [*LAYERS[:4], Shape("linear", 4096, 4096, 1), Shape("linear", 4096, 4096, 16)]
SWEPT = [LAYERS[1], LAYERS[5]]
NETS = [(replace(MLP, batch=4096), "adamw"), (replace(VGG, batch=512), "sgd"), (replace(GPT_512, batch=64), "adamw")]
SELECTION = [
    Choice(1 << 24), Choice(1 << 27), Choice(1 << 27, torch.bfloat16), Choice(1 << 27, torch.bfloat16, torch.float32),
    Choice(1 << 30, torch.bfloat16),
]  # fmt: skip
QUICK_BLOCKS: tuple[Block, ...] = ((16, 16),)
QUICK_SELECTION = [Choice(1 << 12), Choice(1 << 12, torch.bfloat16)]


def cases(groups: Sequence[str], accelerator: Any, quick: bool = False) -> list[Case]:
    """The cases of some groups, in order.

    Args:
        accelerator: An :class:`accelerator.Cuda`, or what stands in for one.
        quick: Tiny ones, to see that everything runs.
    """
    found: list[Case] = []
    blocks = QUICK_BLOCKS if quick else BLOCKS
    for group, shapes in (("layers", LAYERS), ("forward", ANSWERING)):
        for shape in QUICK_LAYERS if quick else shapes:
            build = partial(layer, shape, DENSITY, blocks, accelerator.device, group == "layers")
            found.append(Case(group, shape.name, {**asdict(shape), "density": DENSITY}, SUBJECT, build))
    for shape in QUICK_LAYERS if quick else SWEPT:
        densities = QUICK_DENSITIES if quick else DENSITIES
        build = partial(sweep, shape, densities, blocks, accelerator.device)
        found.append(Case("density", shape.name, {**asdict(shape), "density": list(densities)}, "torch", build, 0.5))
    nets = [(net, net.optimizers[0]) for net in QUICK_NETS[::3]] if quick else NETS
    for net, optimizer in nets:
        settings = {"net": net.name, "batch": net.batch, "keep": net.keep, "optimizer": optimizer}
        name = f"{net.name} b{net.batch} {optimizer}"
        chosen = (net, optimizer, blocks, accelerator)
        found.append(Case("models", name, settings, SUBJECT, partial(model, *chosen)))
        found.append(Case("memory", name, settings, SUBJECT, partial(memory, *chosen)))
    for choice in QUICK_SELECTION if quick else SELECTION:
        build = partial(selection, choice, accelerator)
        found.append(Case("selection", choice.name, choice.settings, SUBJECT, build, slow=True))
    found.sort(key=lambda case: GROUPS.index(case.group))
    return [case for case in found if case.group in groups]
