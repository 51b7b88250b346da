"""Pruning a pruned model again: exact, nested, whatever its layers compute with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from nets import make_cnn, make_mlp
from torch import nn

import snipkern as sk
from snipkern.criteria import Criterion, Scores
from snipkern.ops.schema_saliency import SCORES

pytestmark = pytest.mark.usefixtures("one_thread")
ENGINES = ["csr", "masked"]


def total(model: nn.Module) -> int:
    return sum(mask.numel for mask in sk.masks(model).values())


def dense_of(model: nn.Module) -> dict[str, torch.Tensor]:
    found = sk.dense_state_dict(model)
    return {name: found[name].clone() for name in sk.masks(model)}


def require_nested(after: dict[str, sk.Mask], before: dict[str, sk.Mask]) -> None:
    assert after.keys() == before.keys()
    for name, mask in after.items():
        assert not (mask.words & ~before[name].words).any(), name


def best_left(scores: dict[str, torch.Tensor], held: dict[str, sk.Mask], kept: int) -> dict[str, torch.Tensor]:
    """The first by (score, parameter, index) among what is left: a sort of all scores."""
    left = torch.cat([held[name].to_dense().flatten() for name in scores])
    flat = torch.cat([score.flatten() for score in scores.values()])
    places = left.nonzero()[:, 0]
    chosen = torch.zeros_like(left)
    chosen[places[flat[places].sort(descending=True, stable=True).indices[:kept]]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(scores[name].shape) for (name, part) in zip(scores, parts, strict=True)}


def snip_scores(model: nn.Module, batch) -> dict[str, torch.Tensor]:
    """|g * w| of a dense copy, with autograd alone."""
    names = list(sk.masks(model))
    dense = sk.to_dense_(copy.deepcopy(model)).eval()
    weights = dict(dense.named_parameters())
    found = torch.autograd.grad(F.cross_entropy(dense(batch[0]), batch[1]), [weights[name] for name in names])
    return {name: (g * weights[name].detach()).abs() for name, g in zip(names, found, strict=True)}


@pytest.mark.parametrize("first", [*ENGINES, "auto"])
@pytest.mark.parametrize("second", ENGINES)
@pytest.mark.parametrize("make, data", [(make_mlp, "vectors"), (make_cnn, "images")])
def test_snip_again_is_the_top_of_what_is_left(first, second, make, data, request):
    batches = request.getfixturevalue(data)
    model = make().double()  # so that the oracle's sums are the model's, but for rounding far below float32
    batches = [(x.double(), y) for x, y in batches]
    modules = list(model.modules())
    sk.prune_(model, batches, keep=0.5, engine=first)
    before, scores, values = sk.masks(model), snip_scores(model, batches[0]), dense_of(model)
    pruned = sk.prune_(model, batches, keep=0.2, engine=second)
    assert pruned.kept == round(0.2 * total(model))
    want = best_left(scores, before, pruned.kept)
    for name, mask in sk.masks(model).items():
        assert torch.equal(mask.to_dense(), want[name]), name
        assert torch.equal(dense_of(model)[name], values[name] * want[name])
        assert pruned.masks[name] == mask
    assert list(model.modules()) == modules
    assert {layer.kind for layer in pruned.layers} <= {"Linear", "Conv2d"}
    output = model(batches[0][0])
    dense = sk.to_dense_(copy.deepcopy(model))
    torch.testing.assert_close(output, dense(batches[0][0]) if make is make_mlp else output)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "snip-shuffled", "wanda"])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_criteria_keep_a_part_of_what_is_left(criterion, engine, mlp, vectors):
    counts = []
    for keep in (0.6, 0.3, 0.1, 0.01):
        before = sk.masks(mlp)
        pruned = sk.prune_(mlp, vectors, keep=keep, criterion=criterion, engine=engine)
        assert pruned.kept == round(keep * 1306) == sum(mask.count() for mask in sk.masks(mlp).values())
        if before:
            require_nested(sk.masks(mlp), before)
        counts.append(pruned.kept)
    assert torch.isfinite(mlp(vectors[0][0])).all()


@pytest.mark.parametrize("criterion", sk.criteria.CRITERIA)
def test_every_criterion_comes_to_the_same_whatever_layers_compute_with(criterion, vectors):
    data, masks = [(x.double(), y) for x, y in vectors], []
    for engine in ENGINES:
        torch.manual_seed(0)
        model = make_mlp().double()
        before = sk.prune_(model, data, keep=0.5, engine=engine).masks
        found = sk.prune_(model, data, keep=0.2, engine=engine, criterion=criterion)
        assert found.kept == 261
        require_nested(found.masks, before)
        masks.append(found.masks)
    # OBS takes blocks of weights that follow each other in what is stored.
    assert criterion == "obs" or masks[0] == masks[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_wanda_again_compares_within_what_is_left_of_each_row(engine, vectors):
    model = nn.Sequential(nn.Linear(20, 16))
    sk.prune_(model, vectors, keep=0.5, criterion="wanda", engine=engine)
    before, weight = sk.masks(model)["0.weight"].to_dense(), dense_of(model)["0.weight"]
    sk.prune_(model, vectors, keep=0.2, criterion="wanda", engine=engine)
    scores = (weight.abs() * vectors[0][0].norm(dim=0)).masked_fill(~before, -1)
    want = torch.zeros_like(before).scatter_(1, scores.topk(4, dim=1).indices, True)
    assert torch.equal(sk.masks(model)["0.weight"].to_dense(), want)


@dataclass(frozen=True)
class Given(Criterion):
    """Scores with a formula of choice, from a second factor that is given for all of each dense weight."""

    others: dict[str, torch.Tensor]
    formula: str
    name: ClassVar[str] = "given"
    needs_data: ClassVar[bool] = False

    def scores(self, on) -> Scores:
        weights = on.weights()
        return Scores({name: (weights[name], self.others[name]) for name in weights}, self.formula)


@pytest.mark.parametrize("formula", ["snip", "magnitude", "obd", "signed"])
@pytest.mark.parametrize("sign", [-1.0, 0.0])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"scope": "layer"}, {"balance": True}, {"scope": "row"}, {"min_keep": 30}])
def test_what_is_pruned_loses_against_scores_of_zero_and_below(formula, sign, engine, options, mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.4, engine=engine)
    with torch.no_grad():
        for name, parameter in mlp.named_parameters():
            if "weight" in name and formula == "magnitude":
                parameter.mul_(sign)
    before = sk.masks(mlp)
    dense = dense_of(mlp)
    others = {
        name: sign * (dense[name] if formula == "signed" else torch.rand(mask.shape)) for name, mask in before.items()
    }
    pruned = sk.prune_(mlp, None, keep=0.3, criterion=Given(others, formula), engine=engine, **options)
    assert pruned.kept == round(0.3 * 1306)
    require_nested(sk.masks(mlp), before)
    if not options:
        scores = {
            "snip": lambda w, o: (w * o).abs(),
            "magnitude": lambda w, o: w.abs(),
            "obd": lambda w, o: w * (w * o),
            "signed": lambda w, o: w * o,
        }[formula]
        want = best_left({name: scores(dense[name], others[name]) for name in before}, before, pruned.kept)
        for name, mask in sk.masks(mlp).items():
            assert torch.equal(mask.to_dense(), want[name])


def test_formulas_are_all_tried():
    assert set(SCORES) == {"snip", "magnitude", "obd", "signed"}


@pytest.mark.parametrize("scope", ["layer", "erk", "row", "uniform"])
def test_scopes_share_out_all_weights_but_at_most_what_is_left(scope, mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.6)
    before = sk.masks(mlp)
    pruned = sk.prune_(mlp, vectors, keep=0.55, scope=scope)
    assert pruned.kept == round(0.55 * 1306)
    require_nested(sk.masks(mlp), before)
    if scope == "uniform":
        assert sk.masks(mlp)["0.weight"] == before["0.weight"], "the first layer keeps all that it has"


def test_floors_are_shares_of_all_weights(mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.4, min_keep=0.2)
    sk.prune_(mlp, vectors, keep=0.15, min_keep=0.1)
    assert sk.masks(mlp)["4.weight"].count() >= 9
    assert sum(mask.count() for mask in sk.masks(mlp).values()) == round(0.15 * 1306)


def test_streamed_gradients_give_the_same_masks(cnn, images):
    sk.prune_(cnn, images, keep=0.5, engine="csr")
    assert {layer.engine for layer in sk.plan(cnn, images, keep=0.4, engine="csr").layers} == {"csr", "masked"}
    plain = sk.plan(cnn, images, keep=0.2).masks
    assert sk.plan(cnn, images, keep=0.2, memory="stream").masks == plain


def test_plan_changes_nothing_and_is_for_one_state(mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, engine="csr")
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    first, second = (sk.plan(mlp, vectors, keep=keep, engine="csr") for keep in (0.3, 0.2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.state_dict().items())
    first.apply_()
    with pytest.raises(ValueError, match=r"apply_: '0.weight' must be the parameter that was planned for"):
        second.apply_()


@pytest.mark.parametrize(
    "keep, options, message",
    [
        (0.51, {}, r"keep must be at most what is left, 653 of 1306 weights \(0.5\) \(got 666\)"),
        (0.2, {"preset": "paper"}, r"preset must be None for a model that is pruned already"),
        (
            0.2,
            {"block": (4, 4)},
            r"'0.weight' can't be pruned again so \(what is left must be in whole blocks of 4 x 4",
        ),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_changes(keep, options, message, mlp, vectors):
    optimizer = torch.optim.Adam(mlp.parameters())
    sk.prune_(mlp, vectors, keep=0.5, engine="csr", optimizer=optimizer)
    before, held = copy.deepcopy(mlp.state_dict()), list(mlp.parameters())
    with pytest.raises(ValueError, match=message):
        sk.prune_(mlp, vectors, keep=keep, optimizer=optimizer, **options)
    assert [id(parameter) for parameter in mlp.parameters()] == [id(parameter) for parameter in held]
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.state_dict().items())
    assert [id(parameter) for parameter in optimizer.param_groups[0]["params"]] == list(map(id, held))


def test_an_optimizer_that_trains_something_else_is_refused(mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, engine="csr")
    masks = sk.masks(mlp)
    with pytest.raises(ValueError, match="optimizer must train every pruned weight"):
        sk.prune_(mlp, vectors, keep=0.2, optimizer=torch.optim.SGD(make_mlp().parameters(), lr=0.1))
    assert sk.masks(mlp) == masks


OPTIMIZERS = {
    "momentum": lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9),
    "amsgrad": lambda named: torch.optim.AdamW(named, amsgrad=True),
    "rprop": lambda named: torch.optim.Rprop(named),
}


@pytest.mark.parametrize("first", ENGINES)
@pytest.mark.parametrize("second", ENGINES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_and_gradients_move_along(first, second, name, vectors):
    model = make_mlp()
    optimizer = OPTIMIZERS[name](model.named_parameters())
    sk.prune_(model, vectors, keep=0.5, engine=first, optimizer=optimizer)
    for inputs, labels in vectors:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    def spread(tensor: torch.Tensor, mask: sk.Mask) -> torch.Tensor:
        dense = torch.zeros(mask.shape)
        dense[mask.to_dense()] = tensor if tensor.dim() == 1 else tensor[mask.to_dense()]
        return dense

    def moments() -> dict[str, torch.Tensor]:
        """Of the first layer's weight, as dense tensors, its gradient among them."""
        mask, parameter = sk.masks(model)["0.weight"], next(model[0].parameters())
        found = {key: value for key, value in optimizer.state[parameter].items() if torch.is_tensor(value)}
        assert all(value.shape == parameter.shape for value in found.values() if value.dim())
        found["grad"] = parameter.grad
        return {key: spread(value, mask) if value.dim() else value.clone() for key, value in found.items()}

    before = moments()
    assert len(before) > 1
    sk.prune_(model, vectors, keep=0.2, engine=second, optimizer=optimizer)
    after, mask = moments(), sk.masks(model)["0.weight"].to_dense()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value * mask if value.dim() else value), key
    names = optimizer.param_groups[0]["param_names"]
    assert names == [key for key, _ in model.named_parameters()]
    held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert held == {id(parameter) for parameter in model.parameters()} and set(map(id, optimizer.state)) <= held
    optimizer.step()
    assert sk.masks(model)["0.weight"].to_dense().sum() == torch.count_nonzero(dense_of(model)["0.weight"])


@pytest.mark.parametrize("first, second", [("csr", "csr"), ("masked", "csr"), ("csr", "masked"), ("masked", "masked")])
def test_hooks_copies_state_dicts_and_compiled_models_survive(first, second, mlp, vectors):
    seen = []
    mlp[0].register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    sk.prune_(mlp, vectors, keep=0.5, engine=first)
    compiled = torch.compile(mlp, backend="eager")
    compiled(vectors[0][0])
    sk.prune_(mlp, vectors, keep=0.2, engine=second)
    want = mlp(vectors[0][0])
    torch.testing.assert_close(compiled(vectors[0][0]), want)
    torch.testing.assert_close(copy.deepcopy(mlp)(vectors[0][0]), want)
    assert seen[-1] == ("SparseLinear" if second == "csr" else "Linear")
    twin = sk.load_(make_mlp(), mlp.state_dict())
    torch.testing.assert_close(twin(vectors[0][0]), want)
    assert sk.masks(twin) == sk.masks(mlp)
    sk.prune_(twin, vectors, keep=0.1)
    require_nested(sk.masks(twin), sk.masks(mlp))


def test_hooks_on_parameters_are_named_but_not_those_of_guards(mlp, vectors, recwarn):
    sk.prune_(mlp, vectors, keep=0.5, engine="masked")
    sk.prune_(mlp, vectors, keep=0.4, engine="csr")
    assert not recwarn
    mlp[0].weight_values.register_hook(lambda gradient: gradient)
    with pytest.warns(UserWarning, match=r"Linear.weight: hooks on the parameter are not carried over"):
        sk.prune_(mlp, vectors, keep=0.3, engine="csr")


def test_frozen_and_filtered_weights_stay_as_they_are(mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, engine="csr")
    mlp[4].weight_values.requires_grad_(False)
    before = sk.masks(mlp)
    sk.prune_(mlp, vectors, keep=0.2, engine="csr", filter_fn=lambda module, name: name != "2")
    after = sk.masks(mlp)
    assert after["2.weight"] == before["2.weight"] and after["4.weight"] == before["4.weight"]
    assert after["0.weight"].count() == round(0.2 * 660)
    assert not mlp[4].weight_values.requires_grad


def test_biases_that_are_pruned_are_pruned_again(mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, preset="paper", engine="csr")
    before = sk.masks(mlp)
    assert "0.bias" in before
    sk.prune_(mlp, vectors, keep=0.1, engine="masked", criterion="magnitude")
    require_nested(sk.masks(mlp), before)
    assert sum(mask.count() for mask in sk.masks(mlp).values()) == round(0.1 * total(mlp))


def test_tied_weights(vectors):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(20, 20), nn.Linear(20, 20)
            self.down.weight = self.up.weight

        def forward(self, x):
            return self.down(torch.relu(self.up(x)))

    model = Tied()
    data = [(x, y % 5) for x, y in vectors]
    sk.prune_(model, data, keep=0.5)
    sk.prune_(model, data, keep=0.1)
    assert list(sk.masks(model)) == ["up.weight"] and sk.masks(model)["up.weight"].count() == 40
    assert model.down.weight is model.up.weight and torch.count_nonzero(model.down.weight) == 40


def test_scores_to_look_at_are_zero_where_pruned(mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, engine="csr")
    found = sk.score(mlp, vectors)
    want = snip_scores(mlp, vectors[0])
    for name, mask in sk.masks(mlp).items():
        torch.testing.assert_close(found[name], want[name] * mask.to_dense())
