import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snipkern import Mask
from snipkern.topology import BlockTopology, Topology

CPU = torch.device("cpu")
sides = st.integers(0, 13)
blocks = st.tuples(st.integers(1, 6), st.integers(1, 6))


def block_mask(rows, cols, block, density, seed):
    """Random whole blocks; those on the far edges are cut off."""
    grid = np.random.default_rng(seed).random((-(-rows // block[0]), -(-cols // block[1]))) < density
    kept = np.kron(grid, np.ones(block, dtype=bool))[:rows, :cols]
    return Mask.from_dense(torch.from_numpy(kept.astype(bool).reshape(rows, cols)))


masks = st.builds(
    lambda rows, cols, block, density, seed: (block_mask(rows, cols, block, density, seed), block),
    sides,
    sides,
    blocks,
    st.sampled_from((0.0, 0.2, 0.6, 1.0)),
    st.integers(0, 2**32 - 1),
)


@given(masks)
def test_flat_index_lists_the_kept_weights(drawn):
    topology = BlockTopology(*drawn)
    mask = drawn[0]
    assert topology.nnz == mask.count() and topology.rows * topology.cols == mask.numel and topology.block == drawn[1]
    assert torch.equal(topology.flat_index(CPU), mask.to_dense().flatten().nonzero().flatten())


@given(masks)
def test_packed_index_holds_block_rows_and_block_columns(drawn):
    mask, (height, width) = drawn
    topology = BlockTopology(*drawn)
    block_rows, block_cols = -(-topology.rows // height), -(-topology.cols // width)
    index = topology.on(CPU)
    assert index.dtype == torch.int32 and index.is_contiguous()
    count = (index.numel() - 2 * block_rows - block_cols - 3) // 3
    start, ptr, col, col_ptr, row, order = index.split(
        [block_rows + 1, block_rows + 1, count, block_cols + 1, count, count]
    )
    kept = mask.to_dense()
    grid = torch.zeros(block_rows, block_cols, dtype=torch.bool)
    for i in range(block_rows):
        for j in range(block_cols):
            grid[i, j] = kept[i * height : (i + 1) * height, j * width : (j + 1) * width].any()
    assert count == grid.sum()
    for i in range(block_rows):
        assert start[i] == kept[: i * height].sum()
        assert col[ptr[i] : ptr[i + 1]].tolist() == grid[i].nonzero().flatten().tolist()
    assert start[-1] == mask.count()
    for j in range(block_cols):
        assert row[col_ptr[j] : col_ptr[j + 1]].tolist() == grid[:, j].nonzero().flatten().tolist()
    numbers = torch.zeros(block_rows, block_cols, dtype=torch.int32)
    numbers[grid] = torch.arange(count, dtype=torch.int32)
    assert torch.equal(order, numbers.t()[grid.t()])


@given(masks)
def test_value_of_a_row_and_kept_column(drawn):
    """The formula that kernels compute with: a block row is one run of L values for each of its rows."""
    mask, (height, _) = drawn
    topology = BlockTopology(*drawn)
    kept = mask.to_dense()
    numbers = torch.full(kept.shape, -1)
    numbers[kept] = torch.arange(mask.count())
    start = topology.on(CPU)
    for i in range(-(-topology.rows // height)):
        rows = range(i * height, min((i + 1) * height, topology.rows))
        length = (int(start[i + 1]) - int(start[i])) // len(rows)
        for r in rows:
            for j, column in enumerate(kept[r].nonzero().flatten().tolist()):
                assert numbers[r, column] == start[i] + (r - i * height) * length + j


def test_a_convolution_weight_is_seen_as_a_matrix():
    kept = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    kept[:2].view(2, 27)[:, 5:10] = True
    topology = BlockTopology(Mask.from_dense(kept), (2, 5))
    assert (topology.rows, topology.cols, topology.nnz) == (4, 27, 10)
    assert torch.equal(topology.flat_index(CPU), kept.flatten().nonzero().flatten())


def test_blocks_larger_than_the_weight():
    topology = BlockTopology(Mask.full((3, 5)), (64, 32))
    assert topology.on(CPU).tolist() == [0, 15, 0, 1, 0, 0, 1, 0, 0]


@given(masks)
def test_deepcopy_shares_and_pickle_rebuilds(drawn):
    topology = BlockTopology(*drawn)
    assert copy.deepcopy({"a": topology})["a"] is topology
    restored = pickle.loads(pickle.dumps(topology))
    assert isinstance(restored, BlockTopology) and restored.mask == drawn[0] and restored.block == drawn[1]
    assert torch.equal(restored.on(CPU), topology.on(CPU))


def test_blocks_of_one_weight_list_what_the_element_topology_lists():
    mask = block_mask(9, 11, (1, 1), 0.4, 3)
    assert torch.equal(BlockTopology(mask, (1, 1)).flat_index(CPU), Topology(mask).flat_index(CPU))


def test_errors():
    kept = torch.zeros(6, 7, dtype=torch.bool)
    kept[0, 0] = kept[4:, 6:] = kept[:2, 2:4] = True
    with pytest.raises(ValueError) as error:
        BlockTopology(Mask.from_dense(kept), (2, 2))
    assert str(error.value) == "BlockTopology: the mask must keep whole blocks of 2 x 2 (got 1 blocks kept in part)"
    for block in ((0, 1), (4,), 4, (1.0, 4), (True, 4), None, (2**31, 1), "44"):
        with pytest.raises(ValueError) as error:
            BlockTopology(Mask.full((3, 3)), block)
        text = f"BlockTopology: block must be two positive ints, height and width (got {block!r})"
        assert str(error.value) == text
    with pytest.raises(ValueError, match=r"^BlockTopology: the mask must have at least 2 dimensions \(got \(7,\)\)$"):
        BlockTopology(Mask.full((7,)), (1, 1))


def test_repr_tells_sizes():
    assert repr(BlockTopology(Mask.full((3, 2, 5)), (3, 5))) == "BlockTopology(3 x 10, nnz=30, block=3x5)"
