"""SynFlow against a loop written out, its conservation laws in float64, and layers that must not die."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snipkern as sk
from snipkern.criteria import SynFlow
from snipkern.criteria.flow import Flow
from snipkern.criteria.rounds import counts
from snipkern.pool import prunable

ONES = torch.ones


def scores_of(model, *args, masks=None):
    pool = prunable(model)
    flow = Flow(model.eval(), pool, args, {})
    return flow.scores(masks or {entry.fqn: sk.Mask.full(entry.parameter.shape) for entry in pool})


def make_vgg(depth, width=8, norm=True):
    layers, channels = [], 3
    for i in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers += [nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3) else []
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Block(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def naive_scores(model, shape, masks):
    """As the paper's code does it: all of the state absolute, an input of ones, one backward, in float64."""
    net = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for value in net.state_dict().values():
            value.abs_()
        for n, p in net.named_parameters():
            if n in masks:
                p.mul_(masks[n])
    net(ONES(1, *shape, dtype=torch.float64)).sum().backward()
    return {n: (p.grad * p).abs().detach() for n, p in net.named_parameters() if n in masks}


def naive(model, shape, kept, rounds):
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() > 1}
    total = sum(mask.numel() for mask in masks.values())
    for t in range(1, rounds + 1):
        keep = kept if t == rounds else max(round(total * (kept / total) ** (t / rounds)), kept)
        scores = naive_scores(model, shape, masks)
        flat = torch.cat([torch.where(masks[n], scores[n], -1.0).flatten() for n in masks])
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[flat.sort(descending=True, stable=True).indices[:keep]] = True
        parts = chosen.split([mask.numel() for mask in masks.values()])
        masks = {n: part.view(masks[n].shape) for n, part in zip(masks, parts, strict=True)}
    return masks


@pytest.mark.parametrize("kind", ["mlp", "vgg", "resnet"])
def test_masks_are_those_of_a_naive_loop(kind):
    torch.manual_seed(5)
    model, shape = {
        "mlp": lambda: (
            nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 5)),
            (20,),
        ),
        "vgg": lambda: (make_vgg(5), (3, 8, 8)),
        "resnet": lambda: (
            nn.Sequential(
                nn.Conv2d(3, 6, 3), Block(6, 6), Block(6, 9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4)
            ),
            (3, 8, 8),
        ),
    }[kind]()
    expected = naive(model, shape, 90, 12)
    found = sk.plan(model, None, keep=90, criterion=SynFlow(rounds=12, input_shape=shape)).masks
    assert sum(mask.count() for mask in found.values()) == 90
    for n, mask in found.items():
        assert torch.equal(mask.to_dense(), expected[n]), n


def test_what_flows_into_a_unit_flows_out_of_it():
    """Hidden units: incoming scores, those of biases included, sum up to the outgoing ones."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    found = scores_of(net, ONES(1, 7))
    # What the weights that a bias flows through pass on, written out.
    w0, w1, w2 = (net[i].weight.detach().abs() for i in (0, 2, 4))
    after0 = w2.sum(0) @ w1
    torch.testing.assert_close(found["2.weight"].sum(0), found["0.weight"].sum(1) + net[0].bias.detach().abs() * after0)
    torch.testing.assert_close(
        found["4.weight"].sum(0), found["2.weight"].sum(1) + net[2].bias.detach().abs() * w2.sum(0)
    )
    torch.testing.assert_close(found["0.weight"], w0 * after0[:, None], rtol=1e-12, atol=0)


def test_all_layers_pass_the_same_flow_without_biases():
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, bias=False, padding=1),
        nn.GroupNorm(1, 5, affine=False),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(5 * 4, 7, bias=False),
        nn.LayerNorm(7),
        nn.Hardtanh(),
        nn.Linear(7, 3, bias=False),
    ).double()
    masks = {e.fqn: sk.Mask.from_dense(torch.rand(e.parameter.shape) < 0.6) for e in prunable(net)}
    for given in (None, masks):
        found = scores_of(net, ONES(1, 2, 6, 6), masks=given)
        sums = torch.stack([score.sum() for score in found.values()])
        torch.testing.assert_close(sums, sums[:1].expand(4), rtol=1e-12, atol=0)
        channels = found["0.weight"].sum((1, 2, 3)), found["3.weight"].sum((0, 2, 3))
        torch.testing.assert_close(*channels, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            found["3.weight"].sum((1, 2, 3)), found["8.weight"].sum(0).view(5, 4).sum(1), rtol=1e-12, atol=0
        )
        if given:
            assert all(torch.equal(found[n] > 0, m.to_dense() & (found[n] > 0)) for n, m in masks.items())


def test_a_trained_batchnorm_is_the_absolute_scaling_and_shift_that_it_is():
    torch.manual_seed(3)
    for affine in (True, False):
        norm = nn.BatchNorm1d(6, affine=affine)
        net = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 2)).double()
        norm.running_mean.normal_(std=3), norm.running_var.uniform_(0.5, 2)
        if affine:
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        net.eval()
        gain = norm.weight.detach() if affine else ONES(6).double()
        scale = gain.abs() / (norm.running_var + norm.eps).sqrt()
        w0, w1 = net[0].weight.detach().abs(), net[3].weight.detach().abs()
        before = w0.sum(1) + net[0].bias.detach().abs()
        if affine:
            shift = (norm.bias.detach() - norm.running_mean * gain / (norm.running_var + norm.eps).sqrt()).abs()
        else:
            shift = norm.running_mean.abs() * scale
        found = scores_of(net, ONES(1, 4))
        torch.testing.assert_close(found["0.weight"], w0 * (w1.sum(0) * scale)[:, None], rtol=1e-12, atol=0)
        torch.testing.assert_close(found["3.weight"], w1 * (before * scale + shift), rtol=1e-12, atol=0)


def test_no_layer_dies_before_it_must():
    """At a sparsity that leaves hardly more than a path, where one round of scores empties whole layers."""
    torch.manual_seed(4)
    model = make_vgg(7, width=12)
    layers = len(prunable(model))
    plan = sk.plan(model, None, keep=10 * layers, criterion=SynFlow(input_shape=(3, 8, 8)), engine="masked")
    assert plan.kept == 10 * layers and all(mask.count() > 0 for mask in plan.masks.values())
    alive = scores_of(model, ONES(1, 3, 8, 8), masks=plan.masks)
    assert all(float(score.sum()) > 0 for score in alive.values())
    one = sk.plan(model, None, keep=10 * layers, criterion=SynFlow(rounds=1, input_shape=(3, 8, 8)), engine="masked")
    assert any(mask.count() == 0 for mask in one.masks.values())


@pytest.mark.parametrize("gain", [1e-9, 1.0, 1e9], ids=str)
def test_deep_nets_neither_overflow_nor_vanish(gain):
    """40 layers, whose product leaves float64 for the outer gains."""
    torch.manual_seed(6)
    net = nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(6, 6), nn.ReLU())])
    with torch.no_grad():
        for module in net[::2]:
            module.weight.mul_(gain), module.bias.mul_(0)
    plan = sk.plan(net, None, keep=0.5, criterion=SynFlow(rounds=5, input_shape=(6,)), engine="masked")
    assert plan.kept == 40 * 18
    with torch.no_grad():
        for module in net[::2]:
            module.weight.div_(gain)
    again = sk.plan(net, None, keep=0.5, criterion=SynFlow(rounds=5, input_shape=(6,)), engine="masked")
    agree = sum(int((plan.masks[n].to_dense() == again.masks[n].to_dense()).sum()) for n in plan.masks)
    assert agree >= 40 * 36 - 20  # but for the rounding of the weights by their gain


def test_a_scaled_flow_has_the_scores_of_the_flow_biases_included():
    torch.manual_seed(7)
    net = nn.Sequential(make_vgg(4, norm=False), nn.LayerNorm(10), nn.Linear(10, 3)).double()
    flow = Flow(net.eval(), prunable(net), (ONES(1, 3, 8, 8),), {})
    weights = {name: flow.state[name] for name in flow.names}
    total, found = flow._at(weights, 0)
    for exponent in (-300, 200):
        scaled_total, scaled = flow._at(weights, exponent)
        assert scaled_total == total * 2.0 ** (2 * exponent)
        for name in found:
            assert torch.equal(scaled[name], found[name] * 2.0 ** (2 * exponent)), name


def test_the_input_is_seen_from_the_loader_or_told(mlp, vectors, cnn, images):
    for model, loader, shape in ((mlp, vectors, (20,)), (cnn, images, (3, 8, 8))):
        told = sk.plan(model, None, keep=0.1, criterion=SynFlow(rounds=5, input_shape=shape)).masks
        assert sk.plan(model, loader, keep=0.1, criterion=SynFlow(rounds=5)).masks == told
        own = sk.plan(
            model,
            [{"in": x, "out": y} for x, y in loader],
            keep=0.1,
            criterion=SynFlow(rounds=5),
            loss_fn=lambda model, batch: F.cross_entropy(model(batch["in"]), batch["out"]),
        )
        assert own.masks == told
    with pytest.raises(
        ValueError, match=r"synflow: input_shape must be given where there is no loader .* \(got None\)"
    ):
        sk.plan(mlp, None, keep=0.1, criterion="synflow")
    with pytest.raises(ValueError, match=r"synflow: loss_fn must call the model, .* \(got no call\)"):
        sk.plan(mlp, vectors, keep=0.1, criterion="synflow", loss_fn=lambda m, b: m[4](m[2](m[0](b[0]))).sum())


class Tagger(nn.Module):
    """Token ids, an embedding, attention, a mapping of outputs."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 12)
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.1, batch_first=True)
        self.head = nn.Linear(12, 11)

    def forward(self, ids, labels=None):
        logits = self.head(self.layer(self.table(ids)) + torch.zeros(12))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def test_mappings_of_token_ids_flow_through_their_embeddings():
    torch.manual_seed(8)
    model = Tagger()
    ids = torch.randint(0, 11, (2, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = sk.plan(model, [{"ids": ids, "labels": ids}], keep=0.2, criterion=SynFlow(rounds=10))
    assert plan.kept == round(0.2 * sum(mask.numel for mask in plan.masks.values()))
    assert all(plan.masks[name].count() for name in ("head.weight", "layer.linear1.weight", "layer.linear2.weight"))
    assert model.training and torch.get_default_dtype() == torch.float32
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{"scope": "erk"}, {"min_keep": 5}, {"balance": True}, {"block": (4, 4)}], ids=str)
def test_scopes_floors_and_blocks_hold(options, mlp, vectors):
    plan = sk.plan(mlp, vectors, keep=0.3, criterion=SynFlow(rounds=6), **options)
    if "block" in options:
        assert plan.layouts and abs(plan.kept - 392) <= 48
    else:
        assert plan.kept == 392
    if "min_keep" in options:
        assert all(mask.count() >= 5 for mask in plan.masks.values())


def test_recurrent_layers_and_half_precision_are_scored():
    torch.manual_seed(9)
    lstm = nn.LSTM(5, 6, batch_first=True).bfloat16()
    plan = sk.plan(lstm, None, keep=0.5, criterion=SynFlow(rounds=3, input_shape=(4, 5)))
    assert plan.kept == (24 * 5 + 24 * 6) // 2
    assert lstm.weight_ih_l0.dtype == torch.bfloat16 and torch.equal(lstm._flat_weights[0], lstm.weight_ih_l0)


def test_rounds_go_down_exponentially_and_nothing_comes_back(monkeypatch, mlp):
    history = []
    choose = sk.criteria.Context.choose
    monkeypatch.setattr(sk.criteria.Context, "choose", lambda *a: history.append(choose(*a)) or history[-1])
    history.append(sk.plan(mlp, None, keep=20, criterion=SynFlow(rounds=8, input_shape=(20,))).masks)
    assert [sum(m.count() for m in masks.values()) for masks in history] == counts(1306, 20, 8)
    for before, now in itertools.pairwise(history):
        assert all(not bool((now[n].to_dense() & ~before[n].to_dense()).any()) for n in now)


def test_bad_options_and_nets_without_flow(mlp):
    with pytest.raises(ValueError, match=r"synflow: rounds must be a positive integer \(got True\)"):
        SynFlow(rounds=True)
    for shape in (3, (), (3, 0), (2.0,)):
        with pytest.raises(ValueError, match="synflow: input_shape must be positive sizes"):
            SynFlow(input_shape=shape)
    with torch.no_grad():
        mlp[2].weight.zero_(), mlp[2].bias.zero_()
    with pytest.raises(ValueError, match="synflow: something must flow from the inputs to the outputs"):
        sk.plan(nn.Sequential(*mlp[:3]), None, keep=0.1, criterion=SynFlow(input_shape=(20,)))
