"""prune_ and plan: the right mask, the exact count, pruned stays pruned."""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from nets import make_cnn, make_mlp
from torch import nn

import snipkern as sk
from snipkern.testing import run_on, tiers

pytestmark = pytest.mark.usefixtures("one_thread")


def expected_mask(model: nn.Module, batch, kept: int, names: list[str]) -> dict[str, torch.Tensor]:
    """The top of a materialised |g * w|, ties by index: what selection must equal to the bit."""
    model = copy.deepcopy(model).eval()
    parameters = dict(model.named_parameters())
    loss = F.cross_entropy(model(batch[0]), batch[1])
    gradients = torch.autograd.grad(loss, [parameters[n] for n in names])
    scores = torch.cat([(g * parameters[n]).abs().flatten() for n, g in zip(names, gradients, strict=True)])
    flat = torch.zeros(scores.numel(), dtype=torch.bool)
    flat[scores.sort(descending=True, stable=True).indices[:kept]] = True
    parts = flat.split([parameters[n].numel() for n in names])
    return {n: part.view(parameters[n].shape) for n, part in zip(names, parts, strict=True)}


WEIGHTS = ["0.weight", "2.weight", "4.weight"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tier", tiers())
def test_mask_is_top_of_materialised_scores(tier, threads, vectors):
    model = make_mlp()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        total = sum(dict(model.named_parameters())[n].numel() for n in WEIGHTS)
        want = expected_mask(model, vectors[0], round(0.3 * total), WEIGHTS)
        with run_on(tier):
            masks = sk.plan(model, vectors, keep=0.3).masks
    finally:
        torch.set_num_threads(before)
    assert list(masks) == WEIGHTS
    for name in WEIGHTS:
        assert torch.equal(masks[name].to_dense(), want[name])


def test_mask_equals_torch_topk(vectors):
    model = make_mlp()
    scores = sk.score(model, vectors)
    flat = torch.cat([s.flatten() for s in scores.values()])
    kept = torch.zeros(flat.numel(), dtype=torch.bool)
    kept[flat.topk(100).indices] = True
    assert flat.topk(101).values[99] != flat.topk(101).values[100], "a tie at the threshold would prove nothing"
    masks = sk.plan(model, vectors, keep=100).masks
    assert torch.equal(torch.cat([m.to_dense().flatten() for m in masks.values()]), kept)


@pytest.mark.parametrize("keep", [0.001, 0.05, 1 / 3, 0.5, 1.0, 1, 7, 1306])
def test_kept_count_is_exact(keep, mlp, vectors):
    total = 20 * 33 + 33 * 17 + 17 * 5
    pruned = sk.prune_(mlp, vectors, keep=keep)
    assert pruned.kept == (keep if isinstance(keep, int) else round(keep * total))
    assert pruned.density == pruned.kept / total
    assert sum(m.count() for m in sk.masks(mlp).values()) == pruned.kept


def test_sparsity_is_one_minus_keep(mlp, vectors):
    assert sk.plan(mlp, vectors, sparsity=0.75).masks == sk.plan(mlp, vectors, keep=0.25).masks


def test_plan_changes_nothing_and_prune_is_plan_applied(vectors):
    model, twin = make_mlp(), make_mlp()
    twin.load_state_dict(model.state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = sk.plan(model, vectors, keep=0.2)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert type(model[0]) is nn.Linear
    pruned = plan.apply_()
    assert pruned.masks == plan.masks == sk.prune_(twin, vectors, keep=0.2).masks
    assert "not applied" in str(plan) and "not applied" not in str(pruned)
    assert not torch.equal(before["0.weight"], model[0].weight)
    with pytest.raises(ValueError, match=r"apply_: '0.weight' must be the parameter that was planned for"):
        plan.apply_()


def test_plan_for_a_parameter_that_is_gone_is_refused(mlp, vectors):
    plan = sk.plan(mlp, vectors, keep=0.2)
    mlp[2].weight = nn.Parameter(torch.randn(17, 33))
    with pytest.raises(ValueError, match=r"apply_: '2.weight' must be the parameter that was planned for"):
        plan.apply_()
    assert sk.masks(mlp) == {}


def test_root_module_and_references_survive(vectors):
    layer = nn.Linear(20, 5)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    pruned = sk.prune_(layer, vectors, keep=0.2, engine="csr")
    calls.clear()
    layer(vectors[0][0])
    assert calls == [1]
    assert list(pruned.masks) == ["weight"] and isinstance(layer, sk.nn.SparseLinear)


def test_parameters_are_only_what_is_kept(mlp, vectors):
    pruned = sk.prune_(mlp, vectors, keep=0.1, engine="csr")
    biases = 33 + 17 + 5
    assert sum(p.numel() for p in mlp.parameters()) == pruned.kept + biases


@pytest.mark.parametrize("engine", ["csr", "masked", "auto"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_pruned_stays_pruned_and_training_equals_masked_dense(engine, optimizer, images):
    model = make_cnn()
    dense = copy.deepcopy(model)
    masks = {k: m.to_dense() for k, m in sk.prune_(model, images, keep=0.2, engine=engine).masks.items()}
    named = dict(dense.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            named[name].mul_(mask)
    steps = [(model, optimizer(model.parameters())), (dense, optimizer(dense.parameters()))]
    for step in range(200):
        for net, opt in steps:
            torch.manual_seed(step)  # the same dropout in both
            opt.zero_grad()
            F.cross_entropy(net(images[step % 2][0]), images[step % 2][1]).backward()
            if net is dense:
                for name, mask in masks.items():
                    named[name].grad.mul_(mask)
            opt.step()
    for name, mask in masks.items():
        weight = model.get_submodule(name.rpartition(".")[0]).weight
        assert torch.count_nonzero(weight[~mask]) == 0
        assert torch.count_nonzero(weight[mask]) == mask.sum()
    x = images[0][0]
    losses = [F.cross_entropy(net.eval()(x), images[0][1]).item() for net in (model, dense)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[1] < 0.3


@pytest.mark.parametrize("engine", ["csr", "masked"])
def test_first_steps_equal_masked_dense(engine, vectors):
    model = make_mlp().double()
    data = [(x.double(), y) for x, y in vectors]
    dense = copy.deepcopy(model)
    masks = sk.prune_(model, data, keep=0.3, engine=engine).masks
    named = dict(dense.named_parameters())
    optimizers = []
    for net in (model, dense):
        optimizers.append(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3))
    for name, mask in masks.items():
        named[name].data.mul_(mask.to_dense())
    for x, y in data * 3:
        for net, opt in zip((model, dense), optimizers, strict=True):
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            if net is dense:
                for name, mask in masks.items():
                    named[name].grad.mul_(mask.to_dense())
            opt.step()
        torch.testing.assert_close(model(x), dense(x), rtol=1e-9, atol=1e-11)


def test_frozen_parts_and_biases_norms_embeddings_are_left_alone(cnn, images):
    cnn[0].weight.requires_grad_(False)
    pruned = sk.prune_(cnn, images, keep=0.5)
    assert list(pruned.masks) == ["3.weight", "7.weight"]
    assert type(cnn[0]) is nn.Conv2d


def test_groups_fall_back_to_masked_with_the_reason(cnn, images):
    pruned = sk.prune_(cnn, images, keep=0.3, engine="csr")
    by_name = {layer.name: layer for layer in pruned.layers}
    assert by_name["3.weight"].engine == "masked" and "2 groups" in by_name["3.weight"].reason
    assert by_name["0.weight"].engine == "csr"
    assert torch.count_nonzero(cnn[3].weight) == pruned.masks["3.weight"].count()


def test_filter_fn_chooses_modules(mlp, vectors):
    seen = []

    def keep_middle(module: nn.Module, fqn: str) -> bool:
        seen.append((type(module).__name__, fqn))
        return fqn == "2"

    assert list(sk.plan(mlp, vectors, keep=0.5, filter_fn=keep_middle).masks) == ["2.weight"]
    assert ("Linear", "0") in seen


def test_tied_weights_are_scored_once_and_stay_tied(vectors):
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.Linear(20, 5))
    model[2].weight = model[0].weight
    pruned = sk.prune_(model, vectors, keep=0.25)
    assert list(pruned.masks) == ["0.weight", "3.weight"]
    assert pruned.kept == round(0.25 * 500)
    assert model[0].weight is model[2].weight
    assert pruned.layers[0].engine == "masked" and "shared" in pruned.layers[0].reason
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in vectors:
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    assert torch.equal(model[0].weight != 0, pruned.masks["0.weight"].to_dense())


def test_weight_tied_to_an_embedding_is_not_pruned():
    embedding, head = nn.Embedding(7, 12), nn.Linear(12, 7, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(12, 12), head)
    batch = (torch.randint(0, 7, (3,)), torch.randint(0, 7, (3,)))
    assert list(sk.plan(model, [batch], keep=0.5).masks) == ["1.weight"]


def test_paper_preset_pools_biases_and_scores_another_draw(vectors):
    model = make_mlp()
    nn.init.zeros_(model[0].weight)  # the model's own draw must not matter for the scores
    weights = model[2].weight.detach().clone()
    pruned = sk.prune_(model, vectors, keep=0.1, preset="paper")
    assert list(pruned.masks) == [f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    assert pruned.kept == round(0.1 * (20 * 33 + 33 + 33 * 17 + 17 + 17 * 5 + 5))
    assert pruned.masks["0.weight"].count() > 0
    kept = pruned.masks["2.weight"].to_dense()
    assert torch.equal(model[2].weight[kept], weights[kept])  # trained from the model's own draw
    # Zero biases score zero, so none is kept, and a guard holds them there.
    assert pruned.masks["0.bias"].count() == 0 and torch.count_nonzero(model[0].bias) == 0


class WithLoss(nn.Module):
    """As a Hugging Face model: called with keywords, returns an object with a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_mlp()

    def forward(self, inputs, labels=None):
        logits = self.net(inputs)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return namedtuple("Output", "loss logits")(loss, logits)


def test_mapping_batches_and_loss_fn_agree_with_tuples(vectors):
    model = WithLoss()
    x, y = vectors[0]
    plain = sk.plan(model.net, vectors, keep=0.2).masks
    mapped = sk.plan(model, [{"inputs": x, "labels": y}], keep=0.2).masks
    own = sk.plan(
        model.net, [{"x": x, "y": y}], keep=0.2, loss_fn=lambda net, batch: F.cross_entropy(net(batch["x"]), batch["y"])
    ).masks
    assert {f"net.{k}": m for k, m in plain.items()} == mapped
    assert plain == own


def test_report_shows_every_layer_and_warns_of_cut_ones(vectors):
    model = make_mlp()
    text = str(
        sk.plan(
            model, vectors, keep=40, loss_fn=lambda m, b: F.cross_entropy(m(b[0]).detach() + m[4](torch.ones(17)), b[1])
        )
    )
    for fragment in ("0.weight", "33 x 20", "Linear", "3 parameters", f"{40 / 1306:.2%}"):
        assert fragment in text
    assert "nothing is kept of 0.weight, 2.weight" in text


def test_unused_parameters_score_zero(vectors):
    model = make_mlp()
    model.spare = nn.Linear(4, 4)
    masks = sk.plan(model, vectors, keep=0.2, loss_fn=lambda m, b: F.cross_entropy(m[:5](b[0]), b[1])).masks
    assert masks["spare.weight"].count() == 0


def test_missing_kernels_are_said_once_at_pruning(monkeypatch, mlp, vectors):
    monkeypatch.setattr(sk.backends, "missing_kernels", lambda *_: "snipkern._C is not built: no compiler")
    with pytest.warns(UserWarning, match="reference kernels, slower than dense: snipkern._C is not built: no compiler"):
        sk.prune_(mlp, vectors, keep=0.1, engine="csr")


def test_compiled_model_can_be_pruned(mlp, vectors):
    compiled = torch.compile(mlp, backend="aot_eager")
    x, y = vectors[0]
    before = compiled(x)
    pruned = sk.prune_(compiled, vectors, keep=0.3, engine="csr")
    assert all(name.startswith("_orig_mod.") for name in pruned.masks)
    assert not torch.equal(compiled(x), before)
    torch.testing.assert_close(compiled(x), mlp(x))
    F.cross_entropy(compiled(x), y).backward()
    assert mlp[0].weight_values.grad is not None
