"""The launchers that zero what is pruned, in Triton's interpreter, against the reference, bit for bit.

test_triton_bsr.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import pytest
import strict
import torch

from snipkern.ops import reference
from snipkern.ops.checks import FLOATS
from snipkern.triton_kernels import zero_pruned

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
WORDS = 64


def case(size, dtype=torch.float32, seed=0):
    """A tensor with everything that a float can be, and a random mask's words."""
    source = torch.Generator().manual_seed(seed)
    tensor = torch.randn(size, generator=source).to(dtype)
    for i, value in enumerate((float("nan"), float("inf"), -0.0, 0.0)):
        tensor[i::11] = value
    halves = torch.randint(0, 2**32, (-(-size // WORDS), 2), generator=source)
    return tensor, halves[:, 0] << 32 | halves[:, 1]


def check(tensor, words):
    bits = BITS[tensor.element_size()]
    expected = reference.zero_pruned(tensor, words).view(bits)
    before = tensor.clone().view(bits)
    copy = zero_pruned.zero_pruned(tensor, words)
    assert copy.dtype == tensor.dtype and torch.equal(copy.view(bits), expected)
    assert torch.equal(tensor.view(bits), before)
    assert zero_pruned.zero_pruned_(tensor, words) is None
    assert torch.equal(tensor.view(bits), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes_and_sizes(dtype):
    tile = zero_pruned.TILE_BYTES // dtype.itemsize
    for size in (0, 1, 63, 64, 65, tile, tile + 1, 2 * tile + 77):
        check(*case(size, dtype))


def test_shapes_and_masks():
    tensor, words = case(3 * 5 * 7)
    check(tensor.view(3, 5, 7), words)
    check(tensor.view(3, 5, 7), torch.zeros_like(words))
    check(torch.randn(200), torch.full((4,), -1))


def test_only_tiles_with_something_pruned_are_written(monkeypatch):
    tile = zero_pruned.TILE_BYTES // 4
    tensor = torch.ones(3 * tile)
    words = torch.full((3 * tile // WORDS,), -1)
    words[-1] = 1
    written = []
    stock = strict.check_races

    def check_races():
        written.append(strict.Launch.stores.joined()[0].size)
        stock()

    monkeypatch.setattr(strict, "check_races", check_races)
    zero_pruned.zero_pruned_(tensor, words)
    zero_pruned.zero_pruned_(tensor, words)
    assert written == [tile, 0]


@pytest.mark.parametrize("name", ["zero_pruned", "zero_pruned_"])
def test_bad_arguments_raise_what_the_reference_raises(name):
    tensor, words = case(100)
    for bad in ((tensor.int(), words), (tensor, words[:1]), (tensor, words.int()), (tensor.view(4, 25).t(), words)):
        messages = []
        for module in (reference, zero_pruned):
            with pytest.raises(ValueError, match=rf"^{name}: .* \(got .*\)$") as error:
                getattr(module, name)(*bad)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
