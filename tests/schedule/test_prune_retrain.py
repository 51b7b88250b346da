"""Prune-retrain, gradual pruning and rewinding, against training by hand with dense weights times masks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from simulated import Simulated, adamw, momentum
from torch import nn

import snipkern as sk

pytestmark = pytest.mark.usefixtures("one_thread")

SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
ADAMW = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}
OPTIMIZERS = {
    "SGD": (lambda parameters: torch.optim.SGD(parameters, **SGD), momentum(*SGD.values())),
    "AdamW": (lambda parameters: torch.optim.AdamW(parameters, **ADAMW), adamw(*ADAMW.values())),
}


def make_net() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(54, 20),
        nn.Tanh(),
        nn.Linear(20, 4),
    )
    return net.double()


TOTAL = 6 * 9 + 54 * 20 + 20 * 4


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 4, (4, 16), generator=generator)
    images = torch.randn(4, 16, 1, 6, 6, generator=generator, dtype=torch.float64)
    images += labels.view(4, 16, 1, 1, 1) * 0.5
    return list(zip(images, labels, strict=True))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches) -> None:
    for inputs, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def require_same(model: nn.Module, hand: Simulated) -> None:
    found = sk.dense_state_dict(model)
    for name, mask in sk.masks(model).items():
        assert torch.equal(mask.to_dense(), hand.masks[name] > 0), name
    for name, value in hand.values.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("engine", ["csr", "masked", "auto"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_prune_retrain_is_training_with_masks(engine, name, batches):
    model = make_net()
    make, step = OPTIMIZERS[name]
    optimizer, hand = make(model.parameters()), Simulated(copy.deepcopy(model), step)
    seen = []
    for stage in sk.prune_retrain(
        model, batches, 0.1, rounds=4, schedule="cubic", criterion="magnitude", engine=engine, optimizer=optimizer
    ):
        if stage.number:
            hand.prune(round(stage.keep * TOTAL))
        require_same(model, hand)
        train(model, optimizer, batches)
        hand.train(batches, F.cross_entropy)
        require_same(model, hand)
        seen.append((stage.number, round(stage.density * TOTAL), stage.pruned is not None, stage.last))
    ends = [round((0.1 + 0.9 * (1 - i / 4) ** 3) * TOTAL) for i in range(5)]
    assert seen == [(i, ends[i], i > 0, i == 4) for i in range(5)]


@pytest.mark.parametrize("engine", ["csr", "masked"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradual_pruning_is_training_with_masks(engine, name, batches):
    model = make_net()
    make, step = OPTIMIZERS[name]
    optimizer, hand = make(model.parameters()), Simulated(copy.deepcopy(model), step)
    gradual = sk.Gradual(
        model, None, keep=0.2, begin=1, end=8, every=3, criterion="magnitude", engine=engine, optimizer=optimizer
    )
    times = {4: 3 / 7, 7: 6 / 7, 8: 1.0}
    for number in range(1, 11):
        batch = batches[number % 4]
        train(model, optimizer, [batch])
        pruned = gradual.step()
        hand.train([batch], F.cross_entropy)
        assert (pruned is not None) == (number in times)
        if number in times:
            hand.prune(round((0.2 + 0.8 * (1 - times[number]) ** 3) * TOTAL))
            assert gradual.pruned is pruned
        require_same(model, hand)
        assert gradual.done == (number >= 8)
    assert gradual.pruned.kept == round(0.2 * TOTAL)


@pytest.mark.parametrize("engine", ["csr", "masked"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lottery_tickets_are_rewound_to_the_bit_and_train_as_by_hand(engine, name, batches):
    model = make_net()
    make, step = OPTIMIZERS[name]
    optimizer, hand = make(model.parameters()), Simulated(copy.deepcopy(model), step)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    stages = sk.prune_retrain(
        model,
        None,
        0.15,
        rounds=3,
        criterion="magnitude",
        engine=engine,
        optimizer=optimizer,
        rewind=sk.Snapshot(model),
    )
    for stage in stages:
        if stage.number:
            hand.prune(round(0.15 ** (stage.number / 3) * TOTAL))
            hand.rewind(first)
            assert not optimizer.state
            masks = {key: mask.to_dense() for key, mask in sk.masks(model).items()}
            for key, value in sk.dense_state_dict(model).items():
                assert torch.equal(value, first[key] * masks.get(key, 1)), key
            assert all(parameter.grad is None for parameter in model.parameters())
        train(model, optimizer, batches)
        hand.train(batches, F.cross_entropy)
        require_same(model, hand)


def test_one_shot_is_prune_(batches):
    torch.manual_seed(1)
    model = make_net()
    twin = copy.deepcopy(model)
    stages = sk.prune_retrain(model, batches, 0.1, schedule="one-shot", dense_first=False, engine="csr")
    assert len(stages) == 1
    [stage] = stages
    sk.prune_(twin, batches, keep=0.1, engine="csr")
    assert sk.masks(model) == sk.masks(twin) and stage.last and stage.pruned.kept == round(0.1 * TOTAL)


def test_a_loop_that_is_left_early_leaves_a_model_that_trains_and_goes_on(batches):
    model = make_net()
    optimizer = torch.optim.AdamW(model.parameters())
    stages = sk.prune_retrain(model, batches, 0.05, rounds=5, optimizer=optimizer)
    for stage in stages:
        train(model, optimizer, batches)
        if stage.number == 2:
            break
    assert sum(mask.count() for mask in sk.masks(model).values()) == round(0.05 ** (2 / 5) * TOTAL)
    train(model, optimizer, batches)
    assert [stage.number for stage in stages] == [3, 4, 5]
    assert sum(mask.count() for mask in sk.masks(model).values()) == round(0.05 * TOTAL)


def test_a_model_that_is_pruned_already_starts_where_it_is(batches):
    model = make_net()
    sk.prune_(model, batches, keep=0.4)
    found = [stage.density for stage in sk.prune_retrain(model, batches, 0.1, rounds=2, schedule="linear")]
    assert [round(density * TOTAL) for density in found] == [round(0.4 * TOTAL), 304, round(0.1 * TOTAL)]


def test_a_user_s_own_schedules(batches):
    def densities(**options):
        return [round(s.density, 2) for s in sk.prune_retrain(make_net(), batches, **options)]

    assert densities(schedule=[0.5, 0.5, 0.2]) == [1.0, 0.5, 0.5, 0.2]
    assert densities(keep=0.2, schedule=[0.5, 0.2], dense_first=False) == [0.5, 0.2]
    assert densities(sparsity=0.8, rounds=2, schedule=lambda way: 1 - 0.8 * way) == [1.0, 0.6, 0.2]
    [*_, last] = sk.prune_retrain(make_net(), batches, 77, rounds=3)
    assert last.pruned.kept == 77


def test_blocks_are_kept_in_rounds_also_where_layers_stay_masked(batches):
    torch.manual_seed(0)
    data = [(x.float().flatten(1), y) for x, y in batches]
    model = nn.Sequential(nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = None
    engines = iter(["masked", "masked", "bsr", "masked"])
    for keep in (0.6, 0.4, 0.2, 0.1):
        engine = next(engines)
        pruned = sk.prune_(
            model, data, keep=keep, block=(4, 4), order=True, engine=engine, optimizer=optimizer, criterion="magnitude"
        )
        assert {layer.engine for layer in pruned.layers} <= {engine, "csr"}
        assert 0.7 * keep < pruned.density < 1.2 * keep
        after = sk.masks(model)
        for name, mask in after.items():
            assert before is None or not (mask.words & ~before[name].words).any()
        before = after
        train(model, optimizer, data)
