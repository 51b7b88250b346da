"""Checks of models that are cut up between ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from models_of_ranks import KEEP, Transformer, alone, batch, build, raises, same_training, shard, untouched, values
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import snipkern as sk


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
        {"criterion": "snip-shuffled", "block": (2, 2)},
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
    raises(ValueError, "sharded model can be pruned once", lambda: sk.prune_(model, [batch()], 0.05, engine="masked"))
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
