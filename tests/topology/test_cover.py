"""Covers: every kept weight in a block, values where the kernels look for them, orders that need few blocks."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from snipkern import Mask
from snipkern.layout import Layout
from snipkern.testing import random_block_mask, random_mask
from snipkern.topology import BlockTopology, CoverTopology, Topology, build, similar
from snipkern.topology.cover import covering, fullest_first, kept_weights, stored_weights
from snipkern.topology.similar import blocks_needed, gathered

CPU = torch.device("cpu")
SHAPES = ((24, 31), (1, 9), (17, 8), (40, 70))


def shuffled(mask, generator):
    rows, cols = (torch.randperm(size, generator=generator) for size in mask.shape)
    return Mask.from_dense(mask.to_dense()[rows][:, cols])


@pytest.mark.parametrize("density", (0.0, 0.03, 0.3, 1.0))
@pytest.mark.parametrize("block", ((1, 1), (3, 2), (16, 5), (40, 40)), ids=str)
@pytest.mark.parametrize("ordered", (False, True), ids=("given order", "own order"))
def test_padded_values_are_the_weight_in_the_order_of_the_blocks(block, density, ordered, generator):
    for shape in SHAPES:
        mask = random_mask(shape, density, generator)
        topology = CoverTopology(mask, covering(mask, block, ordered))
        kept = mask.to_dense()
        values = torch.randn(mask.count(), generator=generator)
        weight = torch.zeros(shape).masked_scatter(kept, values)
        assert torch.equal(topology.flat_index(CPU), kept.flatten().nonzero().flatten())
        assert topology.row_major and topology.layout is None
        covered = topology.blocks.mask.to_dense()
        assert not (kept & ~covered).any()
        # What the blocks' values are is another topology's business: where each of them belongs, zeros included.
        assert torch.equal(topology.padded(values), weight.flatten()[topology.blocks.flat_index(CPU)])
        assert stored_weights(mask, topology.cover) == topology.blocks.nnz
        assert topology.fill == (mask.count() / topology.blocks.nnz if mask.count() else 1.0)


def test_only_blocks_that_hold_something_are_stored(generator):
    mask = Mask.from_dense(
        torch.zeros(8, 12, dtype=torch.bool).index_put_(
            (torch.tensor([0, 5]), torch.tensor([3, 9])), torch.tensor(True)
        )
    )
    topology = CoverTopology(mask, Layout((4, 4)))
    assert topology.blocks.nnz == 32 and topology.fill == 1 / 16
    want = torch.zeros(8, 12, dtype=torch.bool)
    want[:4, :4] = want[4:, 8:] = True
    assert torch.equal(topology.blocks.mask.to_dense(), want)


def test_gradients_of_what_is_pruned_are_not_read(generator):
    mask = random_mask((24, 31), 0.1, generator)
    topology = CoverTopology(mask, covering(mask, (4, 4)))
    values = torch.randn(mask.count(), dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(topology.blocks.nnz, dtype=torch.float64)
    (grad,) = torch.autograd.grad(topology.padded(values), values, upstream)
    assert torch.equal(grad, upstream[topology.stored_at(CPU)])
    assert torch.autograd.gradgradcheck(lambda v: topology.padded(v).square(), values)


def test_convolution_weights_are_seen_as_a_matrix(generator):
    mask = random_mask((6, 2, 3, 3), 0.2, generator)
    topology = build(mask, None, covering(mask, (4, 4), ordered=False))
    assert isinstance(topology, CoverTopology) and not topology.cover.ordered
    assert topology.blocks.mask.shape == mask.shape and (topology.rows, topology.cols) == (6, 18)
    assert torch.equal(topology.flat_index(CPU), mask.to_dense().flatten().nonzero().flatten())


def test_copies_pickles_and_what_is_held(generator):
    mask = random_mask((24, 31), 0.1, generator)
    topology = CoverTopology(mask, covering(mask, (4, 4)))
    restored = pickle.loads(pickle.dumps(topology))
    assert copy.deepcopy(topology) is topology
    assert (
        torch.equal(restored.stored_at(CPU), topology.stored_at(CPU))
        and restored.cover.ordered == topology.cover.ordered
    )
    assert restored.mask == mask and restored.blocks.mask == topology.blocks.mask
    held = topology.held(CPU)
    assert held[0] is mask.words and held[1] is topology.blocks.mask.words and held[-1] is topology.stored_at(CPU)
    assert [len(kind.held(CPU)) for kind in (Topology(mask), topology.blocks)] == [2, 2]
    assert (
        repr(topology) == f"CoverTopology(24 x 31, nnz={mask.count()}, fill={topology.fill:.1%} of {topology.blocks!r})"
    )
    assert topology.stored_at(torch.device("meta")).is_meta


def test_bad_arguments_raise(generator):
    mask = random_mask((8, 6), 0.5, generator)
    with pytest.raises(
        ValueError, match=r"^CoverTopology: all kept weights lie in blocks, none beside them \(got Mask"
    ):
        CoverTopology(mask, Layout((4, 4), singles=mask))
    with pytest.raises(ValueError, match=r"^CoverTopology: orders must be of 8 x 6 rows and columns \(got 8 x 5\)$"):
        CoverTopology(mask, Layout((4, 4), None, torch.arange(5)))
    with pytest.raises(ValueError, match=rf"^CoverTopology: values must be \[{mask.count()}\] \(got \[1\]\)$"):
        CoverTopology(mask, Layout((4, 4))).padded(torch.ones(1))
    with pytest.raises(ValueError, match=r"^build: give either layout or cover \(got both\)$"):
        build(mask, Layout((4, 4)), Layout((4, 4)))
    with pytest.raises(ValueError, match=r"^CoverTopology: the mask must have at least 2 dimensions"):
        CoverTopology(Mask.full((3,)), Layout((4, 4)))


class TestOrders:
    def test_hidden_blocks_are_found_again(self, generator):
        for block in ((4, 4), (8, 2)):
            hidden = random_block_mask((64, 48), block, 0.15, generator)
            grid = BlockTopology(hidden, block)
            mask = shuffled(hidden, generator)
            before, after = (CoverTopology(mask, covering(mask, block, ordered)).fill for ordered in (False, True))
            assert grid.nnz == mask.count() and after > 0.8 > 0.6 > before

    def test_never_more_blocks_than_in_the_given_order(self, generator):
        for shape in SHAPES:
            for density in (0.02, 0.2, 0.7):
                mask = random_mask(shape, density, generator)
                row, col = kept_weights(mask)
                given = blocks_needed(row, col, np.arange(shape[0]), np.arange(shape[1]), (4, 4))
                orders = gathered(row, col, shape, (4, 4))
                assert blocks_needed(row, col, *orders, (4, 4)) <= given
                assert [np.sort(order).tolist() for order in orders] == [list(range(size)) for size in shape]

    def test_the_same_every_time_and_with_a_small_window(self, monkeypatch, generator):
        mask = random_mask((60, 50), 0.1, generator)
        first, second = (covering(mask, (4, 4)) for _ in range(2))
        assert torch.equal(first.row_order, second.row_order) and torch.equal(first.col_order, second.col_order)
        monkeypatch.setattr(similar, "WINDOW", 7)
        narrow = CoverTopology(mask, covering(mask, (4, 4)))
        assert torch.equal(narrow.flat_index(CPU), mask.to_dense().flatten().nonzero().flatten())

    def test_rows_that_keep_much_come_first_where_little_time_is_taken(self):
        kept = torch.zeros(6, 5, dtype=torch.bool)
        kept[4] = kept[2, :3] = kept[1, 1] = True
        order = fullest_first(Mask.from_dense(kept), (2, 2))
        assert order.row_order.tolist() == [4, 2, 1, 0, 3, 5] and order.col_order.tolist() == [1, 0, 2, 3, 4]

    def test_a_full_or_empty_mask_keeps_its_order(self):
        for mask in (Mask.full((8, 8)), Mask.from_dense(torch.zeros(8, 8, dtype=torch.bool))):
            assert not covering(mask, (4, 4)).ordered
