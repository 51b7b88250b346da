"""Pruning whole models with recurrent modules: engines, training, what the report tells."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import snipkern as sk
from snipkern.engine import choice
from snipkern.engine.measure import Times
from snipkern.engine.recurrent import recurrent_workload
from snipkern.engine.workload import Call
from snipkern.nn import SparseGRU, SparseLinear, SparseLSTM
from snipkern.scoring.gradients import noted_calls


class Tagger(nn.Module):
    """Embedding, LSTM over packed sequences of several lengths, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12)
        self.rnn = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        lengths = 1 + (words > 3).sum(1).clamp(max=words.shape[1] - 1)
        packed = pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.rnn(packed)
        return self.head(h[-2:].transpose(0, 1).flatten(1))


class Rows(nn.Module):
    """Linear, GRU over the rows of an image, classifier: as in the paper's LSTM-s and GRU-s."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Linear(10, 14)
        self.rnn = nn.GRU(14, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.reduce(rows).transpose(0, 1))[0][-1])


def words() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randint(0, 40, (6, 7)), torch.randint(0, 4, (6,))) for _ in range(2)]


def rows() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 9, 10), torch.randint(0, 4, (6,))) for _ in range(2)]


MODELS = {"tagger": (Tagger, words, SparseLSTM), "rows": (Rows, rows, SparseGRU)}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, data, kind = MODELS[request.param]
    torch.manual_seed(0)
    return make().double(), [(x.double() if x.is_floating_point() else x, y) for x, y in data()], kind


def train(model: nn.Module, data, make, steps: int = 50) -> list[float]:
    optimizer, losses = make(model.parameters()), []
    for step in range(steps):
        x, y = data[step % len(data)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_sparse_is_training_masked(case, optimizer):
    model, data, kind = case
    other = copy.deepcopy(model)
    pruned = sk.prune_(model, data, keep=0.3, engine="csr")
    masked = sk.prune_(other, data, keep=0.3, engine="masked")
    assert pruned.masks == masked.masks == sk.masks(model) == sk.masks(other)
    assert type(model.rnn) is kind and {layer.engine for layer in pruned.layers} == {"csr"}
    assert type(other.rnn) is kind.__bases__[1] and {layer.engine for layer in masked.layers} == {"masked"}
    losses, expected = (train(net, data, OPTIMIZERS[optimizer]) for net in (model, other))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-9)
    assert losses[-1] < losses[0]
    for name, mask in pruned.masks.items():
        path, _, leaf = name.rpartition(".")
        found = getattr(model.get_submodule(path), leaf)
        torch.testing.assert_close(found, other.get_parameter(name), rtol=1e-6, atol=1e-8)
        assert not found[~mask.to_dense()].any()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_made_before_goes_on_with_what_is_kept(case, make):
    model, data, _ = case
    optimizer = make(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()
        optimizer.step()
    other = copy.deepcopy(model)
    before = dict(model.named_parameters())
    state = {name: {k: v.clone() for k, v in optimizer.state[p].items() if v is not None} for name, p in before.items()}
    sk.prune_(model, data, keep=0.3, engine="csr", optimizer=optimizer)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    for name, topology in model.rnn.topologies.items():
        index = topology.flat_index(torch.device("cpu"))
        assert torch.equal(model.rnn.values_of(name), other.get_parameter(f"rnn.{name}").reshape(-1)[index])
        for key, value in optimizer.state[model.rnn.values_of(name)].items():
            was = state[f"rnn.{name}"][key]
            assert torch.equal(value, was if was.dim() == 0 else was.reshape(-1)[index])
    optimizer.zero_grad()
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    optimizer.step()


def test_auto_decides_once_for_all_weights_of_a_module(case, monkeypatch):
    model, data, kind = case
    asked = []

    def measured(work, mask, *_):
        asked.append((work, mask))
        return Times(3.0, 3.5, 1.0)

    monkeypatch.setattr(choice, "measure", measured)
    monkeypatch.setattr(choice, "clear", lambda prediction: False)
    pruned = sk.prune_(model, data, keep=0.3)
    assert type(model.rnn) is kind
    recurrent = [layer for layer in pruned.layers if layer.name.startswith("rnn.")]
    assert len({id(layer.work) for layer in recurrent}) == 1 and {layer.measured for layer in recurrent} == {3.0}
    of_rnn = [(work, mask) for work, mask in asked if isinstance(mask, dict)]
    assert len(of_rnn) == 1
    work, masks = of_rnn[0]
    assert {f"rnn.{name}": mask for name, mask in masks.items()} == {
        layer.name: sk.masks(model)[layer.name] for layer in recurrent
    }
    assert work.kept == tuple(mask.count() for mask in masks.values())
    assert work.module().state_dict().keys() == sk.dense_state_dict(model.rnn).keys()
    report = pruned.report()
    steps = work.steps
    assert f"measured 3.0x dense for {steps} steps of {work.batch}" in " ".join(recurrent[0].reason.split())
    assert report.count("as above") == len(recurrent) - 1


def test_auto_leaves_modules_dense_that_would_be_slower(case, monkeypatch):
    model, data, _ = case
    monkeypatch.setattr(choice, "measure", lambda *_: Times(1.0, 1.05, 2.0))
    monkeypatch.setattr(choice, "clear", lambda prediction: False)
    pruned = sk.prune_(model, data, keep=0.3)
    recurrent = [layer for layer in pruned.layers if layer.name.startswith("rnn.")]
    assert {layer.engine for layer in recurrent} == {"masked"} and "csr would be slower" in recurrent[0].reason
    assert sk.masks(model) == pruned.masks
    assert not isinstance(model.rnn, (SparseLSTM, SparseGRU))


def test_auto_really_measures_and_chooses_the_faster(case):
    model, data, kind = case
    pruned = sk.prune_(model, data, keep=0.3)
    recurrent = [layer for layer in pruned.layers if layer.name.startswith("rnn.")]
    (engine,) = {layer.engine for layer in recurrent}
    assert isinstance(model.rnn, kind) == (engine == "csr")
    again = pruned.measure()
    assert all(layer.measured and layer.predicted for layer in again.layers)
    train(model, data, OPTIMIZERS["sgd"], 2)


def test_blocks_are_computed_as_single_weights():
    torch.manual_seed(0)
    model = Rows()
    pruned = sk.prune_(model, rows(), keep=0.5, block=(2, 2), engine="bsr")
    layers = {layer.name: layer for layer in pruned.layers}
    assert layers["rnn.weight_hh_l0"].engine == "csr" and layers["rnn.weight_hh_l0"].block == (2, 2)
    assert "its blocks are computed as single weights" in layers["rnn.weight_hh_l0"].reason
    assert layers["reduce.weight"].engine == "bsr" and isinstance(model.reduce, SparseLinear)
    assert isinstance(model.rnn, SparseGRU) and model.rnn.topologies["weight_hh_l0"].layout is None
    kept = pruned.masks["rnn.weight_hh_l0"].to_dense().view(24, 2, 8, 2)
    assert torch.equal(kept.all(3).all(1), kept.any(3).any(1))  # whole blocks
    other = Rows()
    sk.load_(other, model.state_dict())
    assert torch.equal(other(rows()[0][0]), model(rows()[0][0]))


def test_biases_can_be_masked_beside_sparse_weights():
    torch.manual_seed(0)
    model, data = Rows(), rows()
    assert "rnn.bias_hh_l0" in sk.prune_(Rows(), data, keep=0.4, preset="paper", engine="csr").masks
    names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_hh_l0")
    masks = {name: sk.Mask.from_dense(torch.rand(model.get_parameter(name).shape) < 0.5) for name in names}
    sk.sparsify_(model, masks, engine="csr")
    assert isinstance(model.rnn, SparseGRU) and sk.masks(model) == masks
    train(model, data, OPTIMIZERS["adamw"], 5)
    kept = masks["rnn.bias_hh_l0"].to_dense()
    assert not model.rnn.bias_hh_l0[~kept].any() and model.rnn.bias_hh_l0[kept].all()
    saved = model.state_dict()
    other = Rows()
    sk.load_(other, saved)
    assert sk.masks(other) == masks and torch.equal(other(data[0][0]), model(data[0][0]))


def test_frozen_weights_leave_the_module_masked():
    torch.manual_seed(0)
    model = Rows()
    model.rnn.weight_ih_l0.requires_grad_(False)
    pruned = sk.prune_(model, rows(), keep=0.4, engine="csr")
    layer = next(layer for layer in pruned.layers if layer.name == "rnn.weight_hh_l0")
    assert layer.engine == "masked" and layer.reason.endswith("weight_ih_l0 has no mask")
    assert type(model.rnn) is nn.GRU and "rnn.weight_ih_l0" not in pruned.masks


def test_streamed_gradients_give_the_same_masks():
    torch.manual_seed(0)
    model = Rows()
    plain = sk.plan(model, rows(), keep=0.3)
    assert sk.plan(model, rows(), keep=0.3, memory="stream").masks == plain.masks


def test_calls_of_recurrent_modules_are_noted():
    modules = nn.ModuleDict(
        {"a": nn.LSTM(5, 4, batch_first=True), "b": nn.GRU(5, 4), "c": nn.RNN(5, 4), "d": nn.GRU(5, 4)}
    )
    x, calls = torch.randn(3, 7, 5), {}
    with noted_calls(modules, calls):
        modules["a"](x)
        modules["b"](input=x.requires_grad_())
        modules["c"](x[0])
        modules["d"](pack_padded_sequence(x, torch.tensor([7, 6, 1]), batch_first=True))
    assert calls["a"] == Call((3, 7, 5), torch.float32, False)
    assert calls["b"] == Call((3, 7, 5), torch.float32, True)
    assert calls["d"] == Call((14, 5), torch.float32, True, 7)
    works = {name: recurrent_workload(modules[name], [1, 2], call) for name, call in calls.items()}
    sizes = {name: (work.steps, work.batch, work.input_grad) for name, work in works.items()}
    assert sizes == {"a": (7, 3, False), "b": (3, 7, True), "c": (7, 1, True), "d": (7, 2, True)}
    assumed = recurrent_workload(modules["a"], [1, 2], None)
    assert assumed.assumed and assumed.rows > 0
