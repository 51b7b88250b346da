"""The networks of the SNIP paper's Tables 1 to 3, and the ways to draw their weights.

Lee, Ajanthan, Torr: "SNIP: single-shot network pruning based on connection sensitivity", ICLR 2019. The authors' code
holds the LeNets, AlexNets and VGGs, and their layers are as there; it holds no wide residual and no recurrent nets. The
former are Zagoruyko and Komodakis' (2016), the latter what fits both the paper's words and its counts of parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from lenets import lenet_5_caffe, lenet_300_100
from weights import initialise_

__all__ = ["NETWORKS", "Network", "Recurrent", "alexnet", "build", "parameters", "recurrent", "vgg", "wide_resnet"]

# Channels of VGG's convolutions, a list for each image size; "C" has 1x1 kernels where a list ends with its third.
VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CLASSES = 10


def _normed(layer: nn.Module, features: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    return [layer, norm(features), nn.ReLU()]


def alexnet(k: int) -> nn.Sequential:
    """AlexNet for ``[N, 3, 32, 32]``: the original's kernels, every convolution of stride 2, ``1024 k`` wide above."""
    shapes = ((3, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3))
    layers: list[nn.Module] = []
    for inputs, outputs, size in shapes:
        layers += _normed(nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2), outputs)
    layers.append(nn.Flatten())
    width = 1024 * k
    for inputs in (shapes[-1][1], width):
        layers += _normed(nn.Linear(inputs, width), width)
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def vgg(version: str, stages: tuple[tuple[int, ...], ...] = VGG) -> nn.Sequential:
    """VGG-16 for ``[N, 3, 32, 32]`` with batch norm in place of dropout, fully connected layers of the last width.

    Args:
        version: "C": 1x1 kernels in the third convolution of a stage; "D": 3x3 everywhere; "like": D with one hidden
            fully connected layer in place of two.
        stages: Channels of the convolutions; a max pool follows each stage.
    """
    layers: list[nn.Module] = []
    channels = 3
    for widths in stages:
        for i, width in enumerate(widths):
            size = 1 if version == "C" and i == 2 else 3
            layers += _normed(nn.Conv2d(channels, width, size, padding=size // 2), width)
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for _ in range(1 if version == "like" else 2):
        layers += _normed(nn.Linear(channels, channels), channels)
    return nn.Sequential(*layers, nn.Linear(channels, CLASSES))


class _Residual(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; a 1x1 convolution of the first ReLU is the shortcut where needed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.norm2(self.conv1(activated)))) + beside


def wide_resnet(depth: int, widen: int) -> nn.Sequential:
    """WRN-depth-widen for ``[N, 3, 32, 32]``, as Zagoruyko and Komodakis have it, without dropout."""
    if (depth - 4) % 6:
        raise ValueError(f"wide_resnet: depth must be 6 n + 4 (got {depth})")
    channels = 16
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        for i in range((depth - 4) // 6):
            layers.append(_Residual(channels, width, stride if i == 0 else 1))
            channels = width
    ending = (nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, *ending, nn.Linear(channels, CLASSES))


class Recurrent(nn.Module):
    """Reads an image row by row: ``[N, 1, T, D]`` is T steps of a linear layer, a cell, then logits of the last state.

    The cell has one bias, as the paper's counts of parameters say: torch's second one stays zero and is not trained.
    A gate that forgets begins with a bias of 1, so that gradients reach the first rows.
    """

    def __init__(self, cell: str, hidden: int, inputs: int = 28) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.cell: nn.LSTM | nn.GRU = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](hidden, hidden, batch_first=True)
        self.last = nn.Linear(hidden, CLASSES)
        self.cell.bias_hh_l0.requires_grad_(False)

    def reset_biases_(self) -> None:
        """Zero, but 1 where a gate keeps the state: LSTM's second (forget), GRU's first two (reset, update)."""
        hidden = self.cell.hidden_size
        opened = slice(hidden, 2 * hidden) if isinstance(self.cell, nn.LSTM) else slice(0, 2 * hidden)
        with torch.no_grad():
            for bias in (self.first.bias, self.last.bias, self.cell.bias_ih_l0, self.cell.bias_hh_l0):
                bias.zero_()
            self.cell.bias_ih_l0[opened] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(self.first(x.squeeze(1)))
        return self.last(states[:, -1])


def recurrent(cell: str, hidden: int) -> Recurrent:
    return Recurrent(cell, hidden)


@dataclass(frozen=True)
class Network:
    """One of the paper's networks.

    Attributes:
        title: As the paper calls it.
        make: Builds it, with weights to be drawn by :func:`build`.
        input: Shape of one sample.
        millions: Of parameters, as the paper's tables count them.
    """

    title: str
    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    millions: float


_MNIST, _CIFAR = (1, 28, 28), (3, 32, 32)
#: By the name on the command line. The paper says 10.0 million of WRN-16-8; the network of that name has 11.0.
NETWORKS: dict[str, Network] = {
    "lenet-300-100": Network("LeNet-300-100", lenet_300_100, _MNIST, 0.267),
    "lenet-5": Network("LeNet-5-Caffe", lenet_5_caffe, _MNIST, 0.431),
    "alexnet-s": Network("AlexNet-s", partial(alexnet, 1), _CIFAR, 5.1),
    "alexnet-b": Network("AlexNet-b", partial(alexnet, 2), _CIFAR, 8.5),
    "vgg-c": Network("VGG-C", partial(vgg, "C"), _CIFAR, 10.5),
    "vgg-d": Network("VGG-D", partial(vgg, "D"), _CIFAR, 15.2),
    "vgg-like": Network("VGG-like", partial(vgg, "like"), _CIFAR, 15.0),
    "wrn-16-8": Network("WRN-16-8", partial(wide_resnet, 16, 8), _CIFAR, 10.0),
    "wrn-16-10": Network("WRN-16-10", partial(wide_resnet, 16, 10), _CIFAR, 17.1),
    "wrn-22-8": Network("WRN-22-8", partial(wide_resnet, 22, 8), _CIFAR, 17.2),
    "lstm-s": Network("LSTM-s", partial(recurrent, "lstm", 128), _MNIST, 0.137),
    "lstm-b": Network("LSTM-b", partial(recurrent, "lstm", 256), _MNIST, 0.535),
    "gru-s": Network("GRU-s", partial(recurrent, "gru", 128), _MNIST, 0.104),
    "gru-b": Network("GRU-b", partial(recurrent, "gru", 256), _MNIST, 0.404),
}


def build(name: str, init: str = "vs", generator: torch.Generator | None = None, **options: Any) -> nn.Module:
    """A network of :data:`NETWORKS` with freshly drawn weights; ``init`` and ``options`` as for `initialise_`."""
    model = NETWORKS[name].make()
    initialise_(model, init, generator, **options)
    if isinstance(model, Recurrent):
        model.reset_biases_()
    return model


def parameters(model: nn.Module) -> int:
    """How many are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
