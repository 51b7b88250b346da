"""Recurrent layers that are sparse already are followed as the dense ones that they were."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from test_graph import masks_of, traced
from test_live_paths import Reader, live_by_units
from torch import nn

import snipkern as sk
from snipkern.allocation.channels import Outside
from snipkern.allocation.flow import seen_flows
from snipkern.testing import random_mask

pytestmark = pytest.mark.usefixtures("one_thread")
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def sparse_of(model, generator, only=nn.Module):
    """A copy whose layers of a kind are sparse, all of them with single weights."""
    names = {
        f"{path}.{name}"
        for path, m in model.named_modules()
        if isinstance(m, only)
        for name, _ in m.named_parameters(recurse=False)
    }
    masks = {
        name: random_mask(tuple(p.shape), 0.6, generator)
        for name, p in model.named_parameters()
        if p.dim() > 1 and name in names and "weight" in name
    }
    twin = copy.deepcopy(model)
    sk.sparsify_(twin, masks, engine="csr")
    assert all(type(module) not in RECURRENT for module in twin.modules())
    return twin


def require_same_graph(model, generator, *inputs, filter_fn=None, like=None):
    """That sparse copies of a model have the graph of the dense one, or of another dense one that is like it."""
    dense = traced(like or model, *inputs, filter_fn=filter_fn)
    assert dense.inputs
    for only in (nn.Module, nn.RNNBase):  # beside sparse layers, and beside dense ones
        found = traced(sparse_of(model, generator, only), *inputs, filter_fn=filter_fn)
        assert found.inputs == dense.inputs and list(found.inputs) == list(dense.inputs)
        assert found.own == dense.own and found.groups == dense.groups
        assert set(found.used) == set(dense.used)
    return dense


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "num_layers": 2, "batch_first": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "LSTM with projection", "GRU", "RNN"])
@pytest.mark.parametrize("last", ["steps", "state"])
def test_graphs_and_every_path_are_those_of_the_dense_layer(generator, kind, options, last):
    kind, _, projected = kind.partition(" ")
    model = Reader(kind, last, **options, **({"proj_size": 3} if projected else {}))
    x = torch.randn(5, 2, 3)
    require_same_graph(model, generator, x)
    require_same_graph(model, generator, x[0])  # without a batch
    sparse = sparse_of(model, generator)
    graph, masks = traced(sparse, x), sk.masks(sparse)
    for density in (0.3, 0.6):
        # Less and less of what is there.
        masks = {
            n: m.to_dense() & (torch.rand(m.shape, generator=generator) < density) for n, m in sk.masks(sparse).items()
        }
        found = seen_flows(graph, masks_of(model, masks))
        for name, live in live_by_units(kind, model, masks).items():
            assert found[name].effective == int(live.sum()) and found[name].traced, (name, density)


class Given(nn.Module):
    """First states from several places, packed sequences, and arguments by keyword."""

    def __init__(self, kind, first, packed, keyword):
        super().__init__()
        self.a, self.b, self.f = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.r, self.s = kind(3, 4), kind(4, 4)
        self.start = nn.Parameter(torch.ones(1, 2, 4))
        self.first, self.packed, self.keyword = first, packed, keyword

    def states(self, x, given):
        made = self.a(x[0]).unsqueeze(0), self.b(x[1]).unsqueeze(0)
        zeros = torch.zeros(1, 2, 4)
        h, c = {"zeros": (zeros, zeros), "parameter": (self.start,) * 2, "made": made, "given": (given,) * 2}[
            self.first
        ]
        return (h, c) if isinstance(self.r, nn.LSTM) else h

    def forward(self, x, given):
        hx = None if self.first == "none" else self.states(x, given)
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 5]), enforce_sorted=False)
        x, state = self.r(input=x, hx=hx) if self.keyword else self.r(x, hx)
        x, last = self.s(x, state)
        last = last[0] if isinstance(last, tuple) else last
        if self.packed:
            x, _ = nn.utils.rnn.pad_packed_sequence(x)
        x = x.mean(0) + last[0]
        return self.f(input=x) if self.keyword else self.f(x)


@pytest.mark.parametrize("first", ["none", "zeros", "parameter", "made", "given"])
@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize(("packed", "keyword"), [(False, True), (True, False)])
def test_first_states_packed_sequences_and_keywords(generator, kind, first, packed, keyword):
    model = Given(kind, first, packed, keyword)
    # Dense layers sort parameters with packed sequences, and then nobody knows them any more.
    like = Given(kind, first, packed and first != "parameter", keyword)
    graph = require_same_graph(model, generator, torch.randn(5, 2, 3), torch.ones(1, 2, 4), like=like)
    assert set(graph.inputs) >= {"r.weight_ih_l0", "r.weight_hh_l0", "s.weight_ih_l0", "s.weight_hh_l0", "f.weight"}


@pytest.mark.parametrize("kind", RECURRENT)
def test_what_is_not_pooled_reads_and_passes_on_everything(generator, kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r, self.f = nn.Linear(3, 3), kind(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.f(self.r(self.a(x))[0])

    graph = require_same_graph(Net(), generator, torch.randn(5, 2, 3), filter_fn=lambda m, _: isinstance(m, nn.Linear))
    assert graph.inputs["f.weight"] == [Outside(4)] and graph.used


def test_pruned_twice_the_report_and_the_cascade_follow(generator):
    """What a report says of a net whose recurrent layers are sparse is what it says of the masked one."""
    torch.manual_seed(int(torch.randint(1000, (), generator=generator)))
    model = Reader("LSTM", "steps", num_layers=2)
    data = [(torch.randn(5, 6, 3), torch.randint(2, (6,)))]
    loss_fn = lambda m, batch: F.cross_entropy(m(batch[0]), batch[1])  # noqa: E731
    twins = [copy.deepcopy(model) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.CollapseWarning)
        plans = []
        for twin, engine in zip(twins, ("csr", "masked"), strict=True):
            sk.prune_(twin, data, keep=0.6, criterion="magnitude", loss_fn=loss_fn, engine=engine)
            plans.append(sk.plan(twin, data, keep=0.2, criterion="magnitude", cascade=True, loss_fn=loss_fn))
    ours, theirs = plans
    assert ours.masks == theirs.masks
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert mine.flow == other.flow and mine.flow.traced
