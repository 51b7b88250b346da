"""Pruning from scratch: gates against a net with gates written into it, budgets, and who goes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from archs import ARCHITECTURES, make, make_batches
from torch import nn

import snipkern as sk
from snipkern.structured import channel_masks, from_scratch


def untouched(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    def check():
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())

    return check


def test_gates_learn_as_in_a_net_that_multiplies_its_channels_by_them():
    """Gates after each ReLU, Adam and the regulariser written out; BatchNorm by the batch, dropout none."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 5),
    ).double()  # fmt: skip
    batches = make_batches(3)
    gates = {
        at: torch.full((size,), 0.5, dtype=torch.float64, requires_grad=True) for at, size in ((2, 6), (5, 4), (8, 7))
    }
    optimizer = torch.optim.Adam(gates.values(), lr=0.05)
    for x, y in batches * 2:
        h = x
        for i, layer in enumerate(copy.deepcopy(net).train()):
            h = layer(h)
            h = h * gates[i].view(1, -1, *(1,) * (h.dim() - 2)) if i in gates else h
        mean = torch.cat([*gates.values()]).mean()
        optimizer.zero_grad()
        (F.cross_entropy(h, y) + 0.7 * (mean - 0.3) ** 2).backward()
        optimizer.step()
        with torch.no_grad():
            for gate in gates.values():
                gate.clamp_(0, 1)
    check = untouched(net)
    plan = from_scratch(net, batches, keep=0.5, epochs=2, lr=0.05, strength=0.7, target=0.3)
    check()
    assert list(plan.gates) == ["0.weight", "4.weight", "7.weight"]
    for name, gate in zip(plan.gates, gates.values(), strict=True):
        torch.testing.assert_close(plan.gates[name], gate.detach().float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("counted", ["weights", "multiply-adds"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_budgets_are_met_by_the_fewest_channels(name, counted):
    model, batches = make(name), make_batches(2)
    plan = from_scratch(model, batches, keep=0.4, counted=counted, epochs=1)
    positions = {}

    def note(key):
        return lambda module, args, out: positions.__setitem__(key, out[0].numel() // module.weight.shape[0])

    handles = [
        m.register_forward_hook(note(f"{n}.weight"))
        for n, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    model(batches[0][0])
    for handle in handles:
        handle.remove()
    each = positions if counted == "multiply-adds" else dict.fromkeys(positions, 1)

    def cost(channels):
        masks = channel_masks(model, channels, batches)
        return sum(mask.count() * each[key] for key, mask in masks.items())

    total = sum(mask.numel * each[key] for key, mask in plan.masks.items())
    assert channel_masks(model, plan.channels, batches) == plan.masks
    found = cost(plan.channels)
    assert plan.kept == pytest.approx(found / total, rel=1e-12) and found <= round(0.4 * total)
    # The largest gate that goes, and all that share it, come back: too much.
    gone = {key: gate[~plan.channels[key]] for key, gate in plan.gates.items() if not plan.channels[key].all()}
    largest = max(float(gate.max()) for gate in gone.values())
    back = {
        key: flags | (plan.gates[key] >= largest) if key in plan.gates else flags
        for key, flags in plan.channels.items()
    }
    assert cost(back) > round(0.4 * total)
    stay = [float(gate[plan.channels[key]].min()) for key, gate in plan.gates.items() if plan.channels[key].sum() > 1]
    assert min(stay) >= largest - 1e-12


def test_channels_of_sums_share_a_gate_and_outputs_of_the_model_have_none():
    plan = from_scratch(make("resnet"), make_batches(1), keep=0.5, epochs=1)
    same = [
        ["0.weight", "3.conv2.weight"],
        ["4.conv2.weight", "4.shortcut.weight", "5.conv2.weight"],
    ]
    for names in same:
        assert all(torch.equal(plan.channels[names[0]], plan.channels[name]) for name in names)
        assert all(torch.equal(plan.gates[names[0]], plan.gates[name]) for name in names)
    assert set(plan.channels) - set(plan.gates) == {"8.weight"}
    depthwise = from_scratch(make("mobilenet"), make_batches(1), keep=0.5, epochs=1)
    assert torch.equal(depthwise.channels["0.weight"], depthwise.channels["3.weight"])
    assert "no gates" in str(plan) and "0.weight" in str(plan) and "of all weights kept" in str(plan)


def test_channels_that_nothing_depends_on_go(one_thread):
    """Half of the hidden units are not connected: their gates follow the pull to smaller means, the others resist."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    useful = torch.randperm(16)[:8]
    reads = torch.zeros(16, dtype=torch.bool)
    reads[useful] = True
    with torch.no_grad():  # unit i says how much there is of input i, which is class i
        net[0].weight[useful] = torch.eye(8)
        net[2].weight.zero_()
        net[2].weight[:, useful] = 4 * torch.eye(8)
    x = torch.rand(256, 8)
    batches = [(part, part.argmax(1)) for part in x.split(32)]
    plan = from_scratch(net, batches, keep=0.5, epochs=6, lr=0.03, strength=3.0)
    assert torch.equal(plan.channels["0.weight"], reads)
    assert plan.kept == 0.5


def test_a_plan_is_applied_as_masks_and_the_net_trains():
    model, batches = make("resnet"), make_batches(2)
    plan = from_scratch(model, batches, keep=0.3, epochs=1)
    pruned = plan.apply_()
    assert pruned.masks == plan.masks == sk.masks(model)
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()


def test_layers_keep_what_min_channels_says():
    model, batches = make("vgg"), make_batches(1)
    plan = from_scratch(model, batches, keep=0.2, epochs=1, min_channels=3)
    assert all(int(flags.sum()) >= 3 for flags in plan.channels.values())
    check = untouched(model)
    with pytest.raises(ValueError, match=r"from_scratch: keep must allow for min_channels=7 in each layer \(got"):
        from_scratch(model, batches, keep=0.2, epochs=1, min_channels=7)
    check()


def test_dropout_and_shuffled_loaders_leave_random_numbers_as_they_are():
    model, batches = make("lenet-5"), make_batches(1)
    data = torch.utils.data.DataLoader([(x, y) for x, y in zip(*batches[0], strict=True)], batch_size=4, shuffle=True)
    state, check = torch.get_rng_state(), untouched(model)
    a = from_scratch(model, data, keep=0.4, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    b = from_scratch(model, data, sparsity=0.6, epochs=2)
    assert a.masks == b.masks and all(torch.equal(a.gates[name], b.gates[name]) for name in a.gates)
    check()


class Attentive(nn.Module):
    """Hidden units of the feed-forward part can go; what attention reads can't."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 20, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def test_what_unknown_functions_read_has_no_gates():
    torch.manual_seed(5)
    model = Attentive()
    batches = [(torch.randn(4, 6, 8), torch.randint(0, 3, (4,)))]
    plan = from_scratch(model, batches, keep=0.8, epochs=1)
    assert set(plan.gates) == {"layer.linear1.weight"}
    with pytest.raises(ValueError, match="must have hidden channels that nothing unknown reads"):
        from_scratch(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), batches, keep=0.5)


def test_errors_come_before_any_change():
    model, batches = make("lenet-5"), make_batches(1)
    check = untouched(model)
    for bad, text in (
        ({"counted": "channels"}, "counted must be one of weights, multiply-adds"),
        ({"epochs": 0}, "epochs must be a positive integer"),
        ({"min_channels": 1.5}, "min_channels must be a positive integer"),
        ({"lr": -1}, "lr must be a finite number of at least 0"),
        ({"target": 2}, "target must be a mean gate in"),
    ):
        with pytest.raises(ValueError, match=f"from_scratch: {text}"):
            from_scratch(model, batches, keep=0.5, **bad)
    for epochs in (1, 2):  # the first batch is seen once more in any case
        with pytest.raises(
            ValueError,
            match=r"loader must be iterable once for each epoch, and once before, such as a list \(got list_it",
        ):
            from_scratch(model, iter(batches * 2), keep=0.5, epochs=epochs)
    with pytest.raises(ValueError, match="must yield at least 1 batch"):
        from_scratch(model, [], keep=0.5)
    with pytest.raises(ValueError, match=r"channel_masks: channels must be of pooled parameters \(got 'x'\)"):
        channel_masks(model, {"x": torch.ones(3)}, batches)
    with pytest.raises(ValueError, match=r"channel_masks: flags of '0.weight' must be bool \[6\]"):
        channel_masks(model, {"0.weight": torch.ones(5, dtype=torch.bool)}, batches)
    nan = [(torch.full((4, 3, 8, 8), float("nan"), dtype=torch.float64), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ValueError, match="the loss must be"):
        from_scratch(model, nan, keep=0.5)
    check()
