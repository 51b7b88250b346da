import copy
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snipkern import Mask

bool_arrays = hnp.arrays(bool, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=17))


@given(bool_arrays)
def test_round_trip(array):
    dense = torch.from_numpy(array)
    mask = Mask.from_dense(dense)
    assert torch.equal(mask.to_dense(), dense)
    assert mask.shape == dense.shape and mask.numel == dense.numel()
    assert mask.count() == int(dense.sum())
    assert mask.density == (mask.count() / mask.numel if mask.numel else 1.0)


@given(bool_arrays)
def test_element_i_is_bit_i_modulo_64_of_word_i_over_64(array):
    words = Mask.from_dense(torch.from_numpy(array)).words
    expected = [0] * -(-array.size // 64)
    for i in np.flatnonzero(array).tolist():
        expected[i // 64] |= 1 << (i % 64)
    assert [word % 2**64 for word in words.tolist()] == expected


@given(st.integers(1, 63), st.data())
def test_bits_beyond_the_end_are_refused(numel, data):
    stray = data.draw(st.integers(numel, 63))
    word = np.array([1 << stray], dtype=np.uint64).view(np.int64)
    with pytest.raises(ValueError, match=re.escape(f"Mask: bits beyond element {numel} must be zero (got a set bit)")):
        Mask(torch.from_numpy(word), (numel,))


def test_last_word_may_be_full():
    mask = Mask(torch.tensor([-1]), (8, 8))
    assert mask.count() == 64 and mask == Mask.full((8, 8))


@given(bool_arrays)
def test_copies_and_pickles(array):
    mask = Mask.from_dense(torch.from_numpy(array))
    assert copy.copy(mask) == mask
    assert copy.deepcopy([mask, mask]) == [mask, mask] and copy.deepcopy(mask) is mask
    restored = pickle.loads(pickle.dumps(mask))
    assert restored == mask and hash(restored) == hash(mask) and restored.count() == mask.count()


def test_from_dense_takes_any_layout():
    dense = torch.rand(9, 14) < 0.5
    assert torch.equal(Mask.from_dense(dense.t()).to_dense(), dense.t())
    assert torch.equal(Mask.from_dense(dense[:, ::3]).to_dense(), dense[:, ::3])
    expanded = dense[:1].expand(5, 14)
    assert torch.equal(Mask.from_dense(expanded).to_dense(), expanded)


def test_the_words_are_not_shared_with_the_dense_tensors():
    dense = torch.ones(70, dtype=torch.bool)
    mask = Mask.from_dense(dense)
    dense[3] = False
    mask.to_dense()[5] = False
    assert mask == Mask.full((70,))


def test_equality_sees_shape_and_bits():
    mask = Mask.full((4, 6))
    assert mask != Mask.full((6, 4))
    assert mask != Mask.from_dense(torch.zeros(4, 6, dtype=torch.bool))
    assert mask != "mask"
    assert len({mask, Mask.full((4, 6)), Mask.full((6, 4))}) == 2


def test_repr_tells_shape_count_and_density():
    dense = torch.zeros(4, 5, dtype=torch.bool)
    dense[1, 2] = True
    assert repr(Mask.from_dense(dense)) == "Mask((4, 5), kept=1, density=5.00%)"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Mask.from_dense(torch.ones(3)),
            "Mask.from_dense: kept must be a bool tensor (got torch.float32)",
        ),
        (
            lambda: Mask(torch.zeros(1), (3,)),
            "Mask: words must be a 1-D int64 CPU tensor (got 1-D torch.float32 on cpu)",
        ),
        (
            lambda: Mask(torch.zeros(1, 1, dtype=torch.int64), (3,)),
            "Mask: words must be a 1-D int64 CPU tensor (got 2-D torch.int64 on cpu)",
        ),
        (
            lambda: Mask(torch.zeros(1, dtype=torch.int64, device="meta"), (3,)),
            "Mask: words must be a 1-D int64 CPU tensor (got 1-D torch.int64 on meta)",
        ),
        (
            lambda: Mask(torch.zeros(1, dtype=torch.int64), (5, 13)),
            "Mask: shape (5, 13) needs 2 words (got 1)",
        ),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == text
