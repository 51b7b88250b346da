"""Measuring a layer: forward and backward of dense, masked and sparse modules on synthetic input, for milliseconds.

Nothing can be seen of it afterwards: no random number of any global generator is drawn, no module of the model is
called, no gradient written, and the kernels' scratch memory is given back.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snipkern import backends
from snipkern.backends.precision import tf32_allowed
from snipkern.engine.recurrent import RecurrentWorkload
from snipkern.engine.workload import Workload
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn.convert import sparse_copy
from snipkern.nn.masked import MaskGuard

__all__ = ["Steps", "Times", "forbidden", "measure", "steps"]

Step = Callable[[], object]
# Seconds for one layer, and rounds: slow layers get the fewest, fast ones the most.
BUDGET = 0.03
FEWEST, MOST = 3, 40


@dataclass(frozen=True)
class Times:
    """Seconds of one forward and backward: of the dense module, of the masked one (guarded), of the sparse one."""

    dense: float
    masked: float
    sparse: float


@dataclass(frozen=True)
class Steps:
    """Functions that do one forward and backward each; the guard's is what masking adds to dense."""

    dense: Step
    guard: Step
    sparse: Step


_cache: dict[tuple[Workload | RecurrentWorkload, int, str | None, str, bool, bool], Times] = {}


def forbidden() -> str | None:
    """Why ``engine="auto"`` must not measure here: its choice has to be the same every time, or on every rank."""
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are asked for"
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        return "all ranks must choose alike"
    return None


def measure(
    work: Workload | RecurrentWorkload,
    mask: Mask | Mapping[str, Mask],
    layout: Layout | None = None,
    cover: Layout | None = None,
) -> Times:
    """Times one layer on its device; the shortest of several rounds, since all noise makes a step longer.

    Once for each workload, number of threads, set of kernels and permissions for TF32: a second call returns what the
    first one found.

    Args:
        work: The layer and its input.
        mask: Of the weight's shape, or of each weight by its name; others with as many kept weights are taken for the
            same.
        layout: Of the mask, with the work's block; None: that block on the plain grid, if there is one.
        cover: Of the mask, with the work's covering block.
    """
    # Dense convolutions go by cuDNN's permission, all else by that of matrix products.
    tf32 = tf32_allowed("linear"), tf32_allowed(work.kind if isinstance(work, Workload) else "linear")
    key = (work, torch.get_num_threads(), backends.isa(), backends.active(work.device), *tf32)
    times = _cache.get(key)
    if times is None:
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.autocast(work.device.type, enabled=False):
                times = _cache[key] = _times(steps(work, mask, layout, cover), work.device)
        finally:
            backends.release_scratch()
    return times


def steps(
    work: Workload | RecurrentWorkload,
    mask: Mask | Mapping[str, Mask],
    layout: Layout | None = None,
    cover: Layout | None = None,
) -> Steps:
    """The modules of one workload, ready to be timed: parameters' gradients and, where wanted, the input's."""
    generator = torch.Generator().manual_seed(0)
    channels_last = isinstance(work, Workload) and work.channels_last

    def noise(shape: tuple[int, ...] | torch.Size) -> Tensor:
        made = torch.randn(shape, generator=generator, device="cpu").to(work.device, work.dtype)
        return made.contiguous(memory_format=torch.channels_last) if channels_last and made.dim() == 4 else made

    dense = work.module()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(noise(parameter.shape))
    if layout is None and isinstance(work, Workload) and work.block:
        layout = Layout(work.block)
    masks = {"weight": mask} if isinstance(mask, Mask) else mask
    sparse = sparse_copy(dense, masks, "measure", layout, cover)
    x = noise(work.input).requires_grad_(work.input_grad)
    dy = noise(_output(dense, x).shape)
    weights = {name: dense.get_parameter(name).detach().clone() for name in masks}
    guarded = [MaskGuard(nn.Parameter(weights[name], requires_grad=False), masks[name]) for name in masks]
    gradients = [noise(guard.parameter.shape) for guard in guarded]
    for guard in guarded:
        guard.clean_(guard.parameter)

    def guarding() -> None:
        for guard, gradient in zip(guarded, gradients, strict=True):
            guard.clean(gradient)
            guard.clean_(guard.parameter)

    return Steps(_step(dense, x, dy), guarding, _step(sparse, x, dy))


def _output(module: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of an input; a recurrent one's last states are left out."""
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def _step(module: nn.Module, x: Tensor, dy: Tensor) -> Step:
    wanted = (*module.parameters(), *((x,) if x.requires_grad else ()))
    return lambda: torch.autograd.grad(_output(module, x), wanted, dy)


def _times(contenders: Steps, device: torch.device) -> Times:
    functions = (contenders.dense, contenders.guard, contenders.sparse)
    for function in functions:
        function()
    clock = clock_of(device)
    best = [float("inf")] * len(functions)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for turn in range(MOST):
            if turn >= FEWEST and time.perf_counter() - begin > BUDGET:
                break
            for i, function in enumerate(functions):
                best[i] = min(best[i], clock(function))
    finally:
        if collecting:
            gc.enable()
    dense, guard, sparse = best
    return Times(dense, dense + guard, sparse)


def clock_of(device: torch.device) -> Callable[[Step], float]:
    """A function that runs a step and returns how many seconds it took on a device."""
    if device.type == "cuda":
        return functools.partial(_seconds_on_cuda, device=device)
    # One thread's own processor time does not see what else the machine does; several threads have no such clock.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def elapsed(function: Step) -> float:
        start = clock()
        function()
        return clock() - start

    return elapsed


def _seconds_on_cuda(function: Step, device: torch.device) -> float:
    """Between two events of the current stream, which is idle before; so the host's time counts where it is longer."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.current_stream().synchronize()
        start.record()
        function()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)
