import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp

from snipkern import Mask
from snipkern.topology import Topology
from snipkern.topology.csr import unpacked_index

CPU = torch.device("cpu")
masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=12)).map(
    lambda array: Mask.from_dense(torch.from_numpy(array))
)


@given(masks)
def test_flat_index_lists_the_kept_weights(mask):
    topology = Topology(mask)
    assert topology.nnz == mask.count() and topology.rows * topology.cols == mask.numel
    assert torch.equal(topology.flat_index(CPU), mask.to_dense().flatten().nonzero().flatten())


@given(masks)
def test_packed_index_holds_rows_and_columns(mask):
    topology = Topology(mask)
    rows, cols, nnz = topology.rows, topology.cols, topology.nnz
    index = topology.on(CPU)
    assert index.dtype == torch.int32 and index.is_contiguous()
    words = (nnz + 1) // 2  # 16 bits suffice
    row_ptr, col, col_ptr, row, order = index.split([rows + 1, words, cols + 1, words, nnz])
    col, row = unpacked_index(col, nnz, cols), unpacked_index(row, nnz, rows)
    kept = mask.to_dense().view(rows, cols)
    for r in range(rows):
        assert col[row_ptr[r] : row_ptr[r + 1]].tolist() == kept[r].nonzero().flatten().tolist()
    for c in range(cols):
        assert row[col_ptr[c] : col_ptr[c + 1]].tolist() == kept[:, c].nonzero().flatten().tolist()
    # Entry k of the column lists is kept weight order[k] of the row lists.
    numbers = torch.zeros(rows, cols, dtype=torch.int32)
    numbers[kept] = torch.arange(nnz, dtype=torch.int32)
    assert torch.equal(order, numbers.t()[kept.t()])


@pytest.mark.parametrize("shape", ((3, 65536), (3, 65537), (65536, 3), (65537, 3)), ids=str)
def test_indices_of_16_and_of_32_bits(shape):
    kept = torch.zeros(shape, dtype=torch.bool)
    kept[-1, -1] = kept[0, -1] = kept[-1, 0] = True
    topology = Topology(Mask.from_dense(kept))
    assert torch.equal(topology.flat_index(CPU), kept.flatten().nonzero().flatten())
    words = 3 + sum(3 if size > 65536 else 2 for size in shape)
    assert topology.on(CPU).numel() == sum(shape) + 2 + words


@given(masks)
def test_deepcopy_shares_and_pickle_rebuilds(mask):
    topology = Topology(mask)
    assert copy.deepcopy({"a": topology})["a"] is topology
    restored = pickle.loads(pickle.dumps(topology))
    assert restored is not topology and restored.mask == mask
    assert torch.equal(restored.on(CPU), topology.on(CPU))


def test_pickle_holds_the_mask_only():
    topology = Topology(Mask.full((200, 300)))
    assert len(pickle.dumps(topology)) < 200 * 300 / 8 + 2000 < topology.on(CPU).nbytes


def test_index_is_made_once_per_device():
    topology = Topology(Mask.full((3, 4)))
    assert topology.on(CPU) is topology.on(CPU)
    meta = topology.on(torch.device("meta"))
    assert meta is topology.on(torch.device("meta")) and meta.shape == topology.on(CPU).shape


def test_errors():
    with pytest.raises(ValueError) as error:
        Topology(Mask.full((7,)))
    assert str(error.value) == "Topology: the mask must have at least 2 dimensions (got (7,))"
    with pytest.raises(ValueError) as error:
        Topology(Mask.from_dense(torch.zeros(0, 2**31, dtype=torch.bool)))
    assert str(error.value) == (
        "Topology: rows, columns and kept weights must be below 2^31 (got 0 x 2147483648 with 0 kept)"
    )


def test_repr_tells_sizes():
    assert repr(Topology(Mask.full((3, 2, 5)))) == "Topology(3 x 10, nnz=30)"
