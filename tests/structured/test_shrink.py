"""Smaller layers compute what the masked ones do, or nothing is changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from archs import ARCHITECTURES, Residual, make, make_batches, masked_copy
from torch import nn

import snipkern as sk
from snipkern.structured import channel_masks, from_scratch, shrink_


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def unchanged(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    objects = [id(p) for p in model.parameters()]
    described = repr(model)

    def check():
        assert [id(p) for p in model.parameters()] == objects and repr(model) == described
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    return check


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shrunk_net_computes_what_the_masked_one_does(name):
    model, batches = make(name), make_batches(2)
    plan = from_scratch(model, batches, keep=0.35, epochs=1)
    masked, before = masked_copy(model, plan.masks), parameters(model)
    shrunk = plan.shrink_()
    assert shrunk.masks == {} and parameters(model) < 0.6 * before
    pooled = sum(p.numel() for n, p in model.named_parameters() if n in plan.masks)
    assert pooled == sum(mask.count() for mask in plan.masks.values())
    for mode in (False, True):
        model.train(mode), masked.train(mode)
        for module in (*model.modules(), *masked.modules()):
            if isinstance(module, nn.Dropout):
                module.eval()
        for x, _ in batches:
            torch.testing.assert_close(model(x), masked(x), rtol=1e-9, atol=1e-10)
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    assert all(
        p.grad is not None and p.grad.shape == p.shape for p in model.parameters() if p.numel() and p.requires_grad
    )
    for module_name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels // module.groups) == tuple(weight.shape[:2])
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(weight.shape)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == weight.numel() == module.running_mean.numel()
        assert f"{module_name}.weight" not in shrunk.shapes or shrunk.shapes[f"{module_name}.weight"][1] == tuple(
            weight.shape
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_choices_of_channels_shrink_as_far_as_sums_allow(name):
    model, batches = make(name, seed=4), make_batches(1)
    generator = torch.Generator().manual_seed(8)
    pooled = [n for n, p in model.named_parameters() if p.dim() > 1]
    channels = {n: torch.rand(model.get_parameter(n).shape[0], generator=generator) < 0.6 for n in pooled[:-1]}
    masks = channel_masks(model, channels, batches)
    masked = masked_copy(model, masks).eval()
    before = parameters(model)
    shrunk = shrink_(model, masks, batches, partly=True)
    model.eval()
    torch.testing.assert_close(model(batches[0][0]), masked(batches[0][0]), rtol=1e-9, atol=1e-10)
    assert parameters(model) < before
    sk.sparsify_(model, shrunk.masks, engine="masked")  # what is left of the masks fits
    torch.testing.assert_close(model(batches[0][0]), masked(batches[0][0]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("keep", [0.3, 0.05])
@pytest.mark.parametrize("name", ["lenet-5", "vgg", "resnet"])
def test_units_that_snip_leaves_unread_are_cut_off(name, keep):
    model, batches = make(name, seed=2), make_batches(1)
    masks = sk.plan(model, batches, keep=keep, engine="masked").masks
    masked = masked_copy(model, masks).eval()
    shrunk = shrink_(model, masks, batches, partly=True)
    model.eval()
    torch.testing.assert_close(model(batches[0][0]), masked(batches[0][0]), rtol=1e-9, atol=1e-10)
    pruned = sk.sparsify_(model, shrunk.masks, engine="csr" if name == "lenet-5" else "auto")
    assert pruned.kept <= sum(mask.count() for mask in masks.values())
    torch.testing.assert_close(model(batches[0][0]), masked(batches[0][0]), rtol=1e-9, atol=1e-10)


def test_rows_that_a_group_penalty_has_emptied_can_go():
    model, batches = make("vgg"), make_batches(1)
    sk.penalties.GroupLasso(1.0, by="outputs", sized=False).shrink_(model, 0.6)
    rows = {n: p.detach().flatten(1).any(1) for n, p in model.named_parameters() if p.dim() > 1 and n != "18.weight"}
    assert any(not bool(flags.all()) for flags in rows.values())
    rows = {n: flags for n, flags in rows.items() if flags.any()}
    masks = channel_masks(model, rows, batches)
    shrink_(model, masks, batches)
    assert model(batches[0][0]).shape == (8, 5)


def test_an_optimizer_moves_along():
    model, batches = make("lenet-5"), make_batches(1)
    model.eval()
    plan = from_scratch(model, batches, keep=0.4, epochs=1)
    masked = masked_copy(model, plan.masks)
    pair = []
    for net in (model, masked):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        F.cross_entropy(net(batches[0][0]), batches[0][1]).backward()
        for name, p in net.named_parameters():
            if name in plan.masks:
                p.grad.mul_(plan.masks[name].to_dense())
        optimizer.step()
        pair.append((net, optimizer))
    with torch.no_grad():  # what the dense one stepped from was not masked
        for (_, p), (_, q) in zip(model.named_parameters(), masked.named_parameters(), strict=True):
            p.copy_(q)
    first = pair[0][1]
    for p, q in zip(model.parameters(), masked.parameters(), strict=True):
        first.state[p]["momentum_buffer"].copy_(pair[1][1].state[q]["momentum_buffer"])
    plan.shrink_(optimizer=first)
    assert {id(p) for g in first.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    for _ in range(3):
        for net, optimizer in pair:
            optimizer.zero_grad()
            F.cross_entropy(net(batches[0][0]), batches[0][1]).backward()
            for name, p in net.named_parameters():
                if net is masked and name in plan.masks:
                    p.grad.mul_(plan.masks[name].to_dense())
            optimizer.step()
    torch.testing.assert_close(model(batches[0][0]), masked(batches[0][0]), rtol=1e-8, atol=1e-9)


def test_sums_whose_channels_disagree_are_refused_and_partly_left():
    model, batches = make("resnet"), make_batches(1)
    channels = {"0.weight": torch.arange(6) != 2}  # but 3.conv2 keeps its channel 2, which is added to it
    masks = channel_masks(model, channels, batches)
    check = unchanged(model)
    with pytest.raises(
        ValueError,
        match=r"shrink: an output without kept weights must not be read, .* in a sum with others.* \(got 1 of '0.weight'",
    ):
        shrink_(model, masks, batches)
    check()
    shrunk = shrink_(model, masks, batches, partly=True)
    assert shrunk.shapes == {} and str(shrunk) == "nothing is smaller"
    both = channel_masks(model, {**channels, "3.conv2.weight": channels["0.weight"]}, batches)
    assert "0.weight" in shrink_(model, both, batches).shapes and model[0].out_channels == 5 == model[1].num_features


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, 5)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).view(-1, 6 * 36))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.scale, self.head = nn.Conv2d(3, 6, 3), nn.Parameter(torch.rand(6, 1, 1)), nn.Linear(6, 5)

    def forward(self, x):
        return self.head((F.relu(self.conv(x)) * self.scale).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(216, 5)), "group_norm computes each"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.LayerNorm(6), nn.Linear(6, 5)), "layer_norm computes each"),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 5)), "has 2 groups"),
        (Scaled, "with a parameter may be per channel"),
        (Written, "are sizes written into"),
    ],
    ids=["group norm", "layer norm", "groups", "scale", "view"],
)  # fmt: skip
def test_what_can_not_be_cut_exactly_is_refused_before_any_change(build, text):
    torch.manual_seed(7)
    model, batches = build().double(), make_batches(1)
    first = next(n for n, p in model.named_parameters() if p.dim() > 1 and n != "scale")
    channels = {first: torch.arange(6) % 3 != 1}  # as many of each group
    masks = channel_masks(model, channels, batches)
    check = unchanged(model)
    with pytest.raises(ValueError, match=rf"shrink: .*{text}"):
        shrink_(model, masks, batches)
    check()
    if build is not Written:
        expected = masked_copy(model, masks)(batches[0][0])
        shrink_(model, masks, batches, partly=True)
        torch.testing.assert_close(model(batches[0][0]), expected, rtol=1e-9, atol=1e-10)


def test_depthwise_convolutions_stay_depthwise():
    model, batches = make("mobilenet"), make_batches(1)
    plan = from_scratch(model, batches, keep=0.4, epochs=1)
    plan.shrink_()
    conv = model[3]
    assert conv.groups == conv.in_channels == conv.out_channels == conv.weight.shape[0] < 8


def test_a_layer_that_nobody_reads_keeps_one_output():
    model, batches = nn.Sequential(nn.Flatten(), Residualless(192, 6), nn.Linear(6, 5)).double(), make_batches(1)
    masks = {"1.b.weight": sk.Mask.from_dense(torch.zeros(6, 4, dtype=torch.bool))}
    expected = masked_copy(model, masks)(batches[0][0])
    shrink_(model, masks, batches, partly=True)
    assert model[1].a.out_features == 1
    torch.testing.assert_close(model(batches[0][0]), expected, rtol=1e-9, atol=1e-10)


class Residualless(nn.Module):
    def __init__(self, inputs, out):
        super().__init__()
        self.a, self.b = nn.Linear(inputs, 4), nn.Linear(4, out)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_gradients_and_frozen_parameters_keep_their_ways():
    model, batches = make("lenet-5"), make_batches(1)
    model.eval()
    plan = from_scratch(model, batches, keep=0.4, epochs=1)
    model[0].bias.requires_grad_(False)
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    grads = {n: copy.deepcopy(p.grad) for n, p in model.named_parameters()}
    plan.shrink_()
    assert not model[0].bias.requires_grad and model[0].bias.grad is None
    rows = plan.channels["0.weight"]
    assert torch.equal(model[0].weight.grad, grads["0.weight"][rows])


def test_bad_arguments_and_pruned_models_are_refused(mlp, vectors):
    masks = sk.plan(mlp, vectors, keep=0.5).masks
    with pytest.raises(ValueError, match=r"shrink: optimizer must be a torch.optim.Optimizer"):
        shrink_(mlp, masks, vectors, optimizer=3)
    with pytest.raises(
        ValueError, match=r"shrink: optimizer must keep its state per weight .*|shrink: optimizer must keep"
    ):
        shrink_(mlp, masks, vectors, optimizer=torch.optim.LBFGS(mlp.parameters()))
    with pytest.raises(ValueError, match="masks must name parameters of the dense model"):
        shrink_(mlp, {"nope": masks["0.weight"]}, vectors)
    sk.sparsify_(mlp, masks, engine="masked")
    with pytest.raises(ValueError, match="must not be pruned yet"):
        shrink_(mlp, masks, vectors)


def test_residual_blocks_without_norms_have_biases_that_are_cut():
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), Residual(5, 5, norm=False), nn.Flatten(), nn.Linear(5 * 64, 5)).double()
    batches = make_batches(1)
    plan = from_scratch(model, batches, keep=0.5, epochs=1)
    masked = masked_copy(model, plan.masks)
    plan.shrink_()
    torch.testing.assert_close(model(batches[0][0]), masked(batches[0][0]), rtol=1e-9, atol=1e-10)
    assert model[1].conv2.bias.shape == model[0].bias.shape
