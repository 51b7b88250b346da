"""Criteria that map over weights or samples, on models that are pruned already: right, silent, and nothing is left."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from explicit import build
from torch import nn

import snipkern as sk
from snipkern.criteria import LeaveOneOut, Obd, Obs
from snipkern.criteria.leave_one_out import Without
from snipkern.nn.masked import guards

pytestmark = pytest.mark.usefixtures("one_thread")

CRITERIA = [Obd(), Obd(curvature="fisher"), Obd(samples=2), Obs(block=9), LeaveOneOut()]


@pytest.fixture
def quiet(capfd):
    """torch warns, in Python or on stderr, where it loops over what is mapped."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert "batching rule" not in capfd.readouterr().err


def pruned(net, engine):
    model, batches = build(net, samples=(5,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sk.prune_(model, batches, keep=0.7, engine=engine)
    return model, batches


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("engine", ["masked", "csr"])
@pytest.mark.parametrize("net", ["convolutional", "recurrent", "tied"])
def test_scores_of_what_is_left_are_those_of_the_dense_model(net, engine, criterion, quiet):
    model, batches = pruned(net, engine)
    masks = sk.masks(model)
    dense = sk.to_dense_(copy.deepcopy(model))
    keep = sum(mask.count() for mask in masks.values()) // 2
    got, want = (sk.score(each, batches, criterion=criterion, keep=keep) for each in (model, dense))
    for name, mask in masks.items():
        kept = mask.to_dense()
        assert not got[name][~kept].any()
        if isinstance(criterion, Obs):
            continue  # its blocks are of what is left
        torch.testing.assert_close(got[name][kept], want[name][kept], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("net", ["convolutional", "recurrent"])
def test_losses_without_single_weights_of_sparse_layers_are_mapped(net, quiet):
    model, batches = pruned(net, "csr")
    model.eval()
    without = Without(model, sk.scoring.gradients.default_loss, None)
    with torch.no_grad():
        found = {name: d for name, _, d in without.each(list(sk.masks(model)), batches[0])}
        assert without.mapped
        without.mapped = False
        for name, _, one_by_one in without.each(list(sk.masks(model)), batches[0]):
            torch.testing.assert_close(found[name], one_by_one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", [*CRITERIA, "synflow", "grasp"], ids=repr)
def test_guards_guard_their_own_parameters_afterwards(criterion):
    """They follow other tensors during a call with those; a model that holds on to them can't be copied or saved."""
    model, batches = pruned("convolutional", "masked")
    sk.score(model, batches, criterion=criterion)
    found = [
        guard.parameter is module._parameters[n] for module in model.modules() for n, guard in guards(module).items()
    ]
    assert found == [True] * 3
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.functional.cross_entropy(twin(batches[0][0]), batches[0][1]).backward()
        for name, mask in sk.masks(twin).items():
            assert not twin.get_parameter(name).grad[~mask.to_dense()].any()
