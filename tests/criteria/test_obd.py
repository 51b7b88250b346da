"""Optimal Brain Damage against matrices that are built from differences of gradients and outputs."""

import explicit
import pytest
import torch
import torch.nn.functional as F
from explicit import build, context, flat
from torch import nn

import snipkern as sk
from snipkern.criteria import Obd
from snipkern.criteria.curvature import signs
from snipkern.criteria.factors import Factors

NETS = list(explicit.NETS)


def close(found, expected, rtol=1e-7):
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


def rows_of(factors, rows):
    return torch.cat([torch.cat([part.flatten(1) for part in some.values()], 1) for some in rows])


# Gauss-Newton


@pytest.mark.parametrize("net", NETS)
def test_gauss_newton_diagonal_is_that_of_the_explicit_matrix(net):
    model, batches = build(net)
    expected = explicit.gauss_newton(model, batches).diagonal()
    on = context(model, batches)
    close(flat(Obd().diagonal(on)), expected)
    scores = Obd().scores(on)
    assert scores.formula == "obd"
    for name, (weight, _) in scores.pairs.items():
        assert torch.equal(weight, explicit.pooled(model)[name])
    close(flat({name: other for name, (_, other) in scores.pairs.items()}), expected)


@pytest.mark.parametrize("net", ["convolutional", "tied"])
def test_rows_one_by_one_and_few_at_a_time_are_the_same(net):
    model, batches = build(net)
    model.eval()
    weights = explicit.pooled(model)
    generator = torch.Generator()
    expected = explicit.gauss_newton(model, batches[:1])
    for memory, mapped in ((1, True), (5000, True), (1 << 30, True), (5000, False)):
        factors = Factors("obd", model, sk.scoring.gradients.default_loss, weights, memory)
        factors.mapped = mapped
        rows = rows_of(factors, factors.gauss_newton(batches[0], None, generator))
        assert factors.mapped is mapped
        assert rows.shape[0] == 5 * 2  # three classes are curved in two directions
        close(rows.T @ rows, expected)
        rows = rows_of(factors, factors.fisher(batches[0]))
        close(rows.T @ rows, explicit.fisher(model, batches[:1]), 1e-12)


def test_own_losses_and_batches():
    model, batches = build("convolutional")
    targets = [torch.randn(len(x), 3, dtype=torch.float64) for x, _ in batches]
    mappings = [{"x": x, "target": t, "name": "mean"} for (x, _), t in zip(batches, targets, strict=True)]

    def squared(model, batch):
        assert batch["name"] == "mean"
        return F.mse_loss(model(batch["x"]), batch["target"])

    expected = 0
    for x, _ in batches:
        j = explicit.jacobian(model, x)
        expected = expected + 2 / 3 * j.square().sum((0, 1)) / len(x) / len(batches)
    close(flat(Obd().diagonal(context(model, mappings, loss_fn=squared))), expected)


def test_sequences_of_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(3, 5, 3).double(), torch.randint(0, 2, (3, 5))
    y[0, 2] = y[2, 4] = -100  # left out

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    j = explicit.jacobian(model, x).unflatten(1, (5, 2)).flatten(0, 1)[(y != -100).flatten()]
    middle = explicit.softmax_curvature(model(x).flatten(0, 1))[(y != -100).flatten()]
    expected = torch.einsum("nci,ncd,ndi->i", j, middle, j) / 13
    close(flat(Obd().diagonal(context(model, [(x, y)], loss_fn=loss_fn))), expected)
    # Rows are drawn at each position: their mean comes near.
    drawn = flat(Obd(samples=4000).diagonal(context(model, [(x, y)], loss_fn=loss_fn)))
    close(drawn, expected, 0.05)
    classes_second = lambda model, batch: F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1])  # noqa: E731
    assert torch.equal(flat(Obd(samples=4000).diagonal(context(model, [(x, y)], loss_fn=classes_second))), drawn)


@pytest.mark.parametrize("net", ["convolutional", "recurrent"])
def test_drawn_rows_have_the_gauss_newton_matrix_as_their_mean(net):
    model, batches = build(net)
    expected = explicit.gauss_newton(model, batches)
    model.eval()
    factors = Factors("obd", model, sk.scoring.gradients.default_loss, explicit.pooled(model))
    draws = 30 if net == "recurrent" else 1000
    generator = torch.Generator().manual_seed(1)
    rows = torch.cat([rows_of(factors, factors.gauss_newton(batch, draws, generator)) for batch in batches])
    close(rows.T @ rows / 2, expected, 1.5 * draws**-0.5)


# Fisher


@pytest.mark.parametrize("net", ["perceptron", "recurrent", "attention"])
def test_fisher_diagonal(net):
    model, batches = build(net, samples=(4, 6))
    expected = explicit.fisher(model, batches).diagonal()
    close(flat(Obd(curvature="fisher").diagonal(context(model, batches))), expected, 1e-12)


# Hutchinson


@pytest.mark.parametrize("net", NETS)
def test_hutchinson_is_the_product_of_the_explicit_hessian(net):
    model, batches = build(net)
    generator = torch.Generator().manual_seed(7)
    expected = 0
    for batch in batches:
        h = explicit.hessian(model, [batch])
        for _ in range(3):
            named = explicit.pooled(model)
            z = flat(dict(zip(named, signs(list(named.values()), generator), strict=True)))
            assert set(z.tolist()) == {-1.0, 1.0}
            expected = expected + z * (h @ z) / 3 / 2
    close(flat(Obd(curvature="hutchinson", samples=3, seed=7).diagonal(context(model, batches))), expected)


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    curvature = torch.rand(3, 4).double()
    loss_fn = lambda model, batch: (curvature * model.weight**2).sum() + model(batch).sum()  # noqa: E731
    batches = [torch.randn(2, 4).double()]
    found = Obd(curvature="hutchinson", samples=1).diagonal(context(model, batches, loss_fn=loss_fn))
    torch.testing.assert_close(found["weight"], 2 * curvature)


def test_hutchinson_comes_near_the_diagonal():
    model, batches = build("perceptron")
    hessians = [explicit.hessian(model, [batch]) for batch in batches]
    found = flat(Obd(curvature="hutchinson", samples=200).diagonal(context(model, batches)))
    # One draw deviates by the other entries of the row.
    variance = sum(h.square().sum(1) - h.diagonal().square() for h in hessians) / 4 / 200
    assert (((sum(hessians) / 2).diagonal() - found).abs() < 5 * variance.sqrt()).all()


def test_a_loss_without_curvature_has_none():
    model = nn.Linear(4, 3).double()
    linear = lambda model, batch: model(batch).sum()  # noqa: E731
    on = context(model, [torch.randn(2, 4).double()], loss_fn=linear)
    assert not Obd(curvature="hutchinson").diagonal(on)["weight"].any()


# Pruning with it


@pytest.mark.parametrize("curvature", ["gauss-newton", "fisher", "hutchinson"])
def test_prune_keeps_the_largest(curvature):
    model, batches = build("convolutional", dtype=torch.float32)
    criterion = Obd(curvature=curvature)
    before = explicit.state_of(model)
    plan = sk.plan(model, batches, 0.25, criterion=criterion, batches=2)
    explicit.same_state(before, explicit.state_of(model))
    pairs = criterion.scores(context(model, batches)).pairs
    assert plan.masks == sk.select(pairs, 0.25, score="obd")
    if curvature == "gauss-newton":
        assert plan.masks == sk.plan(model, batches, 0.25, criterion="obd", batches=2).masks
        wide = explicit.gauss_newton(model.double(), [(x.double(), y) for x, y in batches]).diagonal()
        close(flat({name: other for name, (_, other) in pairs.items()}).double(), wide, 1e-4)


def test_a_failing_loss_leaves_the_model_alone():
    model, batches = build("recurrent")
    before = explicit.state_of(model)

    def loss_fn(model, batch):
        model(batch[0])
        raise KeyError("broken")

    for curvature in ("gauss-newton", "fisher", "hutchinson"):
        with pytest.raises(KeyError, match="broken"):
            sk.prune_(model, batches, 0.5, criterion=Obd(curvature=curvature), loss_fn=loss_fn)
        explicit.same_state(before, explicit.state_of(model))


# Errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"curvature": "newton"}, "obd: curvature must be one of gauss-newton, fisher, hutchinson (got 'newton')"),
        ({"samples": 0}, "obd: samples must be None or a positive integer (got 0)"),
        ({"samples": True}, "obd: samples must be None or a positive integer (got True)"),
        ({"curvature": "fisher", "samples": 2}, "obd: samples must be None for curvature='fisher', which draws nothing (got 2)"),
    ],
)  # fmt: skip
def test_wrong_options(options, text):
    with pytest.raises(ValueError) as error:
        Obd(**options)
    assert str(error.value) == text


def message(model, batches, criterion, loss_fn=None):
    before = explicit.state_of(model)
    with pytest.raises(ValueError) as error:
        sk.prune_(model, batches, 0.5, criterion=criterion, loss_fn=loss_fn)
    explicit.same_state(before, explicit.state_of(model))
    return str(error.value)


def test_what_gauss_newton_can_not_do_is_said():
    model, batches = build("perceptron")
    twice = lambda model, batch: F.cross_entropy(model(batch[0]) + model(batch[0]), batch[1])  # noqa: E731
    assert message(model, batches, "obd", twice) == (
        "obd: curvature='gauss-newton' needs a loss_fn that calls the model once for one tensor of outputs, the samples"
        " along its first dimension; else take 'hutchinson' or 'fisher' (got 2 calls)"
    )
    linear = lambda model, batch: model(batch[0]).mean()  # noqa: E731
    assert message(model, batches, "obd", linear) == (
        "obd: curvature='gauss-newton' needs a loss that is made of the model's outputs, and curved in them; else take"
        " 'hutchinson' or 'fisher' (got a loss of float64[5, 3] that is not)"
    )
    concave = lambda model, batch: -model(batch[0]).square().mean()  # noqa: E731
    assert message(model, batches, "obd", concave).startswith(
        "obd: curvature='gauss-newton' needs a loss that is convex in the model's outputs; else take 'hutchinson' or"
        " 'fisher' (got curvatures from -"
    )
    assert message(model, batches, Obd(samples=3), concave) == (
        "obd: samples of curvature='gauss-newton' are for mean cross entropy of (inputs, integer labels) alone; take"
        " samples=None, or curvature='hutchinson' or 'fisher' (got another loss, or tuple of float64[5, 5], int64[5])"
    )
    smooth = lambda model, batch: F.cross_entropy(model(batch[0]) / 2, batch[1])  # noqa: E731
    assert message(model, batches, Obd(samples=3), smooth).startswith("obd: samples of")
    wide = nn.Linear(5, 200).double()
    assert message(wide, batches, "obd") == (
        "obd: curvature='gauss-newton' is exact for at most 128 outputs of a sample; pass samples=... to draw, or"
        " curvature='hutchinson' or 'fisher' (got 200 outputs)"
    )
    sk.plan(wide, batches, 0.5, criterion=Obd(samples=2))


def test_batches_that_can_not_be_cut():
    model, batches = build("perceptron")
    x, y = batches[0]
    loss_fn = lambda model, batch: F.cross_entropy(model(batch[0][: len(batch[1])]), batch[1])  # noqa: E731
    text = (
        "obd: the tensors of a batch must hold its samples along their first dimension (got tuple of float64[5, 5],"
        " int64[4]); curvature='hutchinson' and other criteria take any batch"
    )
    assert message(model, [(x, y[:4])], "obd", loss_fn) == text
    assert message(model, [(x, y[:4])], Obd(curvature="fisher"), loss_fn) == text
    packed = nn.utils.rnn.pack_sequence([torch.randn(1, 2), torch.randn(1, 2)])
    recurrent, _ = build("recurrent", dtype=torch.float32)
    loss_fn = lambda model, batch: model.last(model.layer(batch)[0].data).square().sum()  # noqa: E731
    assert message(recurrent, [packed], Obd(curvature="fisher"), loss_fn).startswith("obd: the tensors of a batch")
    sk.plan(recurrent, [packed], 0.5, criterion=Obd(curvature="hutchinson"), loss_fn=loss_fn)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g.clone()


def test_losses_without_second_derivatives_and_reentrant_checkpoints():
    model, batches = build("perceptron")
    once = lambda model, batch: F.cross_entropy(Once.apply(model(batch[0])), batch[1])  # noqa: E731
    assert message(model, batches, Obd(curvature="hutchinson"), once) == (
        "obd: the loss must be twice differentiable (got a function that is so once)"
    )

    def recomputing(model, batch):
        x = batch[0].clone().requires_grad_()
        return F.cross_entropy(torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True), batch[1])

    for curvature in ("gauss-newton", "fisher", "hutchinson"):
        assert message(model, batches, Obd(curvature=curvature), recomputing) == (
            "obd: curvature can't be seen through reentrant checkpoints; checkpoint with use_reentrant=False (got a loss"
            " that lies on some)"
        )
