"""Warnings of layers that nothing goes through any more: by name, before anything is changed, and in the report."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import snipkern as sk
from snipkern.allocation import Flow
from snipkern.collapse import warn_of
from snipkern.engine.choice import Choice
from snipkern.report import Layer, collapses, listed


def layer(name, kept, effective, shape=(4, 5)):
    flow = None if effective is None else Flow(0, 0, effective, True, torch.ones(shape[0]).bool().numpy())
    return Layer(name, "Linear", shape, kept, 20, Choice("masked", "as asked"), flow=flow)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))


BATCH = [(torch.rand(16, 30, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3)]


def test_each_kind_of_collapse_is_said_once():
    assert collapses([layer("a", 3, 3), layer("b", 3, None), layer("bias", 0, None, (4,))]) == []
    assert collapses([layer("a", 0, 0), layer("b", 3, 3)]) == [
        "nothing is kept of a: only biases are left in its place."
    ]
    assert collapses([layer("a", 2, 0), layer("c", 2, 0), layer("b", 3, 3)]) == [
        "no kept weight of a, c is on a path from the model's inputs to its outputs: what feeds or reads them is pruned"
        " away."
    ]
    assert collapses([layer("r.weight_hh_l0", 0, 0), layer("b", 3, 3)]) == [
        "nothing is kept of r.weight_hh_l0: no gate there hears the outputs of the step before."
    ]
    whole = collapses([layer("a", 0, 0), layer("b", 3, 0)])
    assert len(whole) == 2 and whole[1].startswith("no path of kept weights leads from the model's inputs")
    assert len(collapses([layer("a", 0, None), layer("b", 3, None)])) == 1  # nobody has looked for paths
    assert listed([str(n) for n in range(8)]) == "0, 1, 2, 3, 4, 5 and 2 more"


def test_prune_warns_where_it_was_called_and_names_layers():
    model = net()
    with pytest.warns(sk.CollapseWarning, match=r"^prune: Nothing is kept of 0\.weight.*min_keep=") as caught:
        pruned = sk.prune_(model, BATCH, 2)
    assert [warning.filename for warning in caught if warning.category is sk.CollapseWarning] == [__file__]
    assert "Warning: nothing is kept of 0.weight" in pruned.report()
    assert "no path of kept weights leads from the model's inputs to its outputs" in " ".join(str(pruned).split())
    before = model(torch.zeros(1, 30))
    assert torch.equal(before, model(torch.ones(1, 30)))  # as the warning says


def test_healthy_pruning_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", sk.CollapseWarning)
        pruned = sk.prune_(net(), BATCH, 0.5)
        assert not collapses(pruned.layers)


def test_as_an_error_it_leaves_the_model_as_it_was():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", sk.CollapseWarning)
        with pytest.raises(sk.CollapseWarning):
            sk.prune_(model, BATCH, 2)
    assert not sk.masks(model) and all(type(module) is nn.Linear for module in model[::2])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_only_tells():
    with warnings.catch_warnings():
        warnings.simplefilter("error", sk.CollapseWarning)
        plan = sk.plan(net(), BATCH, 2)
    assert "Warning: nothing is kept of" in str(plan)


@pytest.mark.parametrize("options", [{}, {"batches": 2}, {"criterion": "magnitude"}, {"preset": "paper"}])
def test_plain_reports_tell_what_is_alive(options):
    plan = sk.plan(net(), BATCH * 2, 0.1, **options)
    weights = [row for row in plan.layers if len(row.shape) > 1]
    kept = {row.name: plan.masks[row.name].to_dense() for row in weights}
    first, second, third = kept.values()
    heard = first.any(1) if first.any() else torch.zeros(20, dtype=torch.bool)
    again = (second & heard).any(1)
    read = third.any(0)
    live = [first & ((second & read[:, None]).any(0))[:, None], second & heard & read[:, None], third & again]
    assert [row.flow.effective for row in weights] == [int(flags.sum()) for flags in live]
    total = sum(row.kept if row.flow is None else row.flow.effective for row in plan.layers)
    numel = sum(row.numel for row in plan.layers)
    assert f"Effective sparsity {1 - total / numel:.2%}" in str(plan)


def test_masks_are_the_same_unwatched_and_streams_tell_nothing(monkeypatch):
    watched = sk.plan(net(), BATCH, 0.1)
    stream = sk.plan(net(), BATCH, 0.1, memory="stream")
    assert watched.masks == stream.masks
    assert all(row.flow is None for row in stream.layers) and "Effective" not in str(stream)
    assert sk.plan(net(), None, 0.1, criterion="magnitude").layers[0].flow is None


def test_a_warning_is_given_at_the_caller():
    with pytest.warns(sk.CollapseWarning) as caught:
        warn_of([layer("a", 0, None)])
    assert caught[0].filename == __file__
