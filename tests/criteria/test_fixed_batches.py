"""Models that take batches of one size alone: the same scores as where one sample will do, or an error that says so."""

from __future__ import annotations

import warnings

import explicit
import pytest
import torch
import torch.nn.functional as F
from explicit import build, context
from torch import nn

import snipkern as sk
from snipkern.criteria import CRITERIA, Obd, Obs, SynFlow
from snipkern.criteria.factors import Factors
from snipkern.scoring.gradients import default_loss

pytestmark = pytest.mark.usefixtures("one_thread")


class Fixed(nn.Module):
    """A model of three outputs that takes batches of one size."""

    def __init__(self, model, samples, how="view"):
        super().__init__()
        self.model, self.samples, self.how = model, samples, how
        self.register_buffer("zeros", torch.zeros(samples, 1))

    def forward(self, x):
        if self.how == "index":
            x[self.samples - 1]  # raises IndexError
        y = self.model(x)
        if self.how == "view":
            return y.view(self.samples, 3)
        return y + self.zeros.to(y) if self.how == "buffer" else y


def renamed(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("how", ["view", "index", "buffer"])
@pytest.mark.parametrize("net", explicit.NETS)
def test_rows_are_those_of_single_samples(net, how):
    model, batches = build(net, samples=(5, 5))
    fixed = Fixed(model, 5, how)
    for criterion in (Obd(), Obd(curvature="fisher"), Obd(samples=3)):
        want = criterion.diagonal(context(model, batches))
        got = renamed(criterion.diagonal(context(fixed, batches)))
        for name, diagonal in want.items():
            torch.testing.assert_close(got[name], diagonal, rtol=1e-9, atol=1e-12)
    want = Obs(block=7).scores(context(model, batches)).pairs
    got = renamed(Obs(block=7).scores(context(fixed, batches)).pairs)
    for name, (_, stiffness) in want.items():
        torch.testing.assert_close(got[name][1], stiffness, rtol=1e-8, atol=1e-12)


def test_few_rows_of_whole_batches_at_a_time():
    model, batches = build("perceptron")
    for make in (lambda f: f.fisher(batches[0]), lambda f: f.gauss_newton(batches[0], None, torch.Generator())):
        found = []
        for memory in (1, 600, 1 << 30):
            fixed = Fixed(model, 5).eval()
            factors = Factors("obd", fixed, default_loss, explicit.pooled(fixed), memory)
            parts = list(make(factors))
            found.append(torch.cat([flat_rows(some) for some in parts]))
            found[-1] = found[-1].T @ found[-1]
        assert len(parts) == 1
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-14)


def flat_rows(some):
    return torch.cat([part.flatten(1) for part in some.values()], 1)


def regularised(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1]) + model.model[0].weight.square().sum()


def in_two_calls(model, batch):
    return F.cross_entropy(model(batch[0]) + model(batch[0]), batch[1])


@pytest.mark.parametrize("loss_fn", [regularised, in_two_calls])
@pytest.mark.parametrize(("criterion", "name"), [(Obd(curvature="fisher"), "obd"), (Obs(curvature="fisher"), "obs")])
def test_what_can_not_be_cut_is_said(criterion, name, loss_fn):
    model, batches = build("perceptron", samples=(5,))
    fixed = Fixed(model, 5)
    before = explicit.state_of(fixed)
    with pytest.raises(ValueError) as error:
        sk.prune_(fixed, batches, 0.5, criterion=criterion, loss_fn=loss_fn)
    explicit.same_state(before, explicit.state_of(fixed))
    assert str(error.value) == (
        f"{name}: model and loss_fn must accept batches of one sample for curvature='fisher', where the loss is not made"
        " of one tensor that one call of the model returns (got RuntimeError: shape '[5, 3]' is invalid for input of"
        " size 3)"
    )
    assert isinstance(error.value.__cause__, RuntimeError)
    # A model that does take one sample keeps the whole loss of each.
    sk.plan(Fixed(model, 5, "none"), batches, 0.5, criterion=criterion, loss_fn=in_two_calls)


@pytest.mark.parametrize("how", ["view", "index", "buffer"])
def test_synflow_takes_ones_of_the_batchs_shape(how):
    model, batches = build("convolutional")
    want = sk.score(model, None, criterion=SynFlow(rounds=4, input_shape=(2, 4, 4)), keep=0.2)
    got = renamed(sk.score(Fixed(model, 5, how), batches, criterion=SynFlow(rounds=4), keep=0.2))
    for name, scores in want.items():
        torch.testing.assert_close(got[name], scores, rtol=1e-5, atol=0)


@pytest.mark.parametrize("how", ["view", "index"])
def test_synflow_says_what_the_model_does_not_take(how):
    model, batches = build("convolutional")
    fixed = Fixed(model, 5, how)
    before = explicit.state_of(fixed)
    for loader in (None, batches):
        with pytest.raises(ValueError, match="synflow: the model must accept ones in float64") as error:
            sk.prune_(fixed, loader, 0.5, criterion=SynFlow(input_shape=(2, 4, 4)))
        assert " for float64[1, 2, 4, 4]: " in str(error.value)
        assert isinstance(error.value.__cause__, RuntimeError if how == "view" else IndexError)
    explicit.same_state(before, explicit.state_of(fixed))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_takes_a_fixed_batch(criterion):
    """And what the report sees of paths, which goes by the whole batch as well."""
    model, batches = build("perceptron", samples=(5,), dtype=torch.float32)
    fixed = Fixed(model, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", sk.CollapseWarning)
        plan = sk.plan(fixed, batches, 0.6, criterion=criterion)
    assert plan.kept == round(0.6 * 32)
    assert len(plan.layers) == 2 and all(layer.flow.traced for layer in plan.layers)
