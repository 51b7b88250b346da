"""What checks on several ranks share: models, batches, comparisons."""

import datetime

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

import snipkern as sk

KEEP = 0.1
PATIENCE = datetime.timedelta(seconds=90)
IMPATIENCE = datetime.timedelta(seconds=2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 52), nn.Linear(52, 24)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Transformer(nn.Module):
    """Attention and perceptrons; sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 24)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Linear(24, 11)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer()


def shard(model: nn.Module, mesh=None) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batch(seed: int = 0, size: int = 8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 11, (size, 5), generator=generator), torch.randint(0, 11, (size,), generator=generator)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def values(model):
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


def alone(data=None):
    """The masks that one process finds."""
    return sk.plan(build(), data or [batch()], KEEP, process_group=False).masks


def mine(data):
    """This rank's share of a batch."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return tuple(part.chunk(ranks)[rank] for part in data)


def raises(kind, text, action):
    try:
        action()
    except kind as error:
        assert text in str(error), f"{error} lacks {text!r}"
    else:
        raise AssertionError(f"nothing was raised; {text!r} should have been")


def untouched(model, action, *, classes=True):
    """That an action changes nothing of a model, not even where it fails."""
    before, kinds = values(model), [type(module) for module in model.modules()]
    action()
    assert [type(module) for module in model.modules()] == kinds
    assert not sk.masks(model)
    after = values(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def same_training(model, one, steps=4):
    """That ranks with a share of the batch each train like one process with all of it."""
    # A key's bias has no gradient but rounding errors, which the usual eps would blow up.
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-3) for m in (model, one))
    for step in range(steps):
        data = batch(step)
        for net, optimizer, (x, y) in ((model, ours, mine(data)), (one, theirs, data)):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(whole(a), b, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# What every number of ranks must do
