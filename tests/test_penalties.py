"""Penalties against closed forms, and what proximal steps converge to."""

import copy
import math

import pytest
import torch
from torch import nn

import snipkern as sk
from snipkern import penalties
from snipkern.penalties import L1, GroupLasso


@pytest.fixture
def net() -> nn.Sequential:
    """Every kind of layer whose inputs and outputs lie in the weight in a way of their own, in float64."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 8, 3, groups=2, padding=1),
        nn.ConvTranspose2d(8, 4, (2, 3), groups=2),
        nn.Flatten(),
        nn.Linear(4 * 7 * 8, 5),
    ).double()


def groups_by_loops(net, by):
    """Each group of each weight as a list of index tuples, written out."""
    for name, module in net.named_children():
        if isinstance(module, (nn.BatchNorm2d, nn.Flatten)):
            continue
        shape = module.weight.shape
        found = {}
        for index in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
            if isinstance(module, nn.ConvTranspose2d):
                group = index[0] // (shape[0] // module.groups)
                output, source = (group, index[1]), index[0]
            else:
                group = index[0] // (shape[0] // module.groups) if isinstance(module, nn.Conv2d) else 0
                output, source = index[0], (group, index[1])
            if isinstance(by, tuple):
                column = 0
                for at, size in zip(index[1:], shape[1:], strict=True):
                    column = column * size + at
                key = (index[0] // by[0], column // by[1])
            else:
                key = output if by == "outputs" else source
            found.setdefault(key, []).append(tuple(index))
        yield f"{name}.weight", list(found.values())


def norm_of(weight, group):
    return math.sqrt(sum(float(weight[index]) ** 2 for index in group))


def test_l1_is_the_sum_of_absolute_values_of_the_pool(net):
    expected = sum(float(m.weight.detach().abs().sum()) for m in net if not isinstance(m, (nn.BatchNorm2d, nn.Flatten)))
    found = L1(0.3)(net)
    assert found.dtype == torch.float64
    torch.testing.assert_close(float(found.detach()), 0.3 * expected, rtol=1e-12, atol=0)
    found.backward()
    torch.testing.assert_close(net[0].weight.grad, 0.3 * net[0].weight.detach().sign())
    assert net[0].bias.grad is None and net[1].weight.grad is None


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
@pytest.mark.parametrize("by", ["outputs", "inputs", (1, 1), (4, 5), (100, 100)], ids=str)
def test_group_lasso_and_its_proximal_step_match_loops(net, by, sized):
    penalty = GroupLasso(0.2, by=by, sized=sized)
    parameters = dict(net.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    total, expected = 0.0, {name: w.clone() for name, w in before.items()}
    step = 0.8
    for name, groups in groups_by_loops(net, by):
        for group in groups:
            norm, size = norm_of(before[name], group), math.sqrt(len(group)) if sized else 1.0
            total += 0.2 * size * norm
            for index in group:
                expected[name][index] *= max(1 - step * 0.2 * size / norm, 0.0)
    value = penalty(net)
    torch.testing.assert_close(float(value.detach()), total, rtol=1e-12, atol=0)
    penalty.shrink_(net, step)
    for name, p in parameters.items():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-15)
        assert torch.equal(p.detach() == 0, expected[name] == 0)


@pytest.mark.parametrize("by", ["outputs", "inputs", (3, 4)], ids=str)
def test_gradients_are_right_and_zero_groups_have_the_subgradient_zero(by):
    layer = nn.Linear(9, 7).double()
    names = [name for name, _ in layer.named_parameters()]

    def value(weight):
        probe = copy.deepcopy(layer)
        del probe._parameters["weight"]
        probe._parameters["weight"] = weight
        return GroupLasso(0.7, by=by)(probe)

    assert names == ["weight", "bias"]
    assert torch.autograd.gradcheck(value, (layer.weight.detach().clone().requires_grad_(),))
    with torch.no_grad():
        layer.weight.zero_()
    GroupLasso(0.7, by=by)(layer).backward()
    assert torch.equal(layer.weight.grad, torch.zeros(7, 9, dtype=torch.float64))


def test_the_proximal_step_minimises_what_it_is_the_minimiser_of():
    """prox(v) = argmin |w - v|^2 / 2 + step * penalty(w): no point nearby is better."""
    layer = nn.Linear(6, 5).double()
    for penalty in (L1(0.2), GroupLasso(0.1), GroupLasso(0.1, by="inputs"), GroupLasso(0.05, by=(2, 4))):
        nn.init.normal_(layer.weight)
        start = layer.weight.detach().clone()

        def objective(penalty=penalty, start=start):
            with torch.no_grad():
                return float((layer.weight - start).square().sum() / 2 + 1.5 * penalty(layer))

        penalty.shrink_(layer, 1.5)
        best, at = objective(), layer.weight.detach().clone()
        for _ in range(50):
            with torch.no_grad():
                layer.weight.copy_(at + 1e-3 * torch.randn(5, 6, dtype=torch.float64))
            assert objective() > best


def least_squares(steps, penalty, optimizer_of, orthonormal=False):
    """A linear layer trained on 0.5 |x w - y|^2, with the penalty attached; x, y and the weights after training."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    if orthonormal:
        x = torch.linalg.qr(x).Q
    truth = torch.tensor([[2.0, 0, 0, -1.5, 0, 0, 0.7, 0], [0, 0, 0, 1.0, 0, 0, -2.0, 0]], dtype=torch.float64)
    y = x @ truth.t() + 0.1 * torch.randn(40, 2, generator=generator, dtype=torch.float64)
    layer = nn.Linear(8, 2, bias=False).double()
    optimizer = optimizer_of(layer.parameters())
    handle = penalty.attach_(optimizer, layer)
    for _ in range(steps):
        optimizer.zero_grad()
        ((layer(x) - y).square().sum() / 2).backward()
        optimizer.step()
    handle.remove()
    return x, y, layer.weight.detach()


def test_ista_finds_the_lasso_solution_of_an_orthonormal_design():
    x, y, w = least_squares(200, L1(0.4), lambda p: torch.optim.SGD(p, lr=0.5), orthonormal=True)
    ols = y.t() @ x
    torch.testing.assert_close(w, ols.sign() * (ols.abs() - 0.4).clamp(min=0), rtol=0, atol=1e-12)
    assert 0 < int((w == 0).sum()) < w.numel()


def test_ista_meets_the_optimality_conditions_of_the_lasso():
    x, y, w = least_squares(3000, L1(2.0), lambda p: torch.optim.SGD(p, lr=0.01))
    slope = (w @ x.t() - y.t()) @ x
    kept = w != 0
    torch.testing.assert_close(slope[kept], -2.0 * w[kept].sign(), rtol=0, atol=1e-9)
    assert bool((slope[~kept].abs() <= 2.0).all()) and 4 <= int(kept.sum()) < 12


def test_group_steps_find_the_group_lasso_of_an_orthonormal_design():
    x, y, w = least_squares(200, GroupLasso(0.5, by="inputs"), lambda p: torch.optim.SGD(p, lr=0.5), orthonormal=True)
    ols = y.t() @ x
    scale = (1 - 0.5 * math.sqrt(2) / ols.norm(dim=0)).clamp(min=0)
    torch.testing.assert_close(w, ols * scale, rtol=0, atol=1e-12)
    assert 0 < int((w.abs().sum(0) == 0).sum()) < 8


def test_l1_then_groups_is_the_sparse_group_lasso():
    """Optimality of 0.5 |xw - y|^2 + a |w|_1 + b sum of group norms, each attached by itself."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    layer = nn.Linear(4, 6, bias=False).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    L1(0.4).attach_(optimizer, layer)
    GroupLasso(0.6, sized=False).attach_(optimizer, layer)
    for _ in range(300):
        optimizer.zero_grad()
        ((layer.weight - target).square().sum() / 2).backward()
        optimizer.step()
    soft = target.sign() * (target.abs() - 0.4).clamp(min=0)
    expected = soft * (1 - 0.6 / soft.norm(dim=1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-12)


def test_each_group_of_an_optimizer_shrinks_with_its_own_learning_rate_as_scheduled(mlp):
    optimizer = torch.optim.SGD(
        [{"params": mlp[0].parameters(), "lr": 1.0}, {"params": [*mlp[2].parameters(), *mlp[4].parameters()]}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = [mlp[i].weight.detach().clone() for i in (0, 2, 4)]
    handle = L1(0.01).attach_(optimizer, mlp)
    for p in mlp.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    for i, w, t in zip((0, 2, 4), before, (0.015, 0.0015, 0.0015), strict=True):
        torch.testing.assert_close(mlp[i].weight.detach(), w.sign() * (w.abs() - t).clamp(min=0))
    handle.remove()
    at = mlp[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(mlp[0].weight, at)


def test_a_learning_rate_may_be_a_tensor_and_weights_of_16_bits(mlp):
    half = copy.deepcopy(mlp).bfloat16()
    optimizer = torch.optim.SGD(half.parameters(), lr=torch.tensor(1.0))
    L1(0.05).attach_(optimizer, half)
    w = half[0].weight.detach().clone()
    for p in half.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    expected = (w.double().sign() * (w.double().abs() - 0.05).clamp(min=0)).bfloat16()
    torch.testing.assert_close(half[0].weight.detach(), expected)
    assert L1(0.05)(half).dtype == torch.float32


def test_zeros_become_masks_and_the_model_sparse(mlp, vectors):
    penalties.L1(1.0).shrink_(mlp, 0.1)
    dense = copy.deepcopy(mlp)
    masks = sk.penalties.nonzero_masks(mlp)
    assert list(masks) == ["0.weight", "2.weight", "4.weight"]
    assert all(0 < mask.density < 1 for mask in masks.values())
    sk.sparsify_(mlp, masks, engine="csr")
    x = vectors[0][0]
    torch.testing.assert_close(mlp(x), dense(x))


def test_errors_name_what_is_wrong(mlp):
    with pytest.raises(ValueError, match=r"penalty: strength must be a finite number of at least 0 \(got -1\)"):
        L1(-1)
    with pytest.raises(ValueError, match=r"penalty: by must be 'outputs', 'inputs' or a block's .* \(got 'rows'\)"):
        GroupLasso(1.0, by="rows")
    with pytest.raises(ValueError, match="penalty: block must"):
        GroupLasso(1.0, by=(0, 4))
    with pytest.raises(ValueError, match=r"penalty: step must be a finite number of at least 0 \(got inf\)"):
        L1(1.0).shrink_(mlp, math.inf)
    with pytest.raises(ValueError, match=r"penalty: optimizer must be a torch.optim.Optimizer \(got int\)"):
        L1(1.0).attach_(3, mlp)
    partly = torch.optim.SGD(mlp[0].parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"must train every penalised weight .* \(got one without a parameter for '2.weight'\)"
    ):
        L1(1.0).attach_(partly, mlp)
    with torch.no_grad():
        for i in (0, 2, 4):
            mlp[i].weight.zero_()
    with pytest.raises(ValueError, match=r"nonzero_masks: some pooled weight must not be zero"):
        penalties.nonzero_masks(mlp)
    with pytest.raises(ValueError, match="must have a prunable weight"):
        L1(1.0)(nn.BatchNorm1d(3))


def test_a_model_pruned_under_an_attached_penalty_is_told_of(mlp, vectors):
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
    L1(0.01).attach_(optimizer, mlp)
    sk.prune_(mlp, vectors, keep=0.3, optimizer=optimizer, engine="csr")
    with pytest.raises(ValueError, match="remove the penalty before pruning"):
        optimizer.step()
    with pytest.raises(ValueError, match="must not be pruned yet"):
        L1(0.01)(mlp)


@pytest.mark.parametrize("engine", ["csr", "masked"])
def test_masks_are_not_given_to_what_is_pruned(engine, mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, engine=engine)
    with pytest.raises(ValueError, match=r"sparsify_: weights must not be pruned yet; .* \(got '0.weight'\)"):
        sk.sparsify_(mlp, sk.masks(mlp))
