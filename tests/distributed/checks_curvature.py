"""Checks of criteria that look at curvature, on several ranks."""

import torch
from models_of_ranks import batch, build, mine

import snipkern as sk
from snipkern.criteria import Grasp, LeaveOneOut, Obd, Obs


def curvature_is_averaged_over_ranks():
    head = {"filter_fn": lambda module, name: name == "head"}  # one pass for each weight
    cases = (
        (Grasp(temperature=2), {}),
        (Obd(), {}),
        (Obd(curvature="fisher"), {}),
        (Obd(curvature="hutchinson", samples=2), {}),
        (Obs(block=6, curvature="fisher"), {}),
        (LeaveOneOut(), head),
    )
    for criterion, options in cases:
        # In float64, so that rounding of sums over parts of a batch decides next to nothing.
        one, model = build().double(), build().double()
        expected = sk.plan(one, [batch()], 0.3, criterion=criterion, process_group=False, **options)
        found = sk.plan(model, [mine(batch())], 0.3, criterion=criterion, **options)
        masks = [torch.cat([mask.to_dense().flatten() for mask in plan.masks.values()]) for plan in (expected, found)]
        assert int((masks[0] != masks[1]).sum()) < 0.002 * masks[0].numel(), criterion
        if isinstance(criterion, Obs):
            ours, theirs = found.update(expected.masks), expected.update(expected.masks)
            for name, weight in theirs.items():
                torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-10)


def comparisons_are_the_same_on_all_ranks():
    torch.manual_seed(0)
    found = sk.compare(build(), [mine(batch())], ["random", "obd"], against="grasp", keep=0.2)
    alone = sk.compare(build(), [batch()], ["obd"], against="grasp", keep=0.2, process_group=False)
    ours, theirs = found.overall["obd"], alone.overall["obd"]
    assert abs(ours.spearman - theirs.spearman) < 1e-3
    assert abs(ours.common - theirs.common) <= 3
