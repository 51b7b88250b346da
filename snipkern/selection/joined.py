"""All parameters of a model on one device as one parameter: a pass over thousands is then a launch or two.

Selection over parameters one by one costs some launches and waits for each. The masks are the same: kept are the first
by (score, order of parameters, index), and joined elements come in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from snipkern.ops.schema_saliency import word_count
from snipkern.selection.sources import Pairs, Source

__all__ = ["Joined", "joined", "on_cpu"]

T = TypeVar("T")

# Devices where launches and waits cost more than small parameters do.
DEVICES = ("cuda",)


class Joined:
    """Parameters that lie in memory, as a source of one parameter.

    Attributes:
        members: Names of the parameters.
    """

    names = ("all parameters",)

    def __init__(self, members: Sequence[str], weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self.members, self.weights, self.gradients = members, weights, gradients
        self.sizes = [sum(weight.numel() for weight in weights)]

    def walk(self, look: Callable[[int, Sequence[Tensor], Sequence[Tensor]], T]) -> list[T]:
        return [look(0, self.weights, self.gradients)]

    def split(self, words: Tensor) -> list[Tensor]:
        """Each parameter's words, of the words of all."""
        return list(words.split([word_count(weight.numel()) for weight in self.weights]))


def joined(source: Source) -> Joined | None:
    """The source's parameters as one, if all lie on one device where that is worth it.

    Only a dict has its tensors for certain: another mapping may open or compute them at each look.
    """
    if not isinstance(source, Pairs) or type(source.pairs) is not dict or not source.names:
        return None
    pairs = [source.pair(name) for name in source.names]
    device = pairs[0][0].device
    if device.type not in DEVICES or any(weight.device != device for weight, _ in pairs):
        return None
    return Joined(source.names, [weight for weight, _ in pairs], [gradient for _, gradient in pairs])


def on_cpu(words: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU. Cost: one copy for each device, not for each tensor."""
    found = list(words)
    for device in {each.device for each in words if each.device.type != "cpu"}:
        there = [i for i, each in enumerate(words) if each.device == device]
        together = torch.cat([words[i] for i in there]).cpu()
        for i, each in zip(there, together.split([words[i].numel() for i in there]), strict=True):
            found[i] = each
    return found
