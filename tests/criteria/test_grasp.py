"""GraSP against explicit Hessians and gradients, and against what becomes of the gradient's length."""

import explicit
import pytest
import torch
import torch.nn.functional as F
from explicit import build, context, flat
from torch import nn

import snipkern as sk
from snipkern.criteria import Grasp


def close(found, expected, rtol=1e-7):
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


def scores_of(scores):
    assert scores.formula == "signed"
    return flat({name: weight * other for name, (weight, other) in scores.pairs.items()})


@pytest.mark.parametrize("net", explicit.NETS)
def test_scores_are_those_of_the_explicit_hessian(net):
    model, batches = build(net)
    h, g = explicit.hessian(model, batches), explicit.gradient(model, batches)
    close(scores_of(Grasp().scores(context(model, batches))), flat(explicit.pooled(model)) * (h @ g))


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_other_recurrent_layers(kind, dtype):
    torch.manual_seed(0)
    model = explicit.Recurrent(kind).to(dtype)
    batches = [(torch.randn(5, 3, 2, dtype=dtype), torch.randint(0, 3, (5,)))]
    found = scores_of(Grasp().scores(context(model, batches))).double()
    model, batches = model.double(), [(x.double(), y) for x, y in batches]
    h, g = explicit.hessian(model, batches), explicit.gradient(model, batches)
    close(found, flat(explicit.pooled(model)) * (h @ g), 1e-7 if dtype == torch.float64 else 1e-4)


def test_a_weight_with_a_larger_score_is_worth_more_gradient():
    model, batches = build("convolutional")
    scores = scores_of(Grasp().scores(context(model, batches)))
    weights = flat(explicit.pooled(model))
    flow = explicit.gradient(model, batches).square().sum()
    step = 1e-5
    for j in range(0, weights.numel(), 7):
        with explicit.moved(model, j, -step * float(weights[j])):  # a small part of the weight is removed
            change = explicit.gradient(model, batches).square().sum() - flow
        assert float(change) / step == pytest.approx(-2 * float(scores[j]), rel=1e-3, abs=1e-6)
    # What goes first makes the gradient grow: the least score, with its sign.
    masks = sk.plan(model, batches, weights.numel() - 1, criterion="grasp", batches=2).masks
    gone = (~flat({name: mask.to_dense() for name, mask in masks.items()})).nonzero()
    assert gone.flatten().tolist() == [int(scores.argmin())]
    assert float(scores.min()) < 0


def test_temperature_divides_the_outputs():
    model, batches = build("convolutional")
    warm = lambda model, batch: F.cross_entropy(model(batch[0]) / 200, batch[1])  # noqa: E731
    h, g = explicit.hessian(model, batches, warm), explicit.gradient(model, batches, warm)
    before = explicit.state_of(model)
    found = scores_of(Grasp(temperature=200).scores(context(model, batches)))
    explicit.same_state(before, explicit.state_of(model))
    close(found, flat(explicit.pooled(model)) * (h @ g), 1e-6)


def test_a_loader_that_shuffles_is_read_once():
    model, batches = build("perceptron")

    class Loader:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(batches if self.reads == 1 else [(torch.randn_like(x), y) for x, y in batches])

    loader = Loader()
    found = scores_of(Grasp().scores(context(model, loader, batches=2)))
    assert torch.equal(found, scores_of(Grasp().scores(context(model, batches))))
    assert loader.reads == 1


@pytest.mark.parametrize("net", ["convolutional", "recurrent", "attention"])
def test_pruning_with_it(net):
    model, batches = build(net, dtype=torch.float32)
    before = explicit.state_of(model)
    plan = sk.plan(model, batches, 0.3, criterion="grasp", batches=2)
    explicit.same_state(before, explicit.state_of(model))
    assert plan.masks == sk.select(Grasp().scores(context(model, batches)).pairs, 0.3, score="signed")
    plan.apply_()
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()


@pytest.mark.parametrize("temperature", [0, -1.0, True, "200", float("inf"), float("nan")])
def test_wrong_temperatures(temperature):
    with pytest.raises(ValueError) as error:
        Grasp(temperature=temperature)
    assert str(error.value) == f"grasp: temperature must be None or a positive number (got {temperature!r})"


def test_outputs_that_have_no_temperature():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    model = Two(4, 3)
    loss_fn = lambda model, batch: F.cross_entropy(model(batch[0])[0], batch[1])  # noqa: E731
    batches = [(torch.randn(5, 4), torch.randint(0, 3, (5,)))]
    before = explicit.state_of(model)
    with pytest.raises(ValueError) as error:
        sk.prune_(model, batches, 0.5, criterion=Grasp(temperature=2), loss_fn=loss_fn)
    assert str(error.value) == (
        "grasp: temperature needs a model that returns one tensor; take temperature=None (got tuple of float32[5, 3],"
        " NoneType)"
    )
    explicit.same_state(before, explicit.state_of(model))
    sk.plan(model, batches, 0.5, criterion="grasp", loss_fn=loss_fn)
