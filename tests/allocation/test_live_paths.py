"""What is alive, against every path from inputs to outputs, one unit at a time; and what of a recurrent net is seen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from test_graph import masks_of, outputs, traced
from torch import nn

from snipkern.allocation import watch as module
from snipkern.allocation.channels import Outside, Unknown, layers_of
from snipkern.allocation.flow import flows, seen_flows
from snipkern.masks import Mask
from snipkern.pool import prunable


class Skips(nn.Module):
    """Two ways round a layer: past it, and beside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(10, 4), nn.Linear(4, 3)

    def forward(self, x):
        a = self.a(x).relu()
        b = a + self.b(a)
        return self.d(self.c(torch.cat([b, a], 1)).tanh())


@pytest.mark.parametrize("density", [0.1, 0.2, 0.35])
def test_every_path_of_a_net_with_skips(generator, density):
    model = Skips()
    kept = {n: torch.rand(w.shape, generator=generator) < density for n, w in model.named_parameters() if w.dim() > 1}
    a, b, c, d = (kept[f"{name}.weight"] for name in "abcd")
    live = {name: torch.zeros_like(flags) for name, flags in kept.items()}
    for x, i, j, k, o in itertools.product(range(4), range(5), range(10), range(4), range(3)):
        if not (a[i, x] and c[k, j] and d[o, k]):
            continue
        # Columns 0-4 of c read a + b(a), columns 5-9 read a itself.
        through = j < 5 and bool(b[j, i])
        if through or j % 5 == i:
            for name, flags, place in (("a", a, (i, x)), ("c", c, (k, j)), ("d", d, (o, k))):
                assert flags[place]
                live[f"{name}.weight"][place] = True
            if through:
                live["b.weight"][j, i] = True
    found = seen_flows(traced(model, torch.randn(2, 4)), masks_of(model, kept))
    for name, flags in live.items():
        assert found[name].effective == int(flags.sum()), name
        assert found[name].dead_inputs == int((~flags.any(0)).sum())
        assert found[name].dead_outputs == int((~flags.any(1)).sum())
        assert found[name].traced


# Which of the gates makes the candidate.
KINDS = {"LSTM": (nn.LSTM, 2), "GRU": (nn.GRU, 2), "RNN": (nn.RNN, 0)}


class Reader(nn.Module):
    def __init__(self, kind, last, **options):
        super().__init__()
        self.r = KINDS[kind][0](3, 4, **options)
        size = options.get("proj_size") or 4
        self.last, self.f = last, nn.Linear(size * (2 if options.get("bidirectional") else 1), 2)

    def forward(self, x):
        out, state = self.r(x)
        if self.last == "steps":
            return self.f(out[-1])
        state = state[0] if isinstance(state, tuple) else state
        ways = 2 if self.r.bidirectional else 1
        return self.f(torch.cat([state[way - ways] for way in range(ways)], -1))


def reached(starts, edges):
    """All that can be come to from some units along edges {(from, to)}."""
    found, more = set(starts), set(starts)
    while more:
        more = {to for start, to in edges if start in more} - found
        found |= more
    return found


def live_by_units(kind, model, kept):
    """Live weights of a recurrent net and its reader, from a graph of single units."""
    candidate = KINDS[kind][1]
    layer = model.r
    ways = [0, 1] if layer.bidirectional else [0]
    weights = []  # (name, place, from, to, whether it alone makes the unit alive)
    size = layer.proj_size or 4
    for depth, way in itertools.product(range(layer.num_layers), ways):
        end = f"_l{depth}{'_reverse' if way else ''}"
        outs = [("out" if layer.proj_size else "unit", depth, way, i) for i in range(size)]
        below = [("x", i) for i in range(3)]
        if depth:
            below = [("out" if layer.proj_size else "unit", depth - 1, w, i) for w in ways for i in range(size)]
        for leaf, sources in (("weight_ih", below), ("weight_hh", outs)):
            for row, col in kept[f"r.{leaf}{end}"].nonzero().tolist():
                alone = layer.bias or row // 4 == candidate
                weights.append((f"r.{leaf}{end}", (row, col), sources[col], ("unit", depth, way, row % 4), alone))
        if layer.proj_size:
            for row, col in kept[f"r.weight_hr{end}"].nonzero().tolist():
                weights.append((f"r.weight_hr{end}", (row, col), ("unit", depth, way, col), outs[row], True))
    top = [("out" if layer.proj_size else "unit", layer.num_layers - 1, w, i) for w in ways for i in range(size)]
    for row, col in kept["f.weight"].nonzero().tolist():
        weights.append(("f.weight", (row, col), top[col], ("y", row), True))
    alive = reached([("x", i) for i in range(3)], {(a, b) for *_, a, b, alone in weights if alone})
    inner = [(name, place, a, b) for name, place, a, b, _ in weights if a in alive and b in alive]
    read = reached([("y", i) for i in range(2)], {(b, a) for *_, a, b in inner})
    live = {name: torch.zeros_like(flags) for name, flags in kept.items()}
    for name, place, a, b in inner:
        if a in alive and b in read:
            live[name][place] = True
    return live


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "num_layers": 2}])
@pytest.mark.parametrize("kind", ["LSTM", "LSTM with projection", "GRU", "RNN"])
@pytest.mark.parametrize("last", ["steps", "state"])
def test_every_path_of_a_recurrent_net(generator, kind, options, last):
    kind, _, projected = kind.partition(" ")
    model = Reader(kind, last, **options, **({"proj_size": 3} if projected else {}))
    graph = traced(model, torch.randn(5, 2, 3))
    for density in (0.12, 0.35):
        names = {n: w for n, w in model.named_parameters() if w.dim() > 1}
        kept = {n: torch.rand(w.shape, generator=generator) < density for n, w in names.items()}
        found = seen_flows(graph, masks_of(model, kept))
        for name, flags in live_by_units(kind, model, kept).items():
            assert found[name].effective == int(flags.sum()), (name, density)
            assert found[name].traced
            assert found[name].dead_outputs == int((~flags.any(1)).sum())


def test_packed_sequences_are_followed(generator):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r, self.f = nn.Linear(2, 3), nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            lengths = torch.tensor([3, 5])
            packed = nn.utils.rnn.pack_padded_sequence(self.a(x), lengths, batch_first=True, enforce_sorted=False)
            out, last = self.r(packed)
            padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
            return self.f(padded[torch.arange(2), lengths - 1] + last[0])

    model = Packed()
    graph = traced(model, torch.randn(2, 5, 2))
    assert graph.inputs["r.weight_ih_l0"] == [outputs("a", 3)]
    none = torch.zeros(12, 3, dtype=torch.bool)
    none[5] = True  # the update gate of unit 1 hears input 0
    none[5, 1:] = False
    kept = {"r.weight_ih_l0": none, "r.weight_hh_l0": torch.zeros(12, 4, dtype=torch.bool)}
    found = seen_flows(graph, masks_of(model, kept))
    assert all(flow.traced for flow in found.values())
    assert [found[f"{n}.weight"].effective for n in "af"] == [2, 2]
    assert found["r.weight_ih_l0"].effective == 1


def test_cells_pass_on_what_they_hear():
    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.f = nn.LSTMCell(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            state = None
            for step in x:
                state = self.cell(step, state)
            return self.f(state[0])

    model = Cells()
    graph = traced(model, torch.randn(5, 2, 3))
    kept = {
        "cell.weight_ih": torch.zeros(16, 3, dtype=torch.bool),
        "cell.weight_hh": torch.zeros(16, 4, dtype=torch.bool),
    }
    kept["cell.weight_ih"][12, 0] = True  # the output gate of unit 0
    kept["cell.weight_hh"][[5, 7], [0, 3]] = True  # unit 1 forgets by unit 0; unit 3 by itself, and nothing else
    found = seen_flows(graph, masks_of(model, kept))
    assert [found[n].effective for n in ("cell.weight_ih", "cell.weight_hh", "f.weight")] == [1, 1, 4]
    assert all(flow.traced for flow in found.values())


@pytest.mark.parametrize("first", ["zeros", "parameter", "made", "given"])
def test_first_states(first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r, self.f = nn.Linear(3, 4), nn.GRU(3, 4), nn.Linear(4, 2)
            self.start = nn.Parameter(torch.ones(1, 2, 4))

        def forward(self, x, given):
            made = self.a(x[0]).unsqueeze(0)
            h = {"zeros": torch.zeros(1, 2, 4), "parameter": self.start, "made": made, "given": given}[first]
            return self.f(self.r(x, h)[0])

    model = Net()
    graph = traced(model, torch.randn(5, 2, 3), torch.ones(1, 2, 4))
    nothing = {f"r.weight_{way}_l0": torch.zeros(12, size, dtype=torch.bool) for way, size in (("ih", 3), ("hh", 4))}
    found = flows(graph, masks_of(model, nothing), ["a.weight", *nothing, "f.weight"])
    # A state goes from step to step by itself.
    assert found["f.weight"].effective == (8 if first in ("made", "given") else 0)
    [channels] = graph.inputs["r.weight_hh_l0"]
    assert ("a.weight" in layers_of(channels)) == (first == "made")


def test_dense_recurrent_weights_read_and_pass_on_everything():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r, self.f = nn.Linear(3, 3), nn.RNN(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.f(self.r(self.a(x))[0])

    model = Net()
    graph = traced(model, torch.randn(5, 2, 3), filter_fn=lambda module, name: isinstance(module, nn.Linear))
    assert graph.inputs["f.weight"] == [Outside(4)] and outputs("a", 3) in graph.used
    masks = {"a.weight": Mask.from_dense(torch.eye(3, dtype=torch.bool)), "f.weight": Mask.full((2, 4))}
    assert [flow.effective for flow in seen_flows(graph, masks).values()] == [3, 8]


@pytest.mark.parametrize(
    ("index", "follows"),
    [
        ((slice(None), -1), True),
        ((..., 0, slice(None)), True),
        ((torch.tensor([0, 1]), torch.tensor([2, 0])), True),
        ((torch.tensor([[True, False, True], [True, True, False]]),), True),
        ((None, 0), True),
        ((slice(1), slice(0, 2), slice(None)), True),
        ((slice(None), slice(None), slice(0, 4)), False),
        ((slice(None), slice(None), torch.tensor([3, 2, 1, 0])), False),
        ((..., 1), False),
    ],
)
def test_indexing_is_followed_where_all_channels_stay(index, follows):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.f = nn.Linear(3, 4), nn.LazyLinear(2)

        def forward(self, x):
            return self.f(self.a(x)[index])

    model = Net()
    x = torch.randn(2, 3, 3)
    model(x)
    [channels] = traced(model, x).inputs["f.weight"]
    assert channels == (outputs("a", 4) if follows else Unknown())


def test_indexing_behind_the_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.f = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.a(x)
            return self.f(x[:, :, 0, -1]) + self.f(x[..., 1:2, 1].squeeze(-1)) + self.f(x[:, :, :, 0].flip(1)[..., 1])

    graph = traced(Net(), torch.randn(2, 3, 2, 2))
    assert graph.inputs["f.weight"] == [outputs("a", 4), Unknown()]


def test_a_model_that_cannot_be_watched_is_left_alone(monkeypatch):
    """A tensor whose functions nobody foresaw: the loss is as without watching, and nothing is known."""

    def broken(*args):
        raise KeyError("weight")

    monkeypatch.setattr(module, "follow", broken)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(2, 3)
    found, loss = module.watching(model, prunable(model), lambda m, batch: m(batch).sum())
    assert torch.equal(loss(model, x), model(x).sum())
    assert not found.inputs and not found.used
    assert seen_flows(found, masks_of(model, {})) == {}


def test_biases_live_where_their_output_is_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    last = torch.zeros(2, 4, dtype=torch.bool)
    last[:, 1:3] = True
    masks = masks_of(model, {"1.weight": last})
    masks["0.bias"] = Mask.from_dense(torch.tensor([True, True, False, True]))
    masks["1.bias"] = Mask.full((2,))
    found = seen_flows(traced(model, torch.randn(2, 3)), masks)
    assert (found["0.bias"].effective, found["0.bias"].dead_outputs) == (1, 3)
    assert (found["1.bias"].effective, found["1.bias"].dead_outputs) == (2, 0)
    assert np.array_equal(found["0.bias"].read, [False, True, True, False])
