"""Layouts check their orders."""

from __future__ import annotations

import pytest
import torch

from snipkern.layout import Layout


def test_permutations_are_taken():
    layout = Layout((4, 4), torch.randperm(12), None)
    assert layout.ordered
    assert not Layout((4, 4)).ordered
    assert Layout((4, 4), torch.arange(0), torch.arange(0)).ordered


@pytest.mark.parametrize(
    "order",
    [torch.tensor([0, 0, 1]), torch.tensor([0, 3]), torch.arange(3, dtype=torch.int32), torch.arange(4).view(2, 2)],
    ids=["twice", "beyond", "int32", "2d"],
)
@pytest.mark.parametrize("name", ["row_order", "col_order"])
def test_other_orders_raise(name: str, order: torch.Tensor):
    with pytest.raises(ValueError, match=rf"Layout: {name} must be a 1-D int64 CPU tensor that holds each of"):
        Layout((2, 2), **{name: order})
