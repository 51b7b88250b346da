"""Criteria that look at curvature, on recurrent nets: the model is left as it was, sparse layers give the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snipkern as sk
from snipkern.criteria import CRITERIA, Obd

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.out = kind(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.randn(2, 2, 3).double(), torch.tensor([0, 2]))]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_dense_recurrent_layers_still_compute_with_their_own_weights(criterion, data):
    torch.manual_seed(0)
    model = Net(nn.GRU).double()
    sk.score(model, data, criterion=criterion, keep=0.3)
    own = [model.rnn.get_parameter(name) for name in model.rnn._flat_weights_names]
    assert all(a is b for a, b in zip(model.rnn._flat_weights, own, strict=True))
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_second_derivatives_of_sparse_recurrent_layers_are_those_of_masked_ones(kind, data):
    torch.manual_seed(0)
    sparse = Net(kind).double()
    masked = copy.deepcopy(sparse)
    masks = sk.prune_(sparse, data, keep=0.6, engine="csr").masks
    sk.sparsify_(masked, masks, engine="masked")
    found, want = (sk.score(model, data, criterion="grasp") for model in (sparse, masked))
    for name in masks:
        torch.testing.assert_close(found[name], want[name], rtol=1e-4, atol=1e-9)
    assert sk.score(sparse, data, criterion=Obd(curvature="hutchinson", samples=1)).keys() == masks.keys()
