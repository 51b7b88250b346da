"""What criteria look at: gradients anywhere, batches, evaluation, the selection as asked for; all put back."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from naive import NETS, data_for, gradients_of, top_of_all
from test_prune_errors import assert_untouched, snapshot

import snipkern as sk
from snipkern.criteria import Criterion, Scores

pytestmark = pytest.mark.usefixtures("one_thread")


class Probe(Criterion):
    """Calls a function with the context, and then scores by magnitude."""

    name = "probe"

    def __init__(self, look):
        self.look = look

    def scores(self, on):
        self.look(on)
        return Scores({n: (w, w) for n, w in on.weights().items()}, "magnitude")


def probe(name, generator, look, **options):
    model = NETS[name]()
    data = data_for(name, generator, batches=2)
    before = snapshot(model)
    plan = sk.plan(model, data, keep=0.2, criterion=Probe(lambda on: look(on, model, data)), batches=2, **options)
    assert_untouched(model, before)
    return plan


@pytest.mark.parametrize("name", NETS)
def test_gradients_at_other_weights(name, generator):
    def look(on, model, data):
        half = {n: w / 2 for n, w in on.weights().items()}
        twin = copy.deepcopy(model)
        for n, w in half.items():
            twin.get_parameter(n).data = w
        for got, want in (
            (on.gradients(), gradients_of(copy.deepcopy(model), data)),
            (on.gradients(half), gradients_of(twin, data)),
        ):
            assert list(got) == list(on.weights())
            for n in got:
                torch.testing.assert_close(got[n], want[n], rtol=1e-4, atol=1e-7)
        assert on.kept == round(0.2 * sum(w.numel() for w in on.weights().values()))

    probe(name, generator, look)


def test_evaluating_at_other_weights_is_put_back_even_after_errors(generator):
    def look(on, model, data):
        zero = {"0.weight": torch.zeros(8, 3, 3, 3), "7.bias": torch.ones(5, dtype=torch.float64)}
        with on.evaluating(zero):
            assert torch.is_grad_enabled() and not model.training and not model[0].weight.any()
            assert (model[7].bias == 1).all() and model[7].bias.dtype == torch.float32
            assert [torch.equal(x, y) for (x, _), (y, _) in zip(on.given(), data, strict=True)] == [True, True]
            on.loss_fn(model, data[0]).backward()
        assert model.training and model[0].weight.any() and model[0].weight.grad is None
        with pytest.raises(RuntimeError, match="stop"), on.evaluating(zero):
            raise RuntimeError("stop")
        assert model[0].weight.any()
        for wrong in ({"9.weight": torch.ones(1)}, {"0.weight": torch.ones(8)}):
            with pytest.raises(ValueError, match="score: weights to score at must be"), on.evaluating(wrong):
                raise AssertionError

    probe("cnn", generator, look)


def test_rounds_choose_as_the_plan_does(generator):
    def look(on, model, data):
        gradients = on.gradients()
        pairs = {n: (w, gradients[n]) for n, w in on.weights().items()}
        found.append((on.choose(Scores(pairs, "signed"), 200), {n: w * g for n, (w, g) in pairs.items()}))

    found = []
    probe("mlp", generator, look)
    probe("mlp", generator, look, scope="erk", balance=True)
    masks, scores = found[0]
    want = top_of_all(scores, 200)
    assert all(torch.equal(mask.to_dense(), want[n]) for n, mask in masks.items())
    assert sum(mask.count() for mask in found[1][0].values()) == 200 and found[1][0] != masks


def test_one_loss_call_is_watched(generator):
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        return F.cross_entropy(model(batch[0]), batch[1])

    probe("cnn", generator, lambda on, *_: on.gradients(), loss_fn=loss_fn, cascade=True)
    assert len(calls) == 2  # not once more to see what feeds what
    plan = probe("cnn", generator, lambda *_: None, loss_fn=loss_fn, cascade=True)
    assert len(calls) == 3 and all(layer.flow.traced for layer in plan.layers)


def stream(batches):
    """Batches that come once, and random numbers drawn for each of them."""
    for x, y in batches:
        torch.randn(3)
        yield x, y


@pytest.mark.parametrize("criterion", sk.criteria.CRITERIA)
def test_a_stream_is_read_once_and_no_further_than_needed(criterion, generator):
    model, data = NETS["mlp"](), data_for("mlp", generator, batches=3)
    batches = {"synflow": 1, "magnitude": 1, "random": 1}.get(criterion, 2)
    torch.manual_seed(3)
    want = sk.plan(model, data, keep=0.2, criterion=criterion, batches=2).masks
    source = stream(data)
    torch.manual_seed(3)
    before = snapshot(model)
    found = sk.plan(model, source, keep=0.2, criterion=criterion, batches=2).masks
    assert found == want
    if criterion not in ("random", "snip-shuffled"):  # which draw a seed
        assert_untouched(model, before)
    assert torch.equal(next(source)[0], data[batches][0])


def test_a_criterion_may_look_at_a_stream_as_often_as_it_likes(generator):
    model, data = NETS["mlp"](), data_for("mlp", generator, batches=2)

    def look(on):
        want = gradients_of(copy.deepcopy(model), data)
        for _ in range(2):
            for name, gradient in on.gradients().items():
                torch.testing.assert_close(gradient, want[name], rtol=1e-4, atol=1e-7)
        pairs = [(a, b) for a, b in zip(on.given(), on.given(), strict=True)]  # both at once
        assert len(pairs) == 2 and all(a is b for a, b in pairs)
        with pytest.raises(ValueError, match=r"must yield at least 3 batches \(got 2\)"):
            on.batches = 3
            list(on.given())
        on.batches = 2

    sk.plan(model, stream(data), keep=0.2, criterion=Probe(look), batches=2)
