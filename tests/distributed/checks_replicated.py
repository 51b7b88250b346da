"""Checks of ranks that each have the whole model."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from models_of_ranks import (
    KEEP,
    alone,
    batch,
    build,
    mine,
    same_training,
)
from torch.nn.parallel import DistributedDataParallel

import snipkern as sk


def shared_gradients_give_the_masks_of_one_process():
    for memory in ("plain", "stream"):
        for data in ([batch()], [batch(size=1)]):
            assert sk.plan(build(), data, KEEP, memory=memory).masks == alone(data), memory
    assert (
        sk.plan(build(), [batch(), batch(1)], KEEP, batches=2).masks
        == sk.plan(build(), [batch(), batch(1)], KEEP, batches=2, process_group=False).masks
    )


def blocks_and_chance_are_the_same_on_all_ranks():
    torch.manual_seed(0)
    options = {"block": (4, 4), "balance": True, "engine": "masked"}
    expected = sk.plan(build(), [batch()], 0.3, process_group=False, **options).masks
    assert sk.plan(build(), [batch()], 0.3, **options).masks == expected
    model = build()
    torch.manual_seed(dist.get_rank())
    sk.plan(model, [batch()], 0.3, criterion="snip-shuffled", min_keep=2)


def gradients_are_averaged_before_scores():
    loss = {"loss_fn": lambda model, data: F.cross_entropy(model(data[0]).double(), data[1])}
    model = build().double()
    expected = sk.plan(copy.deepcopy(model), [batch()], KEEP, process_group=False, **loss).masks
    for memory in ("plain", "stream"):
        assert sk.plan(copy.deepcopy(model), [mine(batch())], KEEP, memory=memory, **loss).masks == expected


def fresh_draws_are_the_same_on_all_ranks():
    torch.manual_seed(dist.get_rank())
    model = build()
    torch.manual_seed(dist.get_rank())
    state = torch.get_rng_state()
    sk.prune_(model, [batch()], KEEP, preset="paper")
    assert torch.equal(torch.get_rng_state(), state)


def ddp_after_pruning_trains_like_one_process():
    model = build()
    masks = sk.prune_(model, [batch()], KEEP, engine="csr").masks
    one = build()
    sk.sparsify_(one, masks, engine="csr")
    same_training(DistributedDataParallel(model), one)


def ddp_before_pruning_trains_like_one_process():
    for options in ({}, {"static_graph": True}, {"gradient_as_bucket_view": True, "find_unused_parameters": True}):
        model = DistributedDataParallel(build(), **options)
        same_training(model, build(), steps=2)  # its reducer is in use by now
        with torch.no_grad():
            for p, fresh in zip(model.parameters(), build().parameters(), strict=True):
                p.copy_(fresh)
        for memory in ("stream", "plain"):
            assert sk.plan(model, [batch()], KEEP, memory=memory).masks == alone(), memory
        model.zero_grad()
        masks = sk.prune_(model, [batch()], KEEP, engine="csr").masks
        assert masks == alone()
        one = build()
        sk.sparsify_(one, masks, engine="csr")
        try:
            same_training(model, one)
        except AssertionError as error:
            raise AssertionError(f"with {options}: {error}") from None


def ddp_moves_its_optimizer_and_keeps_its_hooks():
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    calls = []

    def hook(state, bucket):
        calls.append(1)
        return allreduce_hook(None, bucket)

    model = DistributedDataParallel(build())
    model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        F.cross_entropy(model(batch()[0]), batch()[1]).backward()
        optimizer.step()
    sk.prune_(model, [batch()], KEEP, engine="csr", optimizer=optimizer)
    calls.clear()
    optimizer.zero_grad()
    x, y = mine(batch())
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert calls
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, [p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))


def ddp_is_pruned_again_and_rewound_like_one_process():
    model, one = DistributedDataParallel(build()), build()
    snapshot = sk.Snapshot(one)
    for keep, engine in ((0.5, "masked"), (0.3, "csr"), (KEEP, "csr")):
        found = sk.prune_(model, [batch()], keep, engine=engine, criterion="magnitude").masks
        assert found == sk.prune_(one, [batch()], keep, engine=engine, criterion="magnitude", process_group=False).masks
        snapshot.rewind_(one)
        snapshot.rewind_(model)
        same_training(model, one, steps=2)
    snapshot.rewind_(one)
    snapshot.rewind_(model)
    plans = [sk.plan(model, [batch()], 0.05, memory=memory) for memory in ("plain", "stream")]
    expected = sk.plan(one, [batch()], 0.05, process_group=False).masks
    assert all(plan.masks == expected for plan in plans)


def engines_are_rank_zeros():
    seen = [None] * dist.get_world_size()
    plan = sk.plan(build(), [batch(size=8 if dist.get_rank() == 0 else 4000)], KEEP)
    dist.all_gather_object(seen, [layer.engine for layer in plan.layers])
    assert all(engines == seen[0] for engines in seen)
