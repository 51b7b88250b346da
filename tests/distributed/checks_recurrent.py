"""Checks of recurrent modules on two ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from models_of_ranks import batch, mine, whole
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import snipkern as sk
from snipkern.nn import SparseLSTM

# FSDP2 can't reduce gradients of weights that keep nothing.
OPTIONS = {"keep": 0.4, "min_keep": 8}


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(11, 7), nn.Linear(10, 11)
        self.rnn = nn.LSTM(7, 9, bidirectional=True, proj_size=5)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens).transpose(0, 1))[0][-1])


def pruned() -> Reader:
    model = Reader()
    sk.prune_(model, [batch()], engine="csr", process_group=False, **OPTIONS)
    assert isinstance(model.rnn, SparseLSTM)
    return model


def sharded(model):
    fully_shard(model.rnn)
    return fully_shard(model)


def trains_like(model, one):
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-3) for m in (model, one))
    for step in range(3):
        data = batch(step)
        for net, optimizer, (x, y) in ((model, ours, mine(data)), (one, theirs, data)):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(whole(a), b, rtol=1e-4, atol=1e-5)


def recurrent_modules_train_replicated():
    trains_like(DistributedDataParallel(pruned()), pruned())
    model, data = DistributedDataParallel(Reader()), [batch()]
    sk.prune_(model, data, engine="csr", **OPTIONS)
    assert sk.masks(model.module) == sk.masks(pruned())
    trains_like(model, pruned())


def recurrent_modules_train_sharded():
    trains_like(sharded(pruned()), pruned())
    dense = sharded(Reader())
    masks = sk.plan(dense, [batch()], engine="masked", **OPTIONS).masks
    with torch.device("meta"):
        model = Reader()
    sk.sparsify_(model, masks, engine="csr")
    sharded(model).to_empty(device="cpu")
    sk.distributed.copy_kept_(model, dense)
    assert dist.get_world_size() == 2
    trains_like(model, pruned())
