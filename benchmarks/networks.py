"""The networks whose training steps and latencies are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GPT", "MEMORY", "NETS", "Net", "gpt", "lenet_5", "lenet_300_100", "mlp", "resnet_18", "vgg_16"]

# Channels of VGG-16's convolutions, a list for each image size.
VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def lenet_300_100() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Sequential:
    """The Caffe variant that the SNIP paper prunes."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def vgg_16(stages: tuple[tuple[int, ...], ...] = VGG_16) -> nn.Sequential:
    """VGG for 32 x 32 images: 3x3 convolutions with batch norm, a pool after each stage, one linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for widths in stages:
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet_18(widths: tuple[int, ...] = (64, 128, 256, 512)) -> nn.Sequential:
    """ResNet-18 with the stem for 32 x 32 images: one 3x3 convolution, no pool."""
    stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU()]
    channels = widths[0]
    for width in widths:
        layers += [Residual(channels, width, 1 if channels == width else 2), Residual(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Block(nn.Module):
    """One layer of a transformer, on the rows of all sequences together: ``[batch * tokens, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        qkv = self.qkv(self.norm_1(x)).view(batch, -1, 3, self.heads, x.shape[1] // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """A causal transformer over bytes; its output has a row of logits for each token: ``[batch * tokens, 256]``."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count = tokens.shape
        x = (self.token(tokens) + self.position.weight[:count]).flatten(0, 1)
        for block in self.blocks:
            x = block(x, batch)
        return self.head(self.norm(x))


def gpt(width: int = 512, layers: int = 6, heads: int = 8, context: int = 256) -> GPT:
    return GPT(width, layers, heads, context)


@dataclass(frozen=True)
class Net:
    """A model to train and what it is measured with.

    Attributes:
        make: Builds it.
        input: Shape of one sample; of ``tokens``, if these are.
        classes: Of its outputs.
        batch: Samples a step.
        keep: Share of the weights that pruning keeps.
        optimizers: Each makes a case of its own; all contenders take part in the first one's.
        large: A step takes so long that few of them are measured, and that it is worth telling where the time goes.
        tokens: The input is a sequence of bytes, and every one has a label.
    """

    name: str
    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    classes: int
    batch: int
    keep: float
    optimizers: tuple[str, ...] = ("sgd", "adamw")
    large: bool = False
    tokens: bool = False

    @property
    def image(self) -> bool:
        return len(self.input) == 3

    def data(self, batch: int | None = None, input: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Random samples and labels, by default as many and as long as in training."""
        shape = (batch or self.batch, *(input or self.input))
        if self.tokens:
            return torch.randint(0, 256, shape), torch.randint(0, self.classes, (shape[0] * shape[1],))
        return torch.randn(shape), torch.randint(0, self.classes, (shape[0],))


DENSITY = 0.05
MLP = Net("MLP 4096-4096-4096", partial(mlp, 4096), (4096,), 4096, 128, DENSITY)
LENET_300 = Net("LeNet-300-100", lenet_300_100, (1, 28, 28), 10, 100, DENSITY)
LENET_5 = Net("LeNet-5-Caffe", lenet_5, (1, 28, 28), 10, 100, DENSITY)
VGG = Net("VGG-16 CIFAR", vgg_16, (3, 32, 32), 10, 128, 0.03, ("sgd",), large=True)
RESNET = Net("ResNet-18 CIFAR", resnet_18, (3, 32, 32), 10, 32, DENSITY, ("sgd",), large=True)
GPT_512 = Net("GPT 6x512, 256 tokens", gpt, (256,), 256, 8, DENSITY, ("adamw",), large=True, tokens=True)
MEMORY = ((MLP, "sgd"), (MLP, "adamw"), (LENET_300, "sgd"), (LENET_5, "sgd"))
NETS = (MLP, LENET_300, LENET_5, VGG, RESNET, GPT_512)

# Tiny ones of every kind, to see that everything runs.
QUICK_NETS = (
    Net("MLP 96-96-96", partial(mlp, 96), (96,), 96, 16, 0.1),
    Net("VGG tiny", partial(vgg_16, ((8,), (12,))), (3, 8, 8), 10, 4, 0.3, ("sgd",), large=True),
    Net("ResNet tiny", partial(resnet_18, (8, 12)), (3, 8, 8), 10, 4, 0.3, ("sgd",), large=True),
    Net("GPT tiny", partial(gpt, 32, 1, 2, 8), (8,), 256, 2, 0.2, ("adamw",), large=True, tokens=True),
)
QUICK_MEMORY = ((QUICK_NETS[0], "sgd"), (QUICK_NETS[0], "adamw"))
