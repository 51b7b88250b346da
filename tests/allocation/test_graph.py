"""What feeds which layer: seen while the model runs, with residuals, joins, flattening, groups and calls out of sight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snipkern.allocation.channels import Concatenation, Outputs, Outside, Repetition, Union, Unknown
from snipkern.allocation.flow import Cascade, flows
from snipkern.allocation.watch import watching
from snipkern.masks import Mask
from snipkern.pool import prunable


def traced(model, *inputs, filter_fn=None):
    graph, loss = watching(model, prunable(model, filter_fn), lambda m, batch: m(*batch).sum())
    loss(model, inputs)
    seen = {name: list(calls) for name, calls in graph.inputs.items()}
    loss(model, inputs)  # a second batch is not watched
    assert graph.inputs == seen
    return graph


def outputs(name, size):
    return Outputs(size, f"{name}.weight")


def test_a_plain_net():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5)),
        *(nn.Conv2d(8, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(6 * 9, 5), nn.Tanh(), nn.Linear(5, 4)),
    )
    graph = traced(model, torch.randn(2, 3, 8, 8))
    assert graph.inputs == {
        "0.weight": [Outside(3)],
        "5.weight": [outputs(0, 8)],
        "8.weight": [Repetition(outputs(5, 6), 9)],
        "10.weight": [outputs(8, 5)],
    }
    assert graph.order(["10.weight", "bias", "0.weight"]) == ["0.weight", "10.weight", "bias"]


class Branches(nn.Module):
    """A residual block, a dense join, global pooling by mean, a bias-like parameter, a permutation and a split."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.one = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.two = nn.Conv2d(8, 4, 1)
        self.shift = nn.Parameter(torch.zeros(8, 1, 1))
        self.head = nn.Linear(12, 6)
        self.last = nn.Linear(6, 2)
        self.free = nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.one(x))
        y += x
        y = 2 * y + self.shift
        z = torch.cat([y, self.two(y)], 1).mean((2, 3))
        h = self.head(z)
        h = h.unsqueeze(1).transpose(1, 2).squeeze(-1)
        a, _ = h.flip(1).chunk(2, 1)
        return self.last(h) + self.free(a)


def test_residuals_joins_and_the_unknown():
    graph = traced(Branches(), torch.randn(2, 3, 5, 5))
    stem, one, two = outputs("stem", 8), outputs("one", 8), outputs("two", 4)
    assert graph.inputs["one.weight"] == [stem] and graph.groups["one.weight"] == 2
    [into_two] = graph.inputs["two.weight"]
    assert isinstance(into_two, Union) and set(into_two.parts) == {stem, one}
    assert graph.inputs["head.weight"] == [Concatenation((into_two, two))]
    assert graph.inputs["last.weight"] == [outputs("head", 6)]
    assert graph.inputs["free.weight"] == [Unknown()]
    assert outputs("head", 6) in graph.used  # flip: who reads what can't be told


def test_what_comes_from_outside_stays_alive():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.dense, self.c = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, tokens):
            x = self.table(tokens)
            x = x + self.a(x)
            return self.c(self.dense(self.b(x)))

    graph = traced(Net(), torch.tensor([[1, 2, 3]]), filter_fn=lambda m, n: isinstance(m, nn.Linear) and n != "dense")
    assert graph.inputs == {f"{name}.weight": [Outside(4)] for name in "abc"}
    assert outputs("a", 4) in graph.used and outputs("b", 4) in graph.used


def test_layers_called_twice_or_never():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.never, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.twice(self.twice(x))

    graph = traced(Net(), torch.randn(2, 4))
    assert graph.inputs == {"twice.weight": [Outside(4), outputs("twice", 4)]}
    cascade = Cascade(graph)
    assert cascade.columns("never.weight", torch.Size((4, 4))) is None
    assert cascade.columns("twice.weight", torch.Size((4, 4))).all()


def test_attention_is_not_followed_but_does_no_harm():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    graph = traced(model, torch.randn(2, 5, 8))
    assert graph.inputs["linear1.weight"] == [Outside(8)]
    assert graph.inputs["linear2.weight"] == [outputs("linear1", 16)]


def test_compiled_models_are_not_watched():
    model = torch.compile(nn.Linear(3, 2), backend="eager")

    def loss(model, batch):
        return model(batch).sum()

    graph, watched = watching(model, prunable(model), loss)
    assert watched is loss and not graph.inputs


def masks_of(model, kept):
    return {
        name: Mask.from_dense(kept.get(name, torch.ones_like(weight, dtype=torch.bool)))
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }


def test_columns_of_convolutions_and_groups():
    model = Branches()
    graph = traced(model, torch.randn(2, 3, 5, 5))
    masks = masks_of(model, {})
    stem = torch.ones(8, 3, 1, 1, dtype=torch.bool)
    stem[[1, 5, 6]] = False  # both inputs 1 of the groups, and input 2 of the second
    masks["stem.weight"] = Mask.from_dense(stem)
    cascade = Cascade(graph)
    for name in ("stem.weight", "one.weight"):
        columns = cascade.columns(name, masks[name].shape)
        cascade.keep(name, masks[name], columns)
    assert cascade.columns("one.weight", masks["one.weight"].shape).reshape(4, 9).any(1).tolist() == [1, 0, 1, 1]
    assert cascade.columns("two.weight", masks["two.weight"].shape).all()  # "one" revives what "stem" left dead
    assert cascade.columns("free.weight", masks["free.weight"].shape) is None


def test_flow_is_what_reaches_the_loss(generator):
    """Kept weights are live if and only if changing them can change the output of a linear net."""
    model = nn.Sequential(nn.Linear(6, 9), nn.Identity(), nn.Linear(9, 7), nn.Linear(7, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    graph = traced(model, x)
    for density in (0.1, 0.2, 0.4):
        kept = {n: torch.rand(w.shape, generator=generator) < density for n, w in model.named_parameters()}
        masks = masks_of(model, kept)
        found = flows(graph, masks, list(masks))
        net = nn.Sequential(nn.Linear(6, 9, False), nn.Linear(9, 7, False), nn.Linear(7, 3, False)).double()
        for layer, name in zip(net, masks, strict=True):
            layer.weight.data = torch.rand(layer.weight.shape, dtype=torch.float64, generator=generator) + 0.5
            layer.weight.data *= masks[name].to_dense()
        net(x.abs() + 0.1).sum().backward()
        for layer, (name, flow) in zip(net, found.items(), strict=True):
            live = (layer.weight.grad != 0) & masks[name].to_dense()
            assert flow.effective == int(live.sum()) and flow.traced
            assert flow.dead_inputs == int((~live.any(0)).sum())
            assert flow.dead_outputs == int((~live.any(1)).sum())


def test_flow_goes_round_where_layers_are_called_in_turns(generator):
    """What a layer that comes first in the order reads later on, is read: nothing of it counts as dead."""

    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            for _ in range(3):
                x = self.two(self.one(x))
            return self.one(x)

    model = Turns()
    graph = traced(model, torch.randn(2, 8, generator=generator))
    full = flows(graph, masks_of(model, {}), ["one.weight", "two.weight"])
    assert [flow.effective for flow in full.values()] == [64, 64]
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:, :3] = True  # reads three outputs of the layer before
    found = flows(graph, masks_of(model, {"one.weight": half}), ["one.weight", "two.weight"])
    assert found["two.weight"].read.tolist() == [True] * 3 + [False] * 5
    assert (found["two.weight"].effective, found["two.weight"].dead_outputs) == (24, 5)
    assert (found["one.weight"].effective, found["one.weight"].dead_outputs) == (24, 0)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(2 * x.numpy())

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@pytest.mark.parametrize("how", ["written to a part", "written to a view", "autograd function", "two operands"])
def test_what_cannot_be_followed_counts_as_alive_and_as_read(how):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.side, self.last = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            one, other = self.one(x), self.other(x)
            side = self.side(one)
            if how == "written to a part":
                found = other.clone()
                found[:, :2] = one[:, :2]
            elif how == "written to a view":
                found = torch.zeros(2, 4)
                found[:, :2].copy_(one[:, :2])
            elif how == "autograd function":
                found = Doubled.apply(one)
            else:
                found = other.abs().clamp(max=one)
            return self.last(found) + side

    graph = traced(Net(), torch.randn(2, 4))
    cascade = Cascade(graph)
    none = torch.zeros(4, 4, dtype=torch.bool)
    masks = masks_of(Net(), {"other.weight": none, "side.weight": none})
    cascade.keep("other.weight", masks["other.weight"], None)
    columns = cascade.columns("last.weight", torch.Size((4, 4)))
    assert columns is None or columns.all()
    assert flows(graph, masks, list(masks))["one.weight"].read.all()
