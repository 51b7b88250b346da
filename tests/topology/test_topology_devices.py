"""Topologies on other devices than the CPU."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snipkern import Layout, Mask, sparsify_
from snipkern.testing import random_block_mask, random_mask
from snipkern.topology import build

SHAPE, BLOCK = (24, 32), (8, 8)


def topologies(generator):
    single, whole = random_mask(SHAPE, 0.2, generator), random_block_mask(SHAPE, BLOCK, 0.4, generator)
    both = Mask(single.words | whole.words, SHAPE)
    return [
        build(single),
        build(whole, Layout(BLOCK)),
        build(both, Layout(BLOCK, singles=Mask(single.words & ~whole.words, SHAPE))),
    ]


def parts(topology):
    return (topology.blocks, topology.singles) if hasattr(topology, "singles") else (topology,)


def test_placing_brings_the_index_there_once(generator):
    device = torch.device("meta")
    for topology in topologies(generator):
        topology.place(device)
        for part in parts(topology):
            index = part.on(device)
            assert index.device == device and index.shape == part.on(torch.device("cpu")).shape
            assert part.on(device) is index


def test_tensors_of_a_trace_are_not_kept(generator):
    """The topology is shared by all copies of a module: a fake index would be found by real calls."""
    device = torch.device("cuda", 0)
    for topology in topologies(generator):
        for part in parts(topology):
            with FakeTensorMode(allow_non_fake_inputs=True):
                assert part.on(device).device == device
            assert list(part._by_device) == [torch.device("cpu")]


@pytest.mark.parametrize("kind", (0, 1, 2), ids=("single weights", "blocks", "mixed"))
def test_a_module_that_moves_takes_its_topology_along(kind, generator, monkeypatch):
    topology = topologies(generator)[kind]
    layout = topology.layout
    model = nn.Sequential(nn.Linear(*reversed(SHAPE)))
    layouts = {} if layout is None else {"layouts": {"0.weight": layout}}
    sparsify_(model, {"0.weight": topology.mask}, engine="csr" if layout is None else "bsr", **layouts)
    placed = []
    monkeypatch.setattr(type(topology), "place", lambda self, device: placed.append(device))
    model.double()
    copy.deepcopy(model).to("meta")
    assert placed == [torch.device("cpu")]  # nothing can be computed on the meta device
