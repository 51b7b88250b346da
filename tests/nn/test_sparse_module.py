"""What all sparse modules share, beyond what tests/nn/test_sparse.py sees of it: replacing kept entries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import snipkern as sk
from snipkern.nn import SparseLinear
from snipkern.topology import Topology, build


@pytest.fixture
def sparse() -> SparseLinear:
    return SparseLinear.from_dense(nn.Linear(6, 5), sk.Mask.from_dense(torch.rand(5, 6) < 0.5))


def test_topologies_are_read_only_and_by_dense_names(sparse):
    assert dict(sparse.topologies) == {"weight": sparse.topology}
    with pytest.raises(TypeError):
        sparse.topologies["weight"] = sparse.topology
    assert sparse.values_of("weight") is sparse.weight_values
    assert torch.equal(sparse.dense("weight"), sparse.weight)


def test_replaced_entries_are_computed_with_saved_and_made_dense(sparse):
    compiled = torch.compile(sparse, backend="eager")
    x = torch.randn(3, 6)
    compiled(x)
    dense = torch.randn(5, 6) * (torch.rand(5, 6) < 0.4)
    topology = Topology(sk.Mask.from_dense(dense != 0))
    sparse.replace_("weight", nn.Parameter(dense[dense != 0]), topology)
    assert [name for name, _ in sparse.named_parameters()] == ["weight_values", "bias"]
    assert torch.equal(sparse.weight, dense) and sparse.mask == topology.mask
    for module in (sparse, compiled):
        torch.testing.assert_close(module(x), nn.functional.linear(x, dense, sparse.bias))
    other = nn.Linear(6, 5)
    sk.load_(other, sparse.state_dict())
    assert torch.equal(other.weight, dense)
    assert torch.equal(sk.to_dense_(sparse).weight, dense)


def test_entries_that_do_not_fit_are_refused(sparse):
    values, topology = sparse.weight_values, sparse.topology
    full = build(sk.Mask.full((5, 6)))
    with pytest.raises(ValueError, match=r"SparseLinear.bias must be a sparse weight, one of weight \(got 'bias'\)"):
        sparse.replace_("bias", values, topology)
    with pytest.raises(ValueError, match=r"weight: the mask must be \[5, 6\] \(got \[6, 5\]\)"):
        sparse.replace_("weight", nn.Parameter(torch.zeros(30)), build(sk.Mask.full((6, 5))))
    with pytest.raises(ValueError, match=r"nn.Parameter of shape \[30\] \(got Parameter \[29\]\)"):
        sparse.replace_("weight", nn.Parameter(torch.zeros(29)), full)
    with pytest.raises(ValueError, match=r"nn.Parameter of shape \[30\] \(got Tensor \[30\]\)"):
        sparse.replace_("weight", torch.zeros(30), full)
    with pytest.raises(ValueError, match=r"torch.float32 on cpu \(got torch.float64 on cpu\)"):
        sparse.replace_("weight", nn.Parameter(torch.zeros(30, dtype=torch.float64)), full)
    assert sparse.weight_values is values and sparse.topology is topology
