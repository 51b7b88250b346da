"""Bad calls of prune_: a clear error that names the culprit, and a model that is exactly as it was."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from nets import make_mlp
from torch import nn

import snipkern as sk

pytestmark = pytest.mark.usefixtures("one_thread")


def snapshot(model: nn.Module):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [(type(m), m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()],
        [(id(p), p.requires_grad, p.grad is None) for p in model.parameters()],
        torch.get_rng_state(),
    )


def assert_untouched(model: nn.Module, before) -> None:
    after = snapshot(model)
    assert before[0].keys() == after[0].keys()
    for key, value in before[0].items():
        assert torch.equal(value.nan_to_num(123.0), after[0][key].nan_to_num(123.0)), key
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])


X, Y = torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))
GOOD = [(X, Y)]


def poison(where: str, value: float):
    def change(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(where).view(-1)[3] = value

    return change


def no_change(model: nn.Module) -> None:
    pass


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)


def prune_first(model: nn.Module) -> None:
    sk.prune_(model, GOOD, keep=0.5)


def raising_loss(model, batch):
    model(batch[0])
    torch.rand(3)
    raise RuntimeError("no loss today")


BAD_CALLS = {
    "empty loader": (no_change, {"loader": []}, r"score: loader must yield at least 1 batch \(got an empty loader\)"),
    "too few batches": (no_change, {"batches": 3}, r"score: loader must yield at least 3 batches \(got 1\)"),
    "loader is not iterable": (no_change, {"loader": 3}, r"score: loader must be an iterable of batches \(got int\)"),
    "batches zero": (no_change, {"batches": 0}, r"score: batches must be a positive integer \(got 0\)"),
    "float labels": (
        no_change,
        {"loader": [(X, Y.float())]},
        r"score: a batch must be .*loss_fn.*\(got tuple of float32",
    ),
    "bare tensor": (no_change, {"loader": [X]}, r"score: a batch must be .*\(got float32\[6, 3, 8, 8\]\)"),
    "vector loss": (
        no_change,
        {"loss_fn": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")},
        r"score: the loss must be a scalar tensor; take its mean \(got float32\[6\]\)",
    ),
    "loss is a float": (
        no_change,
        {"loss_fn": lambda m, b: 1.5},
        r"score: the loss must be a scalar tensor.*\(got float\)",
    ),
    "detached loss": (
        no_change,
        {"loss_fn": lambda m, b: m(b[0]).mean().detach()},
        r"score: the loss must depend on the weights",
    ),
    "infinite loss": (
        no_change,
        {"loss_fn": lambda m, b: m(b[0]).sum() * float("inf")},
        r"score: the loss must be finite",
    ),
    "raising loss": (no_change, {"loss_fn": raising_loss}, r"no loss today"),
    "keep zero": (no_change, {"keep": 0.0}, r"keep must be .*\(got 0.0\)"),
    "keep negative": (no_change, {"keep": -0.1}, r"keep must be .*\(got -0.1\)"),
    "keep above one": (no_change, {"keep": 1.5}, r"keep must be .*\(got 1.5\)"),
    "keep NaN": (no_change, {"keep": float("nan")}, r"keep must be .*\(got nan\)"),
    "count above N": (no_change, {"keep": 10**6}, r"keep must be .*\(got 1000000\)"),
    "count zero": (no_change, {"keep": 0}, r"keep must be .*\(got 0\)"),
    "keep True": (no_change, {"keep": True}, r"keep must be .*\(got True\)"),
    "keep text": (no_change, {"keep": "5%"}, r"keep must be .*\(got '5%'\)"),
    "neither": (no_change, {"keep": None}, r"give either keep or sparsity \(got keep=None, sparsity=None\)"),
    "both": (no_change, {"sparsity": 0.9}, r"give either keep or sparsity \(got keep=0.3, sparsity=0.9\)"),
    "sparsity one": (
        no_change,
        {"keep": None, "sparsity": 1.0},
        r"sparsity must be a fraction in \[0, 1\) \(got 1.0\)",
    ),
    "criterion": (
        no_change,
        {"criterion": "magic"},
        r"criterion must be one of snip, magnitude, .* Criterion \(got 'magic'\)",
    ),
    "engine": (no_change, {"engine": "warp"}, r"engine must be one of auto, bsr, cover, csr, masked \(got 'warp'\)"),
    "preset": (no_change, {"preset": "mine"}, r"preset must be one of paper \(got 'mine'\)"),
    "preset with batches": (no_change, {"preset": "paper", "batches": 2}, r"preset='paper' scores one batch"),
    "frozen": (freeze, {}, r"at least one prunable weight must be trainable .*'0.weight'"),
    "nothing prunable": (no_change, {"filter_fn": lambda m, n: False}, r"must have a prunable weight.*filter_fn"),
    "more than is left": (prune_first, {"keep": 0.6}, r"keep must be at most what is left, 432 of 864 weights"),
    "NaN weight": (
        poison("0.weight", float("nan")),
        {},
        r"weight '0.weight' must be finite \(got 1 non-finite of 216\)",
    ),
    "Inf weight": (poison("7.weight", float("inf")), {}, r"weight '7.weight' must be finite"),
    "not an optimizer": (no_change, {"optimizer": 3}, r"optimizer must be a torch.optim.Optimizer \(got int\)"),
    "foreign optimizer": (
        no_change,
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)},
        r"optimizer must train every pruned weight \(got one that lacks Conv2d.weight",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_bad_call_is_refused_and_leaves_no_trace(case, training, cnn):
    prepare, changes, message = BAD_CALLS[case]
    cnn.train(training)
    prepare(cnn)
    before = snapshot(cnn)
    arguments = {"loader": GOOD, "keep": 0.3, **changes}
    with pytest.raises((ValueError, RuntimeError), match=message):
        sk.prune_(cnn, **arguments)
    assert_untouched(cnn, before)


def test_non_finite_gradient_names_the_parameter(mlp, vectors):
    def loss_fn(model, batch):
        hidden = model[0](batch[0])
        hidden.register_hook(lambda g: g * float("inf"))
        return F.cross_entropy(model[4](model[3](model[2](model[1](hidden)))), batch[1])

    before = snapshot(mlp)
    with pytest.raises(ValueError, match=r"gradient of '0.weight' must be finite"):
        sk.prune_(mlp, vectors, keep=0.1, loss_fn=loss_fn)
    assert_untouched(mlp, before)


def test_parametrized_and_lazy_models_are_refused(vectors):
    model = make_mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match=r"parametrizations must be removed first.*\(got 0 \("):
        sk.prune_(model, vectors, keep=0.1)
    model = make_mlp()
    nn.utils.prune.random_unstructured(model[2], "weight", 0.5)
    with pytest.raises(ValueError, match=r"remove torch.nn.utils.prune"):
        sk.prune_(model, vectors, keep=0.1)
    with pytest.raises(ValueError, match=r"must be initialised.*\(got lazy '0.weight'\)"):
        sk.prune_(nn.Sequential(nn.LazyLinear(5)), vectors, keep=0.1)


def test_wrapped_parts_and_sharded_models_are_refused(tmp_path, vectors):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.Sequential(nn.parallel.DistributedDataParallel(make_mlp()))
        with pytest.raises(ValueError, match=r"must be pruned before it is wrapped or sharded \(got 0 \(Distr"):
            sk.prune_(wrapped, vectors, keep=0.1)
        whole = nn.parallel.DistributedDataParallel(make_mlp())
        with pytest.raises(ValueError, match=r"process_group must not be False for a model wrapped in Distributed"):
            sk.prune_(whole, vectors, keep=0.1, process_group=False)
        whole.mixed_precision = True
        with pytest.raises(ValueError, match=r"can't follow a change of its model; .* \(got mixed_precision\)"):
            sk.prune_(whole, vectors, keep=0.1)
        sharded = make_mlp()
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        torch.distributed.fsdp.fully_shard(sharded[2], mesh=mesh)
        with pytest.raises(
            ValueError, match=r"a sharded model can be pruned .* engine='masked' alone.*\(got engine='auto"
        ):
            sk.prune_(sharded, vectors, keep=0.1)
        with pytest.raises(ValueError, match=r"must be pruned before it is wrapped or sharded \(got 2 \("):
            sk.score(sharded, vectors)
    finally:
        torch.distributed.destroy_process_group()


def test_plan_and_prune_take_the_same_arguments(mlp):
    for name, parameter in inspect.signature(sk.plan).parameters.items():
        assert inspect.signature(sk.prune_).parameters[name] == parameter
    assert inspect.signature(sk.prune_).return_annotation == "Pruned"
    for call in (sk.plan, sk.prune_):
        with pytest.raises(TypeError, match=r"missing .*required .*argument.*loader"):
            call(mlp, keep=0.5)
        with pytest.raises(TypeError, match="unexpected keyword argument 'spasrity'"):
            call(mlp, GOOD, spasrity=0.5)


def test_a_plan_for_a_module_that_was_replaced_is_refused(mlp, vectors):
    plan = sk.plan(mlp, vectors, keep=0.2)
    mlp[2] = nn.Linear(33, 17)  # the planned one still exists, but the model has it no more
    with pytest.raises(ValueError, match=r"apply_: '2.weight' must be the parameter that was planned for"):
        plan.apply_()
    assert sk.masks(mlp) == {}
