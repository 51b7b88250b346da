"""Random states: everything that scoring could draw from, noted and put back."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomStates", "random_states", "set_random_states"]


@dataclass(frozen=True)
class RandomStates:
    """Of Python, numpy, torch on every device, and a loader's own generators."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: list[Tensor]
    generators: list[tuple[torch.Generator, Tensor]]


def random_states(loader: object = None) -> RandomStates:
    """All of them as they are now."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = {getattr(owner, "generator", None) for owner in owners}
    generators = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return RandomStates(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda, generators)


def set_random_states(states: RandomStates) -> None:
    """Puts them back."""
    for generator, state in states.generators:
        generator.set_state(state)
    random.setstate(states.python)
    np.random.set_state(states.numpy)
    torch.set_rng_state(states.torch)
    if states.cuda:
        torch.cuda.set_rng_state_all(states.cuda)
