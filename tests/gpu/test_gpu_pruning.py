"""Models on the device are pruned there: the CPU's masks, and nothing else changed."""

import copy

import pytest
import torch
from nets import make_cnn, make_mlp
from torch import nn
from where import DEVICE, ON, REAL, no_sync

import snipkern as sk

PRUNING = {
    "global": {},
    "layers": {"scope": "layer"},
    "balanced": {"balance": True},
    "blocks": {"block": (4, 4), "engine": "bsr"},
    "blocks and single weights": {"block": (2, 2), "mix": 0.25, "engine": "bsr"},
    "streamed": {"memory": "stream"},
}


def given_gradients(model):
    """A loss whose gradients are given, so that they are the same bits on every device."""
    generator = torch.Generator().manual_seed(11)
    given = {name: torch.randn(p.shape, generator=generator).to(p.device) for name, p in model.named_parameters()}

    def loss(model, inputs):
        return sum((p * given[name]).sum() for name, p in model.named_parameters()) + 0 * model(inputs).sum()

    return loss


@pytest.mark.parametrize("options", PRUNING.values(), ids=PRUNING)
@pytest.mark.parametrize("make, size", ((make_mlp, (20,)), (make_cnn, (3, 8, 8))), ids=("mlp", "cnn"))
def test_masks_are_the_cpus(make, size, options):
    torch.manual_seed(5)
    here = make()
    there = copy.deepcopy(here).to(DEVICE)
    x = torch.randn(6, *size)
    found = [
        sk.prune_(model, [x.to(next(model.parameters()).device)], keep=0.3, loss_fn=given_gradients(model), **options)
        for model in (here, there)
    ]
    assert found[0].masks == found[1].masks
    assert {p.device for p in there.parameters()} == {DEVICE}
    torch.testing.assert_close(there.eval()(x.to(DEVICE)).cpu(), here.eval()(x), rtol=1e-4, atol=1e-5)


def test_streamed_passes_repeat_exactly():
    """Where a device has faster algorithms whose sums come in any order, passes must not take them."""
    torch.manual_seed(5)
    model, seen = make_cnn().to(DEVICE), []
    x, y = torch.randn(6, 3, 8, 8).to(DEVICE), (torch.arange(6) % 5).to(DEVICE)

    def loss(model, batch):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    streamed = sk.plan(model, [(x, y)], keep=0.2, loss_fn=loss, memory="stream")
    assert seen and all(flag == (ON != "cpu") for flag in seen)
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert streamed.masks == sk.plan(model, [(x, y)], keep=0.2, loss_fn=loss).masks
    finally:
        torch.use_deterministic_algorithms(False)


def test_batches_may_come_from_the_cpu_and_nothing_is_left_changed():
    torch.manual_seed(5)
    model = make_cnn().to(DEVICE).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.cuda.get_rng_state(DEVICE) if REAL else torch.get_rng_state()
    plans = [sk.plan(model, [(torch.randn(6, 3, 8, 8), torch.arange(6) % 5)] * 2, keep=0.2, batches=n) for n in (1, 2)]
    assert plans[0].kept == plans[1].kept
    after = torch.cuda.get_rng_state(DEVICE) if REAL else random
    assert torch.equal(random, after)
    assert all(torch.equal(before[name].cpu(), value.cpu()) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


@pytest.mark.parametrize("engine", ("csr", "masked"))
def test_an_optimizers_state_moves_along(engine):
    torch.manual_seed(5)
    model = make_mlp().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    x, y = torch.randn(16, 20).to(DEVICE), (torch.arange(16) % 5).to(DEVICE)

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    train()
    sk.prune_(model, [(x, y)], keep=0.2, engine=engine, optimizer=optimizer)
    for parameter in model.parameters():
        moment = optimizer.state[parameter]["exp_avg"]
        assert moment.shape == parameter.shape and moment.device == DEVICE
    train()
    with no_sync():
        train()
