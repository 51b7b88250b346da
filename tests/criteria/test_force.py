"""FORCE and iterative SNIP against loops written out, and what holds for them whatever the numbers."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snipkern as sk
from snipkern.criteria import Context, Force, IterativeSnip
from snipkern.criteria.rounds import counts

KINDS = {"iterative-snip": IterativeSnip, "force": Force}


def kept_by_round(total, kept, rounds, schedule):
    found = []
    for t in range(1, rounds):
        share = t / rounds
        exact = total - (total - kept) * share if schedule == "linear" else total ** (1 - share) * kept**share
        found.append(max(round(exact), kept))
    return [*found, kept]


def naive(model, batches, kept, rounds, schedule, pruned_return):
    """Masks by the definition: gradients of a masked copy, all scores in one list, a stable sort."""
    model = copy.deepcopy(model).eval()
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() > 1}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    for keep in kept_by_round(sum(w.numel() for w in weights.values()), kept, rounds, schedule):
        gradients = {n: torch.zeros_like(w) for n, w in weights.items()}
        for x, y in batches:
            net = copy.deepcopy(model)
            with torch.no_grad():
                for n, p in net.named_parameters():
                    if n in masks:
                        p.mul_(masks[n])
            F.cross_entropy(net(x), y).backward()
            for n, p in net.named_parameters():
                if n in masks:
                    gradients[n] += p.grad
        scores = {n: (weights[n] * gradients[n] / len(batches)).abs() for n in weights}
        if not pruned_return:
            scores = {n: torch.where(masks[n], s, -1.0) for n, s in scores.items()}
        flat = torch.cat([s.flatten() for s in scores.values()])
        chosen = torch.zeros(flat.numel(), dtype=torch.bool)
        chosen[flat.sort(descending=True, stable=True).indices[:keep]] = True
        parts = chosen.split([s.numel() for s in scores.values()])
        masks = {n: part.view(weights[n].shape) for n, part in zip(scores, parts, strict=True)}
    return masks


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
@pytest.mark.parametrize("name", KINDS)
def test_masks_are_those_of_a_naive_loop(name, schedule):
    torch.manual_seed(11)
    net = nn.Sequential(
        nn.Linear(20, 33), nn.Tanh(), nn.Linear(33, 17), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17, 5)
    ).double()
    batches = [(torch.randn(16, 20, dtype=torch.float64), torch.randint(0, 5, (16,))) for _ in range(2)]
    expected = naive(net, batches, 130, 5, schedule, pruned_return=name == "force")
    found = sk.plan(net, batches, keep=130, criterion=KINDS[name](rounds=5, schedule=schedule), batches=2).masks
    assert sum(mask.count() for mask in found.values()) == 130
    for n, mask in found.items():
        assert torch.equal(mask.to_dense(), expected[n]), n


@pytest.mark.parametrize("name", KINDS)
def test_one_round_is_snip(name, cnn, images):
    masks = sk.plan(cnn, images, keep=0.1, batches=2).masks
    assert sk.plan(cnn, images, keep=0.1, batches=2, criterion=KINDS[name](rounds=1)).masks == masks


def test_nothing_comes_back_in_iterative_snip_but_in_force_it_may(monkeypatch, mlp, vectors):
    history = []
    choose = Context.choose

    def noted(self, scores, keep):
        history.append(choose(self, scores, keep))
        return history[-1]

    monkeypatch.setattr(Context, "choose", noted)
    returned = {}
    for name, kind in KINDS.items():
        history.clear()
        history.append(sk.plan(mlp, vectors, keep=0.03, criterion=kind(rounds=6)).masks)
        assert [sum(m.count() for m in masks.values()) for masks in history] == counts(1306, 39, 6)
        returned[name] = sum(
            int((now[n].to_dense() & ~before[n].to_dense()).sum())
            for before, now in itertools.pairwise(history)
            for n in now
        )
    assert returned["iterative-snip"] == 0 < returned["force"]


def test_dead_units_go_before_pruned_weights_come_back(monkeypatch):
    """Fewer weights have a score than are to be kept."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[2:] = -100.0
    history = []
    choose = Context.choose
    monkeypatch.setattr(Context, "choose", lambda *a: history.append(choose(*a)) or history[-1])
    batches = [(torch.randn(12, 6), torch.randint(0, 3, (12,)))]
    last = sk.plan(net, batches, keep=50, criterion=IterativeSnip(rounds=4, schedule="linear")).masks
    assert len(history) == 3 and sum(mask.count() for mask in last.values()) == 50
    for before, now in zip(history, [*history[1:], last], strict=True):
        assert all(not bool((now[n].to_dense() & ~before[n].to_dense()).any()) for n in now)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"scope": "layer"},
        {"scope": "erk"},
        {"scope": "uniform", "keep": 0.6},
        {"min_keep": 0.05},
        {"balance": True},
        {"block": (4, 4), "keep": 0.3},
    ],
    ids=str,
)
def test_scopes_floors_and_blocks_hold(name, options, mlp, vectors):
    asked = {"keep": 0.1, **options}
    found = sk.plan(mlp, vectors, criterion=KINDS[name](rounds=4), **asked)
    snip = sk.plan(mlp, vectors, **asked)
    if "block" in options:
        assert set(found.layouts) == set(snip.layouts) != set()
        assert abs(found.kept - snip.kept) <= 2 * 16
        return
    assert found.kept == round(asked["keep"] * 1306)
    if "scope" in options:
        assert [m.count() for m in found.masks.values()] == [m.count() for m in snip.masks.values()]
    if "min_keep" in options:
        assert all(mask.density >= 0.05 for mask in found.masks.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_same_batches_serve_all_rounds_and_nothing_is_changed(name, cnn, images):
    before = {key: value.clone() for key, value in cnn.state_dict().items()}
    state = torch.get_rng_state()
    from_list = sk.plan(cnn, images, keep=0.2, batches=2, criterion=name).masks
    assert sk.plan(cnn, iter(images), keep=0.2, batches=2, criterion=name).masks == from_list
    samples = [(x[0], y[0]) for x, y in images]
    loader = torch.utils.data.DataLoader(samples, batch_size=1, shuffle=True)
    sk.plan(cnn, loader, keep=0.2, criterion=name)
    assert torch.equal(torch.get_rng_state(), state)
    assert cnn.training and all(p.grad is None for p in cnn.parameters())
    assert all(torch.equal(value, before[key]) for key, value in cnn.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_a_pruned_model_trains(name, mlp, vectors):
    pruned = sk.prune_(mlp, vectors, keep=0.1, criterion=name)
    F.cross_entropy(mlp(vectors[0][0]), vectors[0][1]).backward()
    assert pruned.kept == 131


def test_counts_go_from_all_to_those_to_keep():
    assert counts(1000, 10, 1) == [10]
    assert counts(10000, 100, 2) == [1000, 100]
    assert counts(1000, 10, 3, "linear") == [670, 340, 10]
    for schedule in ("exponential", "linear"):
        for kept in (1, 7, 500, 1000):
            found = counts(1000, kept, 9, schedule)
            assert found == sorted(found, reverse=True) and found[-1] == kept and len(found) == 9


@pytest.mark.parametrize("name", KINDS)
def test_bad_options(name, mlp, vectors):
    with pytest.raises(ValueError, match=rf"{name}: rounds must be a positive integer \(got 0\)"):
        KINDS[name](rounds=0)
    with pytest.raises(ValueError, match=rf"{name}: schedule must be one of exponential, linear \(got 'cubic'\)"):
        KINDS[name](schedule="cubic")
    with torch.no_grad():
        mlp[2].weight[3, 3] = float("inf")
    with pytest.raises(ValueError, match=r"must be finite"):
        sk.plan(mlp, vectors, keep=0.1, criterion=name)
