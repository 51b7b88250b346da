"""Leave one out against brute force."""

import explicit
import pytest
import torch
from explicit import build, context, flat
from torch import nn

import snipkern as sk
from snipkern.criteria import LeaveOneOut, leave_one_out
from snipkern.scoring.gradients import default_loss


def by_brute_force(model, batches, loss_fn=default_loss):
    """L(w) - L(w without j), one weight after the other."""

    def loss():
        return sum(float(loss_fn(model, batch)) for batch in batches) / len(batches)

    weights = flat(explicit.pooled(model))
    with explicit.evaluated(model), torch.no_grad():
        whole, differences = loss(), []
        for j, weight in enumerate(weights):
            with explicit.moved(model, j, -weight):
                differences.append(whole - loss())
    return torch.tensor(differences, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("net", explicit.NETS)
def test_differences_are_those_of_brute_force(net):
    model, batches = build(net)
    expected = by_brute_force(model, batches)
    before = explicit.state_of(model)
    on = context(model, batches)
    close(flat(LeaveOneOut().differences(on)), expected)
    explicit.same_state(before, explicit.state_of(model))
    scores = LeaveOneOut().scores(on)
    assert scores.formula == "snip"
    close(flat({name: (a * b).abs() for name, (a, b) in scores.pairs.items()}), expected.abs())


@pytest.mark.parametrize("net", ["convolutional", "recurrent", "attention"])
def test_models_of_float32_are_evaluated_in_float64(net):
    model, batches = build(net, dtype=torch.float32)
    on = context(model, batches)
    found, rounded = LeaveOneOut().differences(on), LeaveOneOut(dtype=None).differences(on)
    expected = by_brute_force(model.double(), [(x.double(), y) for x, y in batches])
    close(flat(found), expected)
    assert all(part.dtype == torch.float32 for part in rounded.values())
    torch.testing.assert_close(flat(rounded).double(), expected, rtol=0, atol=3e-6)


def test_few_at_a_time(monkeypatch):
    model, batches = build("convolutional")
    expected = flat(LeaveOneOut().differences(context(model, batches)))
    before = explicit.state_of(model)
    for memory in (1, 30_000):
        monkeypatch.setattr(leave_one_out, "MEMORY", memory)
        close(flat(LeaveOneOut().differences(context(model, batches))), expected)
        explicit.same_state(before, explicit.state_of(model))


def test_losses_that_can_not_be_mapped():
    model, batches = build("perceptron")

    def looking(model, batch):
        loss = default_loss(model, batch)
        assert loss.item() > 0
        return loss

    found = flat(LeaveOneOut().differences(context(model, batches, loss_fn=looking)))
    close(found, by_brute_force(model, batches))


def test_zeros_make_no_difference_and_count_nothing():
    model, batches = build("perceptron")
    with torch.no_grad():
        model[0].weight[1:] = 0.0
    found = LeaveOneOut(limit=5 + 12).differences(context(model, batches))
    assert not found["0.weight"][1:].any()
    close(flat(found), by_brute_force(model, batches))


def test_the_limit():
    model, batches = build("perceptron")
    with pytest.raises(ValueError) as error:
        sk.prune_(model, batches, 0.5, criterion=LeaveOneOut(limit=31))
    assert str(error.value) == (
        "leave-one-out: the loss is computed anew without each weight; pass LeaveOneOut(limit=...) to do it for so many"
        " (got 32 weights, limit=31)"
    )
    large = nn.Linear(1001, 1000)
    with pytest.raises(ValueError, match=r"\(got 1,001,000 weights, limit=1,000,000\)"):
        sk.prune_(large, [(torch.randn(2, 1001), torch.tensor([0, 1]))], 0.5, criterion="leave-one-out")


def test_models_that_can_not_change_their_dtype():
    class Fixed(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    model, batches = Fixed(4, 3), [(torch.randn(5, 4), torch.randint(0, 3, (5,)))]
    before = explicit.state_of(model)
    with pytest.raises(ValueError) as error:
        sk.prune_(model, batches, 0.5, criterion="leave-one-out")
    assert str(error.value).startswith(
        "leave-one-out: model and loss must run in float64; else pass LeaveOneOut(dtype=None) (got RuntimeError: "
    )
    explicit.same_state(before, explicit.state_of(model))
    sk.plan(model, batches, 0.5, criterion=LeaveOneOut(dtype=None))


def test_pruning_with_it_keeps_what_matters_most():
    model, batches = build("tied", dtype=torch.float32)
    masks = sk.plan(model, batches, 7, criterion="leave-one-out", batches=2).masks
    kept = flat({name: mask.to_dense() for name, mask in masks.items()})
    model, batches = model.double(), [(x.double(), y) for x, y in batches]
    scores = by_brute_force(model, batches).abs()
    assert kept.nonzero().flatten().tolist() == sorted(scores.topk(7).indices.tolist())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": torch.int32}, "leave-one-out: dtype must be a floating dtype or None (got torch.int32)"),
        ({"dtype": "float64"}, "leave-one-out: dtype must be a floating dtype or None (got 'float64')"),
        ({"limit": 0}, "leave-one-out: limit must be a positive integer (got 0)"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError) as error:
        LeaveOneOut(**options)
    assert str(error.value) == text
