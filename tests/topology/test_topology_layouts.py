"""Topologies of layouts: orders, single weights, and building some rows at a time."""

import copy
import pickle

import numpy as np
import pytest
import torch

from snipkern import Mask
from snipkern.layout import Layout, index_sizes
from snipkern.testing import random_block_mask, random_mask
from snipkern.topology import BlockTopology, MixedTopology, Topology, build
from snipkern.topology import block as topology_block
from snipkern.topology import csr as topology_csr

CPU = torch.device("cpu")


def ordered(shape, block, density, generator, rows=True, cols=True):
    """A mask of whole blocks on a shuffled grid, and its layout."""
    grid = random_block_mask(shape, block, density, generator).to_dense()
    orders = [torch.randperm(size, generator=generator) for size in shape]
    row_order, col_order = (order if wanted else None for order, wanted in zip(orders, (rows, cols), strict=True))
    kept = torch.zeros_like(grid)
    at = (torch.arange(n) if order is None else order for n, order in zip(shape, (row_order, col_order), strict=True))
    row, col = at
    kept[row[:, None], col] = grid
    return Mask.from_dense(kept), Layout(block, row_order, col_order)


@pytest.mark.parametrize("rows, cols", ((True, True), (True, False), (False, True)))
@pytest.mark.parametrize("block", ((1, 1), (3, 2), (4, 4), (16, 5), (40, 40)), ids=str)
def test_values_are_row_major_on_the_grid(block, rows, cols, generator):
    for shape in ((24, 31), (1, 9), (17, 8)):
        mask, layout = ordered(shape, block, 0.3, generator, rows, cols)
        topology = build(mask, layout)
        numbers = torch.arange(mask.numel).view(shape)
        row_order = torch.arange(shape[0]) if layout.row_order is None else layout.row_order
        col_order = torch.arange(shape[1]) if layout.col_order is None else layout.col_order
        on_grid, kept = numbers[row_order][:, col_order], mask.to_dense()[row_order][:, col_order]
        assert torch.equal(topology.flat_index(CPU), on_grid[kept])
        assert not topology.row_major and topology.layout.ordered
        places = topology.on(CPU)[-sum(shape) :]
        assert torch.equal(places[: shape[0]].argsort(), row_order)
        assert torch.equal(places[shape[0] :].argsort(), col_order)


def test_parts_of_blocks_and_short_orders_are_refused(generator):
    mask, layout = ordered((12, 10), (4, 5), 0.5, generator)
    with pytest.raises(ValueError, match=r"^BlockTopology: the mask must keep whole blocks of 4 x 5 \(got \d+ blocks"):
        BlockTopology(mask, (4, 5))
    with pytest.raises(ValueError, match=r"^BlockTopology: row_order must have 12 entries \(got 11\)$"):
        BlockTopology(mask, (4, 5), torch.randperm(11), layout.col_order)
    with pytest.raises(ValueError, match=r"^BlockTopology: col_order must have 10 entries \(got 12\)$"):
        BlockTopology(mask, (4, 5), layout.row_order, torch.randperm(12))


def test_pickle_keeps_orders(generator):
    mask, layout = ordered((12, 10), (4, 5), 0.5, generator)
    topology = build(mask, layout)
    restored = pickle.loads(pickle.dumps(topology))
    assert torch.equal(restored.on(CPU), topology.on(CPU)) and restored.layout.ordered
    assert repr(topology).endswith("block=4x5, ordered)")


@pytest.mark.parametrize("shape", ((24, 31), (6, 2, 3, 3)), ids=str)
@pytest.mark.parametrize("density", (0.0, 0.1, 1.0))
def test_mixed_values_are_those_of_blocks_and_then_single_ones(shape, density, generator):
    flat = (shape[0], int(np.prod(shape[1:])))
    whole = random_block_mask(flat, (4, 4), 0.3, generator).to_dense().view(shape)
    single = random_mask(shape, density, generator).to_dense() & ~whole
    mask, layout = Mask.from_dense(whole | single), Layout((4, 4), singles=Mask.from_dense(single))
    topology = build(mask, layout)
    assert isinstance(topology, MixedTopology) and not topology.row_major and topology.layout is layout
    wanted = torch.cat([part.flatten().nonzero().flatten() for part in (whole, single)])
    assert torch.equal(topology.flat_index(CPU), wanted)
    assert topology.nnz == mask.count() == topology.blocks.nnz + topology.singles.nnz
    restored = pickle.loads(pickle.dumps(topology))
    assert torch.equal(restored.flat_index(CPU), wanted) and copy.deepcopy(topology) is topology
    assert repr(topology) == f"MixedTopology({topology.blocks!r} + {topology.singles!r})"


def test_singles_must_be_kept():
    mask = Mask.from_dense(torch.eye(4, dtype=torch.bool))
    for singles in (None, Mask.full((4, 4)), Mask.from_dense(torch.eye(2, dtype=torch.bool))):
        with pytest.raises(ValueError, match=r"^MixedTopology: the single weights must be a part of the mask \(got "):
            MixedTopology(mask, Layout((2, 2), singles=singles))
    with pytest.raises(ValueError, match=r"^BlockTopology: the mask must keep whole blocks of 2 x 2 \(got 2 blocks"):
        build(mask, Layout((2, 2), singles=Mask.from_dense(torch.zeros(4, 4, dtype=torch.bool))))


def test_build_takes_the_kind_that_a_layout_needs(generator):
    mask = Mask.full((8, 8))
    assert type(build(mask)) is Topology and build(mask).layout is None and build(mask).row_major
    plain = build(mask, Layout((4, 4)))
    assert type(plain) is BlockTopology and plain.row_major and plain.block == (4, 4)


@pytest.mark.parametrize("cols", (0, 1, 7, 8, 40, 70_001))
def test_building_by_some_rows_at_a_time_changes_nothing(cols, monkeypatch, generator):
    rows = 5 if cols > 100 else 37
    mask = random_mask((rows, cols), 0.2, generator)
    blocks = random_block_mask((rows, cols), (3, 4), 0.3, generator)
    whole = Topology(mask).on(CPU), BlockTopology(blocks, (3, 4)).on(CPU)
    monkeypatch.setattr(topology_csr, "CHUNK", 64)
    monkeypatch.setattr(topology_block, "CHUNK", 64)
    assert torch.equal(Topology(mask).on(CPU), whole[0])
    assert torch.equal(BlockTopology(blocks, (3, 4)).on(CPU), whole[1])
    numbers = torch.arange(mask.numel).view(rows, cols)
    kept = mask.to_dense()
    order = whole[0][-mask.count() :] if mask.count() else whole[0][:0]
    assert torch.equal(numbers[kept][order.long()], numbers.t()[kept.t()])


@pytest.mark.parametrize("size", [(6, 6), (6, 7), (7, 7), (1, 1), (9, 3)], ids=str)
def test_the_size_of_an_index_tells_what_is_in_it(size, generator):
    rows, cols = size
    for density in (0, 0.4, 1):
        mask = random_block_mask(size, (2, 3), density, generator)
        plain = BlockTopology(mask, (2, 3))
        blocks = int(plain.on(CPU)[2 * -(-rows // 2) + 1])
        assert index_sizes(plain.on(CPU).numel(), *size, (2, 3)) == (blocks, False)
        placed = BlockTopology(mask, (2, 3), torch.arange(rows), torch.arange(cols))
        assert index_sizes(placed.on(CPU).numel(), *size, (2, 3)) == (blocks, True)
        assert torch.equal(placed.flat_index(CPU), plain.flat_index(CPU))
        assert index_sizes(plain.on(CPU).numel() + 2, *size, (2, 3))[0] == -1
