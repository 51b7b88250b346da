"""Checks of criteria other than SNIP on several ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from models_of_ranks import KEEP, batch, build, mine, raises, shard, untouched

import snipkern as sk
from snipkern.criteria import Criterion, Scores


class Own(Criterion):
    """Gradients of a sum over weights that depend on the ranks' batches, averaged by hand."""

    name = "own"

    def __init__(self, fails=False):
        self.fails = fails

    def scores(self, on):
        (x, y), weights = next(on.given()), on.weights()
        with on.evaluating():
            loss = F.cross_entropy(on.model(x), y)
            found = torch.autograd.grad(loss, [entry.parameter for entry in on.pool])
        if self.fails:
            raise KeyError("no scores today")
        pairs = zip(weights.items(), found, strict=True)
        averaged = {n: (w, on.averaged(g)) for (n, w), g in pairs}
        return Scores(averaged, update=lambda masks: {n: w * (2 + dist.get_rank()) for n, w in weights.items()})


def every_criterion_finds_the_masks_of_one_process():
    whole, part = [batch()], [mine(batch())]
    for criterion in ("magnitude", "random", "snip-shuffled", "wanda", Own()):
        for options in ({}, {"block": (4, 2)}, {"scope": "row"}):
            # In float64, so that rounding of sums over parts of a batch decides next to nothing.
            one, model = build().double(), build().double()
            torch.manual_seed(3)
            expected = sk.plan(one, whole, 0.3, criterion=criterion, process_group=False, **options)
            torch.manual_seed(3 + dist.get_rank())  # the first rank's counts
            found = sk.plan(model, part, 0.3, criterion=criterion, **options)
            same = found.masks == expected.masks
            total = sum(mask.numel for mask in found.masks.values())
            apart = sum(
                int((mask.to_dense() != expected.masks[name].to_dense()).sum()) for name, mask in found.masks.items()
            )
            assert same or (criterion not in ("magnitude", "random") and apart < 0.002 * total), (
                criterion,
                options,
                apart,
            )


def updates_are_the_same_on_all_ranks():
    model = build()
    before = model.head.weight.detach().clone()
    pruned = sk.prune_(model, [batch()], KEEP, criterion=Own(), engine="csr")
    mean = 2 + (dist.get_world_size() - 1) / 2
    torch.testing.assert_close(model.head.weight, before * pruned.masks["head.weight"].to_dense() * mean)


def a_criterion_that_fails_on_one_rank_fails_on_all():
    last = dist.get_rank() == dist.get_world_size() - 1
    kind, text = (KeyError, "no scores") if last else (RuntimeError, "all ranks must succeed (got from rank")
    model = build()
    untouched(model, lambda: raises(kind, text, lambda: sk.prune_(model, [batch()], KEEP, criterion=Own(fails=last))))
    raises(ValueError, "all ranks must be called with the same criterion",
           lambda: sk.plan(model, [batch()], KEEP, criterion="magnitude" if last else "random"))  # fmt: skip


def fsdp_scores_magnitudes_and_chance():
    for criterion, options, data in (
        ("magnitude", {}, [batch()]),
        ("magnitude", {"memory": "stream"}, None),
        ("random", {}, None),
        ("random", {"block": (4, 2)}, [batch()]),
        ("magnitude", {"scope": "erk"}, None),
    ):
        one, model = build(), shard(build())
        torch.manual_seed(4)
        expected = sk.plan(one, data, 0.3, criterion=criterion, process_group=False, **options).masks
        torch.manual_seed(4)
        assert sk.plan(model, data, 0.3, criterion=criterion, **options).masks == expected, (options, criterion)
        assert all(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        if data:  # without a backward pass
            untouched(model, lambda model=model, data=data: sk.plan(model, data, 0.3, criterion="magnitude"))
    model = shard(build())
    text = "criterion='wanda' can't score a sharded model; prune before fully_shard"
    untouched(model, lambda: raises(ValueError, text, lambda: sk.plan(model, [batch()], KEEP, criterion="wanda")))
