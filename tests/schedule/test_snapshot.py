"""Snapshots: what was, to the bit, in models that keep less."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from nets import make_cnn, make_mlp
from torch import nn

import snipkern as sk

pytestmark = pytest.mark.usefixtures("one_thread")


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)


def require_rewound(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    masks = {name: mask.to_dense() for name, mask in sk.masks(model).items()}
    found = sk.dense_state_dict(model)
    assert found.keys() == before.keys()
    for name, value in found.items():
        want = before[name] * masks[name] if name in masks else before[name]
        assert torch.equal(value, want), name


@pytest.mark.parametrize("engine", ["csr", "masked"])
def test_everything_goes_back_to_the_bit_and_pruned_stays_pruned(engine, cnn, images):
    before = copy.deepcopy(cnn.state_dict())
    snapshot = sk.Snapshot(cnn)
    cnn.train()(images[0][0])  # running statistics move
    disturb(cnn)
    sk.prune_(cnn, images, keep=0.3, engine=engine)
    kept = sk.masks(cnn)
    assert snapshot.rewind_(cnn) is cnn
    require_rewound(cnn, before)
    assert sk.masks(cnn) == kept


@pytest.mark.parametrize("first", ["csr", "masked"])
@pytest.mark.parametrize("second", ["csr", "masked"])
def test_a_snapshot_of_a_pruned_model_serves_one_that_keeps_less(first, second, mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, engine=first)
    snapshot, before = sk.Snapshot(mlp), copy.deepcopy(sk.dense_state_dict(mlp))
    disturb(mlp)
    sk.prune_(mlp, vectors, keep=0.2, engine=second)
    snapshot.rewind_(mlp)
    require_rewound(mlp, before)


def test_values_in_an_order_of_their_own(vectors):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    options = {"block": (4, 4), "order": True, "mix": 0.3, "engine": "bsr"}
    sk.prune_(model, vectors, keep=0.6, **options)
    assert not model[0].topology.row_major
    snapshot, before = sk.Snapshot(model), copy.deepcopy(sk.dense_state_dict(model))
    disturb(model)
    sk.prune_(model, vectors, keep=0.3, **options)
    snapshot.rewind_(model)
    require_rewound(model, before)


def test_optimizer_state_is_dropped_where_asked(mlp, vectors):
    snapshot = sk.Snapshot(mlp)
    other = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([*mlp.parameters(), other])
    sum(p.sum() for p in (*mlp.parameters(), other)).backward()
    optimizer.step()
    snapshot.rewind_(mlp)
    assert len(optimizer.state) == 7 and mlp[0].weight.grad is None
    snapshot.rewind_(mlp, optimizer=optimizer)
    assert list(optimizer.state) == [other]


def test_saved_without_pickle_and_loaded(cnn, images):
    sk.prune_(cnn, images, keep=0.5, engine="csr")
    before = copy.deepcopy(sk.dense_state_dict(cnn))
    file = io.BytesIO()
    torch.save(sk.Snapshot(cnn).state_dict(), file)
    file.seek(0)
    snapshot = sk.Snapshot.from_state_dict(torch.load(file, weights_only=True))
    twin = sk.load_(make_cnn(), cnn.state_dict())
    disturb(twin)
    snapshot.rewind_(twin)
    require_rewound(twin, before)


def test_buffers_that_state_dicts_leave_out_and_tied_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.register_buffer("counts", torch.zeros(3), persistent=False)
    sk.sparsify_(model, {"0.weight": sk.Mask.from_dense(torch.eye(4) > 0)})
    snapshot, weight = sk.Snapshot(model), model[0].weight.detach().clone()
    disturb(model)
    snapshot.rewind_(model)
    assert torch.equal(model[1].weight, weight) and model[1].weight is model[0].weight
    assert torch.equal(model.counts, torch.zeros(3))


def test_a_snapshot_does_not_follow_the_model(mlp):
    snapshot = sk.Snapshot(mlp, device="cpu")
    before = copy.deepcopy(mlp.state_dict())
    disturb(mlp)
    snapshot.rewind_(mlp)
    disturb(mlp)
    snapshot.rewind_(mlp)
    require_rewound(mlp, before)
    assert repr(snapshot) == "Snapshot(6 tensors, 1,361 numbers)"


def other_net() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 16), nn.ReLU(), nn.Linear(16, 5))


@pytest.mark.parametrize(
    "make, message",
    [
        (make_cnn, r"must have what the snapshot has \(got differing names: "),
        (
            other_net,
            r"'2.weight' must be \[17, 33\] torch.float32, as in the snapshot \(got \[16, 33\] torch.float32\)",
        ),
        (lambda: make_mlp().double(), r"'0.weight' must be .* \(got \[33, 20\] torch.float64\)"),
        (lambda: make_mlp().to("meta"), r"must be whole and initialised \(got one on the meta device, '0.weight'\)"),
    ],
)
def test_other_models_are_refused_untouched(make, message, mlp):
    snapshot, model = sk.Snapshot(mlp), make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        snapshot.rewind_(model)
    for name, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value, before[name])


@pytest.mark.parametrize("engine", ["csr", "masked"])
def test_models_that_keep_more_than_the_snapshot_are_refused(engine, mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.2, engine=engine)
    snapshot = sk.Snapshot(mlp)
    for model in (make_mlp(), make_mlp()):
        with pytest.raises(ValueError, match=r"'0.weight' must keep nothing that the snapshot lacks"):
            snapshot.rewind_(model)
        sk.prune_(model, vectors, keep=0.5, engine="csr")


def test_what_is_no_snapshot_is_refused(mlp):
    snapshot = sk.Snapshot(mlp)
    for wrong in ({}, {"version": 2}, [1]):
        with pytest.raises(ValueError, match="Snapshot: the state dict must be a snapshot's, of version 1"):
            sk.Snapshot.from_state_dict(wrong)
    with pytest.raises(ValueError, match=r"rewind_: optimizer must be a torch.optim.Optimizer \(got list\)"):
        snapshot.rewind_(mlp, optimizer=[])
    with pytest.raises(ValueError, match=r"\(got a lazy one, 'weight'\)"):
        sk.Snapshot(nn.LazyLinear(3))
