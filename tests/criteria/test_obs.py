"""Optimal Brain Surgeon against explicit inverses, and against constrained minima of quadratics."""

import explicit
import pytest
import torch
from explicit import build, context, flat
from torch import nn

import snipkern as sk
from snipkern import Mask
from snipkern.criteria import Obs
from snipkern.criteria.obs import Blocks


def close(found, expected, rtol=1e-7):
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


def blocks_of(matrix, parameters, size, damping):
    """The explicit matrix without what lies between blocks, damped, and a list of the blocks' places."""
    found, places, start = torch.zeros_like(matrix), [], 0
    for parameter in parameters.values():
        end = start + parameter.numel()
        added = damping * matrix.diagonal()[start:end].mean()
        for first in range(start, end, size):
            here = slice(first, min(first + size, end))
            found[here, here] = matrix[here, here]
            found[here, here].diagonal().add_(added)
            places.append(here)
        start = end
    return found, places


MATRICES = {"gauss-newton": explicit.gauss_newton, "fisher": explicit.fisher}


@pytest.mark.parametrize("curvature", MATRICES)
@pytest.mark.parametrize("net", ["perceptron", "convolutional", "tied", "recurrent"])
def test_scores_are_those_of_the_explicit_inverse(net, curvature):
    model, batches = build(net)
    matrix = MATRICES[curvature](model, batches)
    for size in (1, 3, 7, 10**6):
        criterion = Obs(block=size, curvature=curvature, damping=0.05)
        scores = criterion.scores(context(model, batches))
        assert scores.formula == "obd"
        damped, _ = blocks_of(matrix, explicit.pooled(model), size, 0.05)
        close(flat({name: other for name, (_, other) in scores.pairs.items()}), 1 / torch.inverse(damped).diagonal())
        for name, (weight, _) in scores.pairs.items():
            assert torch.equal(weight, explicit.pooled(model)[name])


@pytest.mark.parametrize("net", ["convolutional", "tied"])
def test_the_update_is_the_papers_for_each_block(net, generator):
    model, batches = build(net)
    parameters = explicit.pooled(model)
    matrix = explicit.gauss_newton(model, batches)
    for size in (1, 3, 7, 10**6):
        update = Obs(block=size, damping=0.05).scores(context(model, batches)).update
        for share in (0.0, 0.4, 1.0):
            kept = {name: torch.rand(p.shape, generator=generator) >= share for name, p in parameters.items()}
            found = update({name: Mask.from_dense(mask) for name, mask in kept.items()})
            assert list(found) == list(parameters)
            damped, places = blocks_of(matrix, parameters, size, 0.05)
            w, k = flat(parameters), flat(kept)
            expected = w.clone()
            for here in places:
                inverse, q = torch.inverse(damped[here, here]), ~k[here]
                if q.any():
                    lagrange = torch.linalg.solve(inverse[q][:, q], w[here][q])
                    expected[here] -= inverse[:, q] @ lagrange
            assert not flat(found)[~k].any()
            torch.testing.assert_close(flat(found), expected, rtol=0, atol=1e-8)
            if share == 0.0:
                assert torch.equal(flat(found), w)


def least_squares(dtype=torch.float64):
    """A linear layer at the minimum of its squared loss, whose curvature is known."""
    torch.manual_seed(0)
    x = torch.randn(60, 8).double() @ torch.randn(8, 8).double()
    y = torch.randn(60, 3).double()
    model = nn.Linear(8, 3, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1).mean()  # noqa: E731
    return model, [(x.to(dtype), y.to(dtype))], loss_fn


def test_on_a_quadratic_what_is_left_is_the_constrained_minimum():
    model, batches, loss_fn = least_squares()
    (x, y) = batches[0]
    criterion = Obs(block=10**6, damping=1e-12)
    pruned = sk.prune_(model, batches, 0.5, criterion=criterion, loss_fn=loss_fn)
    kept = pruned.masks["weight"].to_dense()
    assert kept.sum() == 12
    expected = torch.zeros(3, 8).double()
    for row, mask in enumerate(kept):
        expected[row, mask] = torch.linalg.lstsq(x[:, mask], y[:, row : row + 1]).solution[:, 0]
    close(model.weight.detach(), expected)
    assert float(loss_fn(model, (x, y)).detach()) == pytest.approx(float((x @ expected.T - y).square().sum(1).mean()))


def test_on_a_quadratic_the_score_is_what_the_loss_rises_by():
    model, batches, loss_fn = least_squares()
    (x, y) = batches[0]
    scores = Obs(block=10**6, damping=1e-12).scores(context(model, batches, loss_fn=loss_fn))
    weight, stiffness = scores.pairs["weight"]
    least = float(loss_fn(model, (x, y)).detach())
    for row in range(3):
        for column in range(8):
            left = [c for c in range(8) if c != column]
            solution = torch.linalg.lstsq(x[:, left], y[:, row : row + 1]).solution
            without = float((x[:, left] @ solution - y[:, row : row + 1]).square().mean())
            with_it = float((x @ weight[row] - y[:, row]).square().mean())
            saliency = float(weight[row, column] ** 2 * stiffness[row, column] / 2)
            assert saliency == pytest.approx(without - with_it, rel=1e-6, abs=1e-9 * least)


def test_without_update_weights_stay():
    model, batches, loss_fn = least_squares(torch.float32)
    before = model.weight.detach().clone()
    criterion = Obs(block=4, update=False)
    assert criterion.scores(context(model, batches, loss_fn=loss_fn)).update is None
    pruned = sk.prune_(model, batches, 0.5, criterion=criterion, loss_fn=loss_fn)
    assert torch.equal(model.weight, before * pruned.masks["weight"].to_dense())


@pytest.mark.parametrize("engine", ["csr", "masked"])
def test_pruning_a_trained_net_of_float32(engine):
    model, batches = build("convolutional", samples=(40, 40), dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.eval()
    for _ in range(60):
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(model(x), y) for x, y in batches).backward()
        optimizer.step()
    before = explicit.state_of(model)
    plan = sk.plan(model, batches, 0.5, criterion="obs", batches=2, engine=engine)
    explicit.same_state(before, explicit.state_of(model))
    scores = Obs().scores(context(model, batches))
    assert plan.masks == sk.select(scores.pairs, 0.5, score="obd")
    expected = scores.update(plan.masks)

    def loss():
        return sum(float(nn.functional.cross_entropy(model(x), y).detach()) for x, y in batches)

    with torch.no_grad():
        weights = {name: parameter.clone() for name, parameter in explicit.pooled(model).items()}
        for name, parameter in explicit.pooled(model).items():
            parameter.mul_(plan.masks[name].to_dense())
        cut = loss()
        for name, parameter in explicit.pooled(model).items():
            parameter.copy_(weights[name])
    plan.apply_()
    for name, weight in sk.dense_state_dict(model).items():
        if name in expected:
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    assert loss() < cut  # the same mask, but the others have made up for what is gone


def test_weights_without_curvature_go_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias[1] = -100.0  # a unit that never fires
    x, y = torch.randn(20, 4), torch.randint(0, 2, (20,))
    plan = sk.plan(model, [(x, y)], 12, criterion=Obs(block=3, damping=1e-6))
    assert not plan.masks["0.weight"].to_dense()[1].any()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # none does
    masks = sk.plan(model, [(x, y)], 12, criterion=Obs(block=4)).masks
    assert sum(mask.count() for mask in masks.values()) == 12


def test_blocks_are_as_large_as_said():
    blocks = Blocks(torch.zeros(5, 7), 10, 0.1)
    assert blocks.sums.shape == (4, 10, 10)
    assert blocks.bytes == 4 * 10 * 10 * 4
    assert Blocks(torch.zeros(5, 7, dtype=torch.float64), 100, 0.1).bytes == 35 * 35 * 8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"curvature": "hutchinson"}, "obs: curvature must be one of gauss-newton, fisher (got 'hutchinson')"),
        ({"samples": 1.5}, "obs: samples must be None or a positive integer (got 1.5)"),
        ({"block": 0}, "obs: block must be a positive integer (got 0)"),
        ({"memory": "all"}, "obs: memory must be a positive integer (got 'all')"),
        ({"damping": 0.0}, "obs: damping must be a positive number (got 0.0)"),
        ({"damping": float("nan")}, "obs: damping must be a positive number (got nan)"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError) as error:
        Obs(**options)
    assert str(error.value) == text


def test_blocks_that_do_not_fit_are_said_before_anything():
    model, _ = build("perceptron")
    with pytest.raises(ValueError) as error:
        sk.prune_(model, [], 0.5, criterion=Obs(memory=1000))
    assert str(error.value) == (
        "obs: blocks must fit into memory=1,000 bytes; take smaller ones, or filter_fn to prune less (got 4,352 bytes for"
        " block=50)"
    )


def test_a_block_that_can_not_be_factored_is_said():
    model, batches, loss_fn = least_squares(torch.float32)
    x = batches[0][0][:, :1] * torch.randn(8)  # of rank one, but for rounding
    with pytest.raises(
        ValueError, match=r"obs: curvature must be positive definite; take a larger damping \(got a block"
    ):
        sk.prune_(model, [(x, batches[0][1])], 0.5, criterion=Obs(damping=1e-12), loss_fn=loss_fn)
