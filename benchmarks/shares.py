"""Where a training step spends its time: the products of its layers, the optimiser, and all the rest."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OPTIMIZER", "PRODUCTS", "REST", "time_shares"]

PRODUCTS, OPTIMIZER, REST = "products", "optimizer", "rest"
RUNS = 2
# Ops that are matrix products or convolutions of a layer. Attention's own product of queries and keys is none.
PRODUCT = re.compile(r"^(snipkern|mkldnn)::|^aten::(addmm|mm|.*convolution.*)$")


class ProductClock(TorchDispatchMode):
    """Adds up the seconds that product ops take, forward and backward, without what autograd spends on calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if PRODUCT.match(func.name().partition(".")[0]):
            self.seconds += time.perf_counter() - start
        return result


def time_shares(step: Callable[[], object], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Seconds of one step by what they are spent on, of the faster of two runs.

    Bias gradients that are sums of their own belong to the rest, as do norms, activations, attention and autograd.
    """
    return min((_clocked(step, optimizer) for _ in range(RUNS)), key=lambda found: sum(found.values()))


def _clocked(step: Callable[[], object], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    marks: list[float] = []
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: marks.append(time.perf_counter())),
        optimizer.register_step_post_hook(lambda *_: marks.append(time.perf_counter())),
    ]
    try:
        start = time.perf_counter()
        with ProductClock() as clock:
            step()
        whole = time.perf_counter() - start
    finally:
        for hook in hooks:
            hook.remove()
    optimizing = marks[1] - marks[0]
    return {PRODUCTS: clock.seconds, OPTIMIZER: optimizing, REST: whole - clock.seconds - optimizing}
