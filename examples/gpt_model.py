"""A compact GPT over bytes, in sizes from thousands to billions of weights, drawn alike on one process or in shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["GPT", "SIZES", "Size", "fill_", "initial", "initialise_", "on_meta"]

VOCABULARY = 256
# Large beside what a block adds at first, so that the residual stream begins with the bytes themselves; positions are a
# small mark on them.
TOKEN_STD, POSITION_STD = 1.0, 0.1


@dataclass(frozen=True)
class Size:
    """A preset: depth, width, and the context and batch that go with it unless others are asked for."""

    layers: int
    width: int
    heads: int
    context: int
    batch: int

    def weights(self) -> int:
        """Weights that pruning chooses from: all linear layers, the head included."""
        return 12 * self.layers * self.width**2 + VOCABULARY * self.width

    def parameters(self, context: int | None = None) -> int:
        """All parameters."""
        norms = 2 * self.width * (2 * self.layers + 1)
        return self.weights() + norms + self.width * (VOCABULARY + (context or self.context))


SIZES = {
    "tiny": Size(layers=2, width=64, heads=2, context=32, batch=8),
    "small": Size(layers=6, width=512, heads=8, context=128, batch=4),
    "medium": Size(layers=12, width=768, heads=12, context=256, batch=8),
    "large": Size(layers=24, width=1024, heads=16, context=512, batch=8),
    "1b": Size(layers=24, width=2048, heads=16, context=1024, batch=8),
    "3b": Size(layers=32, width=2560, heads=32, context=1024, batch=8),
    "7b": Size(layers=36, width=4096, heads=32, context=1024, batch=8),
}


class Block(nn.Module):
    """One layer of a transformer, on the rows of all sequences together: ``[batch * tokens, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # One projection for queries, keys and values: a sparse kernel then packs its input once, not three times.
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        qkv = self.qkv(self.norm_1(x)).view(batch, -1, 3, self.heads, x.shape[1] // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """A causal pre-norm transformer with learned positions and an untied head.

    Maps int64 bytes ``[batch, tokens]`` to logits ``[batch * tokens, 256]``; at most ``context`` tokens.
    """

    def __init__(self, size: Size, context: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, size.width), nn.Embedding(context, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count = tokens.shape
        x = (self.token(tokens) + self.position(torch.arange(count, device=tokens.device))).flatten(0, 1)
        for block in self.blocks:
            x = block(x, batch)
        return self.head(self.norm(x))


def on_meta(size: Size, context: int) -> GPT:
    """The model without memory for its parameters: to be sharded, pruned, and materialised by ``to_empty``."""
    with torch.device("meta"):
        return GPT(size, context)


def initial(name: str, shape: torch.Size, layers: int, seed: int, index: int) -> Tensor:
    """Initial values of the ``index``-th parameter, float32.

    Matrices have variance 1 / fan in (the scale that makes SNIP's scores of different layers comparable), those that
    add to the residual stream 1 / (2 * layers) of it; embeddings of bytes a deviation of 1, of positions 0.1.
    """
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")))
    # A random stream of its own, so that nothing but the seed and its place decides on it. torch's generator takes 32
    # bits of a seed.
    stream = np.random.SeedSequence((seed, index)).generate_state(1)
    generator = torch.Generator().manual_seed(int(stream[0]))
    std = shape[1] ** -0.5
    if name.startswith("token"):
        std = TOKEN_STD
    elif name.startswith("position"):
        std = POSITION_STD
    elif name.endswith(("out.weight", "down.weight")):
        std *= (2 * layers) ** -0.5
    return torch.randn(shape, generator=generator).mul_(std)


def initialise_(model: GPT, seed: int) -> None:
    """Draws all parameters: the same ones however the model is sharded; one whole parameter at a time is in memory."""
    places = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    fill_(model, lambda name: initial(name, shapes[name], len(model.blocks), seed, places[name]))


@torch.no_grad()
def fill_(model: nn.Module, value: Callable[[str], Tensor]) -> None:
    """Writes ``value(name)``, a whole tensor, into each parameter, or the part of it that this rank holds."""
    for name, parameter in model.named_parameters():
        parameter.copy_(like(value(name), parameter))


def like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, laid out over the ranks as a parameter of its shape is."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    # Every rank holds the whole already, so nothing needs to be sent.
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
