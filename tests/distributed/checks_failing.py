"""Checks of ranks that fail, disagree, hang or stay away."""

import os
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from models_of_ranks import (
    IMPATIENCE,
    KEEP,
    PATIENCE,
    alone,
    batch,
    build,
    raises,
    shard,
    untouched,
    whole,
)
from torch import nn

import snipkern as sk


def a_part_of_the_ranks_prunes_by_itself():
    groups = [dist.new_group(ranks, timeout=PATIENCE) for ranks in ([0, 1], [2, 3])]
    group, other = groups if dist.get_rank() < 2 else groups[::-1]
    data = [batch(dist.get_rank() // 2)]
    assert sk.plan(build(), data, KEEP, process_group=group).masks == alone(data)
    raises(ValueError, "process_group must be one that this process is in",
           lambda: sk.plan(build(), data, KEEP, process_group=other))  # fmt: skip


# Failures


def what_fails_on_one_rank_fails_on_all():
    last = dist.get_rank() == dist.get_world_size() - 1
    at = f"all ranks must succeed (got from rank {dist.get_world_size() - 1}: "

    def broken(model, data, calls=[]):  # noqa: B006
        if last:
            raise KeyError("no loss today")
        return F.cross_entropy(model(data[0]), data[1])

    def late(model, data, calls=[]):  # noqa: B006
        calls.append(1)
        if last and len(calls) == 2:
            raise KeyError("no second loss")
        return F.cross_entropy(model(data[0]), data[1])

    def fail(model):
        good = [batch()]
        kind, text = (KeyError, "no loss") if last else (RuntimeError, at + "KeyError")
        raises(kind, text, lambda: sk.prune_(model, good, KEEP, loss_fn=broken))
        raises(kind, text, lambda: sk.prune_(model, good, KEEP, loss_fn=broken, memory="stream"))
        text = "no second" if last else at
        from snipkern.selection import topk

        direct, topk.TUNING = topk.TUNING, topk.Tuning(direct=0)  # more than one walk
        raises(kind, text, lambda: sk.prune_(model, good, KEEP, loss_fn=late, memory="stream"))
        topk.TUNING = direct
        text = "score: loader must yield" if last else at
        raises(ValueError, text, lambda: sk.prune_(model, [] if last else good, KEEP))
        other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
        own = torch.optim.SGD(model.parameters(), lr=1)
        text = "optimizer must train every pruned weight" if last else at
        raises(ValueError, text, lambda: sk.prune_(model, good, KEEP, optimizer=other if last else own))

    model = build()
    untouched(model, lambda: fail(model))
    assert sk.plan(model, [batch()], KEEP).masks == alone()


def ranks_must_agree_on_what_they_prune():
    rank = dist.get_rank()
    data = [batch()]
    odd = build()
    with torch.no_grad():
        odd.blocks[1].up.bias[3] += rank == 1
    untouched(odd, lambda: raises(ValueError, "start from the same weights; seed them alike, or broadcast rank 0's (got"
                                  " another 'blocks.1.up.bias' on rank 1)", lambda: sk.prune_(odd, data, KEEP)))  # fmt: skip
    raises(ValueError, "with the same keep (got", lambda: sk.prune_(build(), data, 0.1 + 0.1 * (rank == 1)))
    raises(ValueError, "process_group must be a process group, None or False (got 'gloo')",
           lambda: sk.prune_(build(), data, KEEP, process_group="gloo"))  # fmt: skip


def a_bad_gradient_in_one_shard_fails_everywhere():
    for memory in ("plain", "stream"):
        model = shard(build())
        with torch.no_grad():
            model.head.weight.to_local().fill_(1e38)  # overflows in the scores' product only where this rank looks
            if dist.get_rank() == 0:
                model.blocks[0].up.weight.to_local()[0, 0] = torch.nan

        def loss(net, data):
            return F.cross_entropy(net(data[0]).nan_to_num(), data[1]) + net.head.bias.sum()

        untouched_nan = [whole(p.detach()).clone() for p in model.parameters()]
        raises(ValueError, "must be finite", lambda: sk.plan(model, [batch()], KEEP, loss_fn=loss, memory=memory))  # noqa: B023
        after = [whole(p.detach()) for p in model.parameters()]
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(untouched_nan, after, strict=True))


def a_rank_that_fails_among_shared_out_layers_fails_all():
    from snipkern.allocation import allocate as module

    module = sys.modules[module.__module__]
    original, last = module.block_mask, dist.get_rank() == dist.get_world_size() - 1

    def failing(*args):
        if last:
            raise MemoryError("no memory today")
        return original(*args)

    model = shard(build())
    module.block_mask = failing
    kind, text = (MemoryError, "no memory") if last else (RuntimeError, "all ranks must succeed (got from rank")
    try:
        untouched(model, lambda: raises(kind, text, lambda: sk.plan(model, [batch()], 0.3, block=(4, 2))))
    finally:
        module.block_mask = original


def a_sharded_loss_that_raises_everywhere_leaves_shards():
    for memory in ("plain", "stream"):
        model = shard(build())

        def broken(net, data):
            net(data[0])
            raise KeyError("no loss today")

        untouched(model, lambda model=model, memory=memory, broken=broken: raises(
            KeyError, "no loss", lambda: sk.plan(model, [batch()], KEEP, loss_fn=broken, memory=memory)))  # fmt: skip
        assert sk.plan(model, [batch()], KEEP, memory=memory).masks == alone()


def a_rank_that_hangs_times_out():
    group = dist.new_group(timeout=IMPATIENCE)
    started = time.monotonic()

    def slow(model, data):
        if dist.get_rank() == 1:
            time.sleep(3 * IMPATIENCE.total_seconds())
        return F.cross_entropy(model(data[0]), data[1])

    model = build()
    untouched(model, lambda: raises(RuntimeError, "", lambda: sk.prune_(model, [batch()], KEEP, loss_fn=slow,
                                                                        process_group=group)))  # fmt: skip
    if dist.get_rank() != 1:
        assert time.monotonic() - started < 2.5 * IMPATIENCE.total_seconds()


def a_rank_that_dies_fails_the_others():
    def deadly(model, data):
        if dist.get_rank() == 1:
            os._exit(0)
        return F.cross_entropy(model(data[0]), data[1])

    model = build()
    untouched(model, lambda: raises(RuntimeError, "", lambda: sk.prune_(model, [batch()], KEEP, loss_fn=deadly)))
