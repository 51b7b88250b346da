"""Every case of the benchmark, as data: what is measured, at which sizes, in which group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import latency_cases
import layer_cases
import limits
import model_cases
import recurrent_cases
import scoring_cases
import selection_cases
import torch
from layers import Shape
from machine import Bystanders
from networks import DENSITY, GPT_512, MEMORY, MLP, NETS, QUICK_MEMORY, QUICK_NETS, VGG, Net
from recurrent_cases import Sequences
from selection_cases import Choice
from timing import Effort, Measure, Timing, interleave

__all__ = ["DEFAULT", "GROUPS", "Case", "Result", "cases", "run"]

GROUPS = (
    "limits", "selection", "sweep", "layers", "products", "density", "threads", "latency", "models", "memory",
    "recurrent", "scoring",
)  # fmt: skip
EXTRA = ("sweep", "products", "density", "threads", "latency", "recurrent", "scoring")
# What most people want to know first.
DEFAULT = tuple(group for group in GROUPS if group not in EXTRA)
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)

SELECTION = [*(Choice(1 << power) for power in (20, 24, 27)), Choice(1 << 24, torch.bfloat16)]
# Size, share, dtype, entropy.
SWEEP = [
    *(Choice(weights) for weights in (10**6, 10**7, 10**8, 5 * 10**8, 10**9)),
    *(Choice(1 << 24, keep=keep) for keep in (0.5, 0.01)),
    *(Choice(weights, torch.bfloat16) for weights in (1 << 20, 1 << 27)),
    Choice(1 << 24, torch.float16),
    Choice(1 << 24, torch.bfloat16, torch.float32),
    *(Choice(1 << 24, data=data) for data in selection_cases.DATA if data != "normal"),
    Choice(2 * 10**9, torch.bfloat16),
]
# What is accepted, then what LeNets are made of.
ACCEPTED_LAYERS = [
    Shape("linear", 1024, 1024, 128),
    Shape("linear", 1024, 4096, 512),
    Shape("linear", 4096, 4096, 128),
    Shape("conv", 64, 64, 128, side=32, kernel=3, padding=1),
    Shape("conv", 128, 128, 128, side=16, kernel=3, padding=1),
    Shape("conv", 256, 256, 128, side=8, kernel=3, padding=1),
    Shape("conv", 512, 512, 128, side=4, kernel=3, padding=1),
]
LAYERS = [
    *ACCEPTED_LAYERS,
    Shape("linear", 784, 300, 100),
    Shape("conv", 1, 20, 100, side=28, kernel=5),
    Shape("conv", 20, 50, 100, side=12, kernel=5),
]
SWEPT = [ACCEPTED_LAYERS[0], ACCEPTED_LAYERS[4]]
SCALED = [ACCEPTED_LAYERS[2], ACCEPTED_LAYERS[4]]
ANSWERING = [Shape("linear", size, size, batch) for size in (4096, 1024) for batch in (1, 8)]
# Model, samples, shape of one: a GPT reads one token each of several sequences, or one whole sequence.
ANSWERING_NETS = [
    *((GPT_512, batch, (tokens,)) for batch, tokens in ((1, 1), (8, 1), (1, 256))),
    *((VGG, batch, VGG.input) for batch in (1, 8)),
]
ACCEPTED_NET, ACCEPTED_IMAGES, ACCEPTED_TOKENS = MLP.name, VGG.name, GPT_512.name
SCORED = [(MLP, 8), (GPT_512, 1)]
# What is accepted, its likes, and layers of the paper's size that read the rows of 28 x 28 images.
ACCEPTED_SEQUENCES = Sequences("LSTM", 512, 512, 128, 64)
RECURRENT = [
    ACCEPTED_SEQUENCES,
    Sequences("GRU", 512, 512, 128, 64),
    Sequences("RNN_TANH", 512, 512, 128, 64),
    Sequences("LSTM", 512, 512, 128, 64, training=False),
    *(Sequences(mode, 28, hidden, 28, 100) for mode in ("LSTM", "GRU") for hidden in (128, 256)),
]
MEMORY_BOUND = {"kind": "linear", "inputs": 4096, "outputs": 4096}

QUICK_SELECTION = [Choice(1 << 12), Choice(1 << 12, torch.bfloat16)]
QUICK_SWEEP = [
    Choice(1 << 12, torch.bfloat16, torch.float32, 0.5),
    *(Choice(1 << 12, data=d) for d in selection_cases.DATA),
]
QUICK_LAYERS = [Shape("linear", 64, 48, 20), Shape("conv", 8, 16, 16, side=6, kernel=3, padding=1)]
QUICK_RECURRENT = [Sequences("LSTM", 16, 24, 3, 5), Sequences("GRU", 16, 24, 3, 5, training=False)]
QUICK_DENSITIES = (0.05, 0.5)
QUICK_SCORED = [(QUICK_NETS[0], 2), (QUICK_NETS[3], 1)]
QUICK_ANSWERING_NETS = [(QUICK_NETS[1], 1, QUICK_NETS[1].input), (QUICK_NETS[3], 2, (1,))]

Contenders = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """One comparison. ``build`` makes its tensors when its turn comes, so that only one case's are alive.

    ``effort`` is the share of the usual measuring time that each of its contenders gets. What is ``slow`` gets fewer
    samples and one call to warm up.
    """

    group: str
    name: str
    settings: dict[str, Any]
    subject: str
    build: Callable[[], tuple[Contenders, dict[str, Any], list[str]]]
    effort: float = 1.0
    slow: bool = False


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
    found = [Case("limits", "this processor", {}, "", partial(_limits, quick))]
    selections = {
        "selection": QUICK_SELECTION if quick else SELECTION,
        "sweep": QUICK_SWEEP if quick else SWEEP,
    }
    for group, choices in selections.items():
        for choice in choices:
            build = partial(selection_cases.build, choice)
            found.append(Case(group, choice.name, choice.settings, selection_cases.SUBJECT, build, slow=True))
    for shape in QUICK_RECURRENT if quick else RECURRENT:
        build = partial(recurrent_cases.build, shape)
        settings = {**asdict(shape), "density": recurrent_cases.DENSITY}
        found.append(Case("recurrent", shape.name, settings, recurrent_cases.SUBJECT, build, slow=True))
    found += _layer_cases(quick) + _model_cases(quick)
    found.sort(key=lambda case: GROUPS.index(case.group))
    return [case for case in found if case.group in groups]


def _layer_cases(quick: bool) -> list[Case]:
    layers, densities = (QUICK_LAYERS, QUICK_DENSITIES) if quick else (LAYERS, DENSITIES)
    found: list[Case] = []

    def add(group: str, shape: Shape, subject: str, build: Callable[..., Any], effort: float, density: Any) -> None:
        settings = {**asdict(shape), "density": density}
        found.append(Case(group, shape.name, settings, subject, partial(build, shape, density), effort))

    for shape in layers:
        add("layers", shape, layer_cases.SUBJECT, layer_cases.build, 0.25, DENSITY)
    for shape in QUICK_LAYERS if quick else ACCEPTED_LAYERS:
        add("products", shape, "", layer_cases.build_products, 0.15, DENSITY)
    for shape in QUICK_LAYERS if quick else SWEPT:
        subject = layer_cases.sweep_name(DENSITY)
        add("density", shape, subject, layer_cases.build_sweep, 0.3, list(densities))
    for shape in QUICK_LAYERS if quick else SCALED:
        add("threads", shape, f"{layer_cases.SUBJECT} 1", layer_cases.build_threads, 0.5, DENSITY)
    for shape in QUICK_LAYERS[:1] if quick else ANSWERING:
        add("latency", shape, layer_cases.SUBJECT, latency_cases.build_layer, 0.3, DENSITY)
    return found


def _model_cases(quick: bool) -> list[Case]:
    found: list[Case] = []
    for net in QUICK_NETS if quick else NETS:
        for optimizer in net.optimizers:
            settings = {"net": net.name, "batch": net.batch, "keep": net.keep, "optimizer": optimizer}
            name = f"{net.name} b{net.batch} {optimizer}"
            build = partial(model_cases.build, net, optimizer)
            found.append(Case("models", name, settings, model_cases.SUBJECT, build, slow=net.large))
    for net, optimizer in QUICK_MEMORY if quick else MEMORY:
        settings = {"net": net.name, "batch": net.batch, "keep": net.keep, "optimizer": optimizer}
        held = partial(_memory, net, optimizer)
        found.append(Case("memory", f"{net.name} b{net.batch} {optimizer}", settings, model_cases.SUBJECT, held))
    for net, batch in QUICK_SCORED if quick else SCORED:
        settings = {"net": net.name, "batch": batch, "keep": net.keep}
        build = partial(scoring_cases.build, net, batch)
        found.append(Case("scoring", f"{net.name} b{batch}", settings, scoring_cases.SUBJECT, build, slow=net.large))
    for net, batch, shape in QUICK_ANSWERING_NETS if quick else ANSWERING_NETS:
        settings = {"net": net.name, "batch": batch, "input": list(shape), "keep": net.keep}
        size = f", {shape[0]} token{'s' * (shape[0] > 1)}" if net.tokens else ""
        build = partial(latency_cases.build_model, net, batch, shape)
        found.append(Case("latency", f"{net.name} b{batch}{size}", settings, model_cases.SUBJECT, build, 0.3))
    return found


def _memory(net: Net, optimizer: str) -> tuple[Contenders, dict[str, Any], list[str]]:
    return {}, model_cases.memory(net, optimizer), []


def _limits(quick: bool) -> tuple[Contenders, dict[str, Any], list[str]]:
    return {}, limits.build(quick), []


def run(case: Case, effort: Effort, measure: Measure | None = None) -> Result:
    """Builds and times one case, from the same random numbers whichever cases ran before."""
    torch.manual_seed(0)
    contenders, facts, notes = case.build()
    bystanders = Bystanders()
    effort = replace(effort, seconds=effort.seconds * case.effort)
    if case.slow:
        effort = replace(effort, least=min(effort.least, 3), warm_up=1)
    timings = interleave(contenders, effort, measure=measure)
    elsewhere = bystanders.cores() if timings else None
    ratios: dict[str, float] = {}
    if case.subject in timings:
        unit = timings[case.subject].median
        ratios = {name: timing.median / unit for name, timing in timings.items() if name != case.subject}
    return Result(case.group, case.name, case.settings, timings, ratios, facts, notes, elsewhere)
