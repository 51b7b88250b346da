"""One rank of a test: runs all checks for its number of ranks and writes down what came of each.

python worker.py RANK RANKS FOLDER
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

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
    sk.plan(model, [batch()], 0.3, criterion="random", min_keep=2)


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


def engines_are_rank_zeros():
    seen = [None] * dist.get_world_size()
    plan = sk.plan(build(), [batch(size=8 if dist.get_rank() == 0 else 4000)], KEEP)
    dist.all_gather_object(seen, [layer.engine for layer in plan.layers])
    assert all(engines == seen[0] for engines in seen)


def fsdp_finds_the_masks_of_one_process():
    for memory in ("plain", "stream"):
        model = shard(build())
        assert sk.plan(model, [batch()], KEEP, memory=memory).masks == alone(), memory
        untouched(model, lambda model=model, memory=memory: sk.plan(model, [batch()], KEEP, memory=memory))
    assert all(parameter.grad is None for parameter in model.parameters())


def described(layouts):
    orders = {name: (layout.row_order, layout.col_order) for name, layout in layouts.items()}
    listed = {name: [None if o is None else o.tolist() for o in pair] for name, pair in orders.items()}
    return {name: (layout.block, listed[name], layout.singles) for name, layout in layouts.items()}


def same_plan(plan, expected):
    assert plan.masks == expected.masks
    assert described(plan.layouts) == described(expected.layouts)


def fsdp_shares_out_like_one_process():
    for options in (
        {"block": (4, 2)},
        {"block": (4, 4), "order": True, "mix": 0.25, "min_keep": 9},
        {"scope": "erk", "balance": True},
        {"scope": "uniform", "min_keep": 0.05, "cascade": True},
        {"min_keep": 60},
        {"criterion": "random", "block": (2, 2)},
    ):
        torch.manual_seed(1)
        one = build()
        torch.manual_seed(2)
        expected = sk.plan(one, [batch()], 0.3, process_group=False, **options)
        model = shard(build())
        torch.manual_seed(2)
        plan = sk.plan(model, [batch()], 0.3, **options)
        same_plan(plan, expected)
        assert [layer.flow for layer in plan.layers] == [layer.flow for layer in expected.layers], options
        untouched(model, lambda model=model, options=options: sk.plan(model, [batch()], 0.3, **options))


def tensor_parallel_shares_out_like_one_process():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    options = {"block": (4, 2), "cascade": False}
    model = build()
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    expected = sk.plan(build(), [batch()], 0.3, process_group=False, **options)
    same_plan(sk.plan(model, [batch()], 0.3, **options), expected)
    # What feeds whom is not seen through its transfers, and must not be guessed.
    found = sk.plan(model, [batch()], 0.3, block=(4, 2))
    assert not any(layer.flow.traced for layer in found.layers)


def fsdp_masked_in_place_trains_like_one_process():
    model = shard(build())
    masks = sk.prune_(model, [batch()], KEEP, engine="masked").masks
    one = build()
    sk.sparsify_(one, masks, engine="masked")
    same_training(model, one)
    full = values(model)
    for name, mask in masks.items():
        assert not full[name][~mask.to_dense()].any()
    state = model.state_dict()
    model.load_state_dict(state)


def fsdp_sparse_rebuilt_trains_like_one_process():
    dense = shard(build())
    masks = sk.plan(dense, [batch()], KEEP).masks
    for engine in ("csr", "masked"):
        with torch.device("meta"):
            model = Transformer()
        sk.sparsify_(model, masks, engine=engine)
        shard(model)
        raises(
            ValueError, "copy_kept_: call to_empty first", lambda model=model: sk.distributed.copy_kept_(model, dense)
        )
        model.to_empty(device="cpu")
        sk.distributed.copy_kept_(model, dense)
        one = build()
        sk.sparsify_(one, masks, engine=engine)
        same_training(model, one)


def fsdp_after_pruning_trains_like_one_process():
    model = build()
    masks = sk.prune_(model, [batch()], KEEP, engine="csr").masks
    one = build()
    sk.sparsify_(one, masks, engine="csr")
    same_training(shard(model), one)


def fsdp_refuses_what_it_cannot_convert():
    model = shard(build())

    def refuse():
        text = "a sharded model can be pruned in place with engine='masked' alone; prune it before fully_shard"
        raises(ValueError, text, lambda: sk.prune_(model, [batch()], KEEP))
        raises(ValueError, text, lambda: sk.plan(model, [batch()], KEEP).apply_())
        raises(ValueError, text, lambda: sk.sparsify_(model, alone()))
        raises(ValueError, "preset must be None for a sharded", lambda: sk.plan(model, [batch()], KEEP, preset="paper"))
        raises(ValueError, "must be pruned before it is wrapped or sharded", lambda: sk.score(model, [batch()]))
        raises(ValueError, "process_group must not", lambda: sk.plan(model, [batch()], KEEP, process_group=False))

    untouched(model, refuse)


def fsdp_refuses_gradients_that_are_not_reduced():
    text = "fully_shard must reduce gradients in every backward pass"
    model = shard(build())
    model.set_requires_gradient_sync(False)
    for memory in ("plain", "stream"):
        raises(ValueError, text, lambda memory=memory: sk.plan(model, [batch()], KEEP, memory=memory))
    model.set_requires_gradient_sync(True)
    assert sk.plan(model, [batch()], KEEP).masks == alone()
    model.set_requires_gradient_sync(False)
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    model.set_requires_gradient_sync(True)
    raises(ValueError, text, lambda: sk.plan(model, [batch()], KEEP))


def tensor_parallel_finds_the_masks_of_one_process():
    model = build()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    assert any(p.placements[0].dim == 1 for p in model.parameters() if hasattr(p, "placements") and p.dim() == 2)
    for memory in ("plain", "stream"):
        assert sk.plan(model, [batch()], KEEP, memory=memory).masks == alone(), memory
    masks = sk.prune_(model, [batch()], KEEP, engine="masked").masks
    full = values(model)
    assert all(torch.equal(full[name] != 0, mask.to_dense()) for name, mask in masks.items())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    optimizer.step()
    full = values(model)
    assert not any(full[name][~mask.to_dense()].any() for name, mask in masks.items())


# With four ranks


def two_dimensional_shards_find_the_masks_of_one_process():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = build()
    for block in model.blocks:
        parallelize_module(block, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    shard(model, mesh["data"])
    for memory in ("plain", "stream"):
        assert sk.plan(model, [batch()], KEEP, memory=memory).masks == alone(), memory
    masks = sk.prune_(model, [batch()], KEEP, engine="masked").masks
    full = values(model)
    assert all(torch.equal(full[name] != 0, mask.to_dense()) for name, mask in masks.items())


def replicated_shards_find_the_masks_of_one_process():
    for memory in ("plain", "stream"):
        model = shard(build(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
        assert sk.plan(model, [batch()], KEEP, memory=memory).masks == alone(), memory
    expected = sk.plan(build(), [batch()], 0.3, process_group=False, block=(4, 2))
    same_plan(sk.plan(model, [batch()], 0.3, block=(4, 2)), expected)


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


FOR_ALL = (
    shared_gradients_give_the_masks_of_one_process,
    gradients_are_averaged_before_scores,
    ddp_before_pruning_trains_like_one_process,
    fsdp_finds_the_masks_of_one_process,
    fsdp_sparse_rebuilt_trains_like_one_process,
    tensor_parallel_finds_the_masks_of_one_process,
)
FOR_TWO = (
    blocks_and_chance_are_the_same_on_all_ranks,
    fresh_draws_are_the_same_on_all_ranks,
    engines_are_rank_zeros,
    ddp_after_pruning_trains_like_one_process,
    ddp_moves_its_optimizer_and_keeps_its_hooks,
    fsdp_shares_out_like_one_process,
    tensor_parallel_shares_out_like_one_process,
    fsdp_masked_in_place_trains_like_one_process,
    fsdp_after_pruning_trains_like_one_process,
    fsdp_refuses_what_it_cannot_convert,
    fsdp_refuses_gradients_that_are_not_reduced,
    a_rank_that_fails_among_shared_out_layers_fails_all,
    a_sharded_loss_that_raises_everywhere_leaves_shards,
)
FOR_SEVERAL = (
    what_fails_on_one_rank_fails_on_all,
    ranks_must_agree_on_what_they_prune,
    a_bad_gradient_in_one_shard_fails_everywhere,
)
FOR_FOUR = (
    two_dimensional_shards_find_the_masks_of_one_process,
    replicated_shards_find_the_masks_of_one_process,
    a_part_of_the_ranks_prunes_by_itself,
)
# Ranks are lost by these, so that they come last.
LAST = (a_rank_that_hangs_times_out, a_rank_that_dies_fails_the_others)
CHECKS = {1: FOR_ALL, 2: FOR_ALL + FOR_TWO + FOR_SEVERAL + LAST, 4: FOR_ALL + FOR_SEVERAL + FOR_FOUR}


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=PATIENCE)
    results: dict[str, str] = {}
    chosen = sys.argv[4:]
    for check in CHECKS[ranks]:
        if chosen and check.__name__ not in chosen:
            continue
        started, used = time.monotonic(), time.process_time()
        try:
            check()
            results[check.__name__] = "ok"
            print(f"{check.__name__}: {time.monotonic() - started:.1f} s, {time.process_time() - used:.1f} s of a core")
        except Exception:
            results[check.__name__] = traceback.format_exc()
        (folder / f"rank{rank}.json").write_text(json.dumps(results))
    if CHECKS[ranks][-1] in LAST:
        os._exit(0)  # the group has lost a rank
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
