"""The two networks of the SNIP paper's Table 1, with its initial weights.

Lee, Ajanthan, Torr: "SNIP: single-shot network pruning based on connection sensitivity", ICLR 2019.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["MODELS", "lenet_5_caffe", "lenet_300_100"]

# Standard deviation of a standard normal variable that is cut off at -2 and 2.
TRUNCATED_STD = 0.87962566


def lenet_300_100(generator: torch.Generator | None = None) -> nn.Sequential:
    """LeNet-300-100, three fully connected layers: images ``[N, 1, 28, 28]`` to logits ``[N, 10]``.

    266,610 parameters: 266,200 weights and 410 biases.
    """
    return _initialised(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        ),
        generator,
    )


def lenet_5_caffe(generator: torch.Generator | None = None) -> nn.Sequential:
    """LeNet-5 as Caffe ships it: images ``[N, 1, 28, 28]`` to logits ``[N, 10]``.

    431,080 parameters: 430,500 weights and 580 biases. As in Caffe and in the paper's code, no activation follows
    the convolutions: max-pooling is their only non-linearity.
    """
    return _initialised(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * 4 * 4, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        ),
        generator,
    )


def _initialised(layers: OrderedDict[str, nn.Module], generator: torch.Generator | None) -> nn.Sequential:
    """Variance scaling, as the paper's section 4 asks and its code draws it; biases zero.

    Weights are normal with variance 1 / fan_in, cut off at two standard deviations. Signals then keep their scale from
    layer to layer, which is what makes the scores |g * w| of different layers comparable.
    """
    for layer in layers.values():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            std = layer.weight[0].numel() ** -0.5 / TRUNCATED_STD
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(layers)


MODELS: dict[str, Callable[[torch.Generator | None], nn.Sequential]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5_caffe,
}
