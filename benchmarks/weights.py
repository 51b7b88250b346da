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
        init: A key of :data:`INITIALISATIONS`. A recurrent cell's gates are drawn each by its own fans.
        std: Standard deviation of "rn" and "tn".
    """
    if init not in INITIALISATIONS:
        raise ValueError(f"initialise_: init must be one of {', '.join(INITIALISATIONS)} (got {init!r})")
    gates = {name: 4 if isinstance(m, nn.LSTM) else 3 for name, m in model.named_modules() if isinstance(m, nn.RNNBase)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner, _, own = name.rpartition(".")
            if parameter.dim() > 1:
                for part in parameter.chunk(gates.get(owner, 1)):
                    _draw_(part, init, generator, std)
            elif own.startswith("bias"):
                norm = isinstance(model.get_submodule(owner), nn.modules.batchnorm._BatchNorm)
                parameter.zero_() if not norm else None


def _draw_(weight: Tensor, init: str, generator: torch.Generator | None, std: float) -> None:
    taps = math.prod(weight.shape[2:])
    inputs, outputs = weight.shape[1] * taps, weight.shape[0] * taps
    if init == "rn":
        weight.normal_(0, std, generator=generator)
        return
    variance = {"vs": 1 / inputs, "tn": std**2, "vs-x": 2 / (inputs + outputs), "vs-h": 2 / inputs}[init]
    # Truncation at two standard deviations takes some of the variance, which scaling gives back.
    wide = math.sqrt(variance) / (1 if init == "tn" else TRUNCATED_STD)
    nn.init.trunc_normal_(weight, std=wide, a=-2 * wide, b=2 * wide, generator=generator)
