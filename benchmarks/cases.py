"""Every case of the benchmark, as data: what is measured, at which sizes, in which group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import layer_cases
import model_cases
import selection_cases
import torch
from layer_cases import Shape
from machine import Bystanders
from model_cases import Net, lenet_5, lenet_300_100, mlp
from timing import Effort, Timing, interleave

__all__ = ["GROUPS", "Case", "Result", "cases", "run"]

GROUPS = ("selection", "layers", "density", "models", "memory")
DENSITY = 0.05
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)

SELECTION = [(1 << 20, torch.float32), (1 << 24, torch.float32), (1 << 27, torch.float32), (1 << 24, torch.bfloat16)]
LAYERS = [
    Shape("linear", 1024, 1024, 128),
    Shape("linear", 1024, 4096, 512),
    Shape("linear", 4096, 4096, 128),
    Shape("linear", 784, 300, 100),
    Shape("conv", 64, 64, 128, side=32, kernel=3, padding=1),
    Shape("conv", 128, 128, 128, side=16, kernel=3, padding=1),
    Shape("conv", 256, 256, 128, side=8, kernel=3, padding=1),
    Shape("conv", 512, 512, 128, side=4, kernel=3, padding=1),
    Shape("conv", 1, 20, 100, side=28, kernel=5),
    Shape("conv", 20, 50, 100, side=12, kernel=5),
]
SWEPT = [LAYERS[0], LAYERS[5]]
NETS = [
    Net("MLP 4096-4096-4096", partial(mlp, 4096), (4096,), 4096, 128, DENSITY),
    Net("LeNet-300-100", lenet_300_100, (1, 28, 28), 10, 100, DENSITY),
    Net("LeNet-5-Caffe", lenet_5, (1, 28, 28), 10, 100, DENSITY),
]
ACCEPTED_NET = NETS[0].name

QUICK_SELECTION = [(1 << 12, torch.float32), (1 << 12, torch.bfloat16)]
QUICK_LAYERS = [Shape("linear", 64, 48, 20), Shape("conv", 8, 12, 16, side=6, kernel=3, padding=1)]
QUICK_DENSITIES = (0.05, 0.5)
QUICK_NETS = [Net("MLP 96-96-96", partial(mlp, 96), (96,), 96, 16, 0.1)]


@dataclass(frozen=True)
class Case:
    """One comparison. ``build`` makes its tensors when its turn comes, so that only one case's are alive."""

    group: str
    name: str
    settings: dict[str, Any]
    subject: str
    build: Callable[[], tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]]


@dataclass(frozen=True)
class Result:
    """What one case gave; ``ratios`` are medians in units of the subject's: above 1, the subject is faster.

    ``busy_elsewhere`` is how many cores other processes kept busy meanwhile: well below 0.1, or the figures are theirs.
    """

    group: str
    name: str
    settings: dict[str, Any]
    timings: dict[str, Timing] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    busy_elsewhere: float | None = None


def cases(groups: tuple[str, ...] = GROUPS, quick: bool = False) -> list[Case]:
    """The cases of some groups, in order; ``quick`` makes them tiny, to see that everything runs."""
    found: list[Case] = []
    for weights, dtype in QUICK_SELECTION if quick else SELECTION:
        short = str(dtype).removeprefix("torch.")
        settings = {"weights": weights, "dtype": short, "keep": selection_cases.KEEP}
        build = partial(selection_cases.build, weights, dtype)
        found.append(Case("selection", f"{weights:,} {short}", settings, selection_cases.SUBJECT, build))
    for shape in QUICK_LAYERS if quick else LAYERS:
        settings = {**asdict(shape), "density": DENSITY}
        found.append(
            Case("layers", shape.name, settings, layer_cases.SUBJECT, partial(layer_cases.build, shape, DENSITY))
        )
    densities = QUICK_DENSITIES if quick else DENSITIES
    for shape in QUICK_LAYERS if quick else SWEPT:
        settings = {**asdict(shape), "densities": list(densities)}
        build = partial(layer_cases.build_sweep, shape, densities)
        found.append(Case("density", shape.name, settings, layer_cases.sweep_name(DENSITY), build))
    for net in QUICK_NETS if quick else NETS:
        for optimizer in model_cases.OPTIMIZERS:
            settings = {"net": net.name, "batch": net.batch, "keep": net.keep, "optimizer": optimizer}
            name = f"{net.name} b{net.batch} {optimizer}"
            build = partial(model_cases.build, net, optimizer)
            found.append(Case("models", name, settings, model_cases.SUBJECT, build))
            held = partial(_memory, net, optimizer)
            found.append(Case("memory", name, settings, model_cases.SUBJECT, held))
    found.sort(key=lambda case: GROUPS.index(case.group))
    return [case for case in found if case.group in groups]


def _memory(net: Net, optimizer: str) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], list[str]]:
    return {}, model_cases.memory(net, optimizer), []


def run(case: Case, effort: Effort) -> Result:
    """Builds and times one case, from the same random numbers whichever cases ran before."""
    torch.manual_seed(0)
    contenders, facts, notes = case.build()
    bystanders = Bystanders()
    timings = interleave(contenders, effort)
    elsewhere = bystanders.cores() if timings else None
    ratios: dict[str, float] = {}
    if case.subject in timings:
        unit = timings[case.subject].median
        ratios = {name: timing.median / unit for name, timing in timings.items() if name != case.subject}
    return Result(case.group, case.name, case.settings, timings, ratios, facts, notes, elsewhere)
