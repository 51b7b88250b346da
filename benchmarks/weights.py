"""Ways to draw a network's first weights: those of the SNIP paper's Table 3, and the one of its other tables."""

from __future__ import annotations

import math

import torch
from lenets import TRUNCATED_STD
from torch import Tensor, nn

__all__ = ["INITIALISATIONS", "initialise_"]

#: Table 3's, and "vs": variance 1 / fan_in cut off at two standard deviations, of the paper's code.
INITIALISATIONS = {
    "vs": "variance scaling",
    "rn": "random normal",
    "tn": "truncated normal",
    "vs-x": "variance scaling, Xavier",
    "vs-h": "variance scaling, He",
}
#: Of RN and TN, which the paper does not tell.
FIXED_STD = 0.1


def initialise_(
    model: nn.Module, init: str = "vs", generator: torch.Generator | None = None, std: float = FIXED_STD
) -> None:
    """Draws all weights of two and more dimensions afresh, in place; biases become zero, norms stay.

    Args:
        init: A key of :data:`INITIALISATIONS`.
        std: Standard deviation of "rn" and "tn".
    """
    if init not in INITIALISATIONS:
        raise ValueError(f"initialise_: init must be one of {', '.join(INITIALISATIONS)} (got {init!r})")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner, _, own = name.rpartition(".")
            module = model.get_submodule(owner)
            if parameter.dim() > 1:
                for part, fans in _kernels(module, parameter):
                    _draw_(part, fans, init, generator, std)
            elif own.startswith("bias") and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                parameter.zero_()


def _kernels(module: nn.Module, weight: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
    """A weight's parts, each with what feeds one of its outputs and what reads one of its inputs.

    TensorFlow's cells, which the paper used, read input and state by one kernel: LSTM has one for all gates, GRU one
    for two gates and one for the candidate.
    """
    if not isinstance(module, nn.LSTM | nn.GRU):
        taps = math.prod(weight.shape[2:])
        return [(weight, (weight.shape[1] * taps, weight.shape[0] * taps))]
    hidden = module.hidden_size
    sizes = [4 * hidden] if isinstance(module, nn.LSTM) else [2 * hidden, hidden]
    return [(part, (module.input_size + hidden, len(part))) for part in weight.split(sizes)]


def _draw_(weight: Tensor, fans: tuple[int, int], init: str, generator: torch.Generator | None, std: float) -> None:
    inputs, outputs = fans
    if init == "rn":
        weight.normal_(0, std, generator=generator)
        return
    variance = {"vs": 1 / inputs, "tn": std**2, "vs-x": 2 / (inputs + outputs), "vs-h": 2 / inputs}[init]
    # Truncation at two standard deviations takes some of the variance, which scaling gives back.
    wide = math.sqrt(variance) / (1 if init == "tn" else TRUNCATED_STD)
    nn.init.trunc_normal_(weight, std=wide, a=-2 * wide, b=2 * wide, generator=generator)
