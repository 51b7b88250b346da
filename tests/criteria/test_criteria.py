"""Every criterion against its formula in float64, and what is kept against a stable sort of its scores."""

from __future__ import annotations

import copy
import tracemalloc

import pytest
import torch
from naive import NETS, data_for, gradients_of, require_best
from test_prune_errors import assert_untouched, snapshot
from torch import nn

import snipkern as sk
from snipkern.allocation import SCOPES
from snipkern.criteria import CRITERIA, Criterion, Random, Scores, Shuffled, Snip, criterion_of
from snipkern.testing import peak_allocated

pytestmark = pytest.mark.usefixtures("one_thread")


def weights_of(model):
    return {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batches", [1, 2])
def test_scores_are_the_formulas(name, batches, generator):
    model = NETS[name]().double()
    data = [(x.double(), y) for x, y in data_for(name, generator, batches)]
    gradients, weights = gradients_of(copy.deepcopy(model), data), weights_of(model)
    want = {
        "snip": {n: (w * gradients[n]).abs() for n, w in weights.items()},
        "magnitude": {n: w.abs() for n, w in weights.items()},
    }
    want["snip-shuffled"] = want["snip"]
    before = snapshot(model)
    for criterion, scores in want.items():
        got = sk.score(model, data, criterion=criterion, batches=batches)
        assert list(got) == list(scores) and all(s.dtype == torch.float32 for s in got.values())
        for n, s in scores.items():
            torch.testing.assert_close(got[n].double(), s, rtol=1e-5, atol=1e-12)
    assert_untouched(model, before)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", NETS)
def test_the_best_by_any_criterion_are_kept(name, scope, generator):
    model, data = NETS[name](), data_for(name, generator)
    total = sum(w.numel() for w in weights_of(model).values())
    before = snapshot(model)
    for criterion in ("snip", "magnitude", "wanda"):
        for keep in (0.85, 0.97) if scope == "uniform" else (0.03, 0.5):
            plan = sk.plan(model, data, keep=keep, criterion=criterion, scope=scope)
            scores = sk.score(model, data, criterion=criterion)
            require_best(plan, scores, scope, round(keep * total))
    assert_untouched(model, before)


class Given(Criterion):
    """Scores from pairs that are given."""

    name = "given"
    needs_data = False

    def __init__(self, pairs, formula, update=None):
        self.found = Scores(pairs, formula, update)

    def scores(self, on):
        return self.found


def given(model, formula, generator, ties=False):
    others = {n: torch.randn(w.shape, generator=generator) for n, w in weights_of(model).items()}
    if ties:
        return Given({n: (w.sign(), others[n].round()) for n, w in weights_of(model).items()}, formula)
    return Given({n: (w, others[n]) for n, w in weights_of(model).items()}, formula)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("formula", ["snip", "magnitude", "obd", "signed"])
@pytest.mark.parametrize("ties", [False, True])
def test_every_formula_goes_with_every_scope(formula, scope, ties, generator):
    model = NETS["cnn"]()
    criterion = given(model, formula, generator, ties)
    scores = {
        n: {"snip": (w * o).abs(), "magnitude": w.abs(), "obd": w * (w * o), "signed": w * o}[formula]
        for n, (w, o) in criterion.found.pairs.items()
    }
    for n, s in sk.score(model, None, criterion=criterion).items():
        assert torch.equal(s, scores[n])
    total = sum(s.numel() for s in scores.values())
    for keep in (300, total // 2, total - 1):
        plan = sk.plan(model, None, keep=keep, criterion=criterion, scope=scope)
        require_best(plan, scores, scope, keep)
    floors = sk.plan(model, None, keep=300, criterion=criterion, scope=scope, min_keep=40)
    assert floors.kept == 300 and all(mask.count() >= 40 for mask in floors.masks.values())


def test_magnitude_and_random_need_no_data():
    model = NETS["mlp"]()
    scores = {n: w.abs() for n, w in weights_of(model).items()}
    for memory in ("plain", "stream"):
        require_best(sk.plan(model, None, keep=0.1, criterion="magnitude", memory=memory), scores, "global", 131)
    assert sk.prune_(model, None, keep=0.1, criterion="random", scope="erk").kept == 131


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_one_batch_tells_how_layers_are_called(criterion, generator):
    model, data = NETS["cnn"](), data_for("cnn", generator)
    before = snapshot(model)
    plan = sk.plan(model, data, keep=0.1, criterion=criterion, cascade=True)
    assert before[0].keys() == snapshot(model)[0].keys()
    first, _, last = plan.layers
    assert first.work.input == (6, 3, 8, 8) and not first.work.assumed and not first.work.input_grad
    assert last.work.input == (6, 72) and last.work.input_grad
    assert all(layer.flow.traced for layer in plan.layers)
    assert all(
        layer.work is None or layer.work.assumed for layer in sk.plan(model, None, 0.1, criterion="magnitude").layers
    )


def test_random_is_uniform_over_all_weights_and_follows_the_seed():
    model = NETS["mlp"]()
    torch.manual_seed(5)
    first = sk.plan(model, None, keep=0.5, criterion="random").masks
    second = sk.plan(model, None, keep=0.5, criterion="random").masks
    torch.manual_seed(5)
    again = sk.plan(model, None, keep=0.5, criterion=Random()).masks
    assert first == again != second
    # A hypergeometric share, within five deviations.
    total = sum(mask.numel for mask in first.values())
    for masks in (first, second):
        for mask in masks.values():
            deviation = (0.25 * mask.numel * (1 - mask.numel / total)) ** 0.5
            assert abs(mask.count() - mask.numel / 2) < 5 * deviation
    loose = (first["0.weight"].to_dense() & second["0.weight"].to_dense()).float().mean()
    assert 0.18 < loose < 0.32  # of independent halves
    blocks = sk.plan(model, None, keep=0.5, criterion="random", block=(2, 2), scope="layer")
    assert set(blocks.layouts) == {"0.weight", "2.weight"}


def test_shuffled_keeps_anothers_quotas(generator):
    model, data = NETS["cnn"](), data_for("cnn", generator)
    for of in (Snip(), CRITERIA["magnitude"], given(model, "signed", generator)):
        plain = sk.plan(model, data, keep=0.2, criterion=of)
        drawn = sk.plan(model, data, keep=0.2, criterion=Shuffled(of))
        assert {n: m.count() for n, m in plain.masks.items()} == {n: m.count() for n, m in drawn.masks.items()}
        assert drawn.masks != plain.masks
    with pytest.raises(ValueError, match=r"shuffled: of must be another criterion \(got 'snip'\)"):
        Shuffled("snip")


def test_names(generator):
    assert {"snip", "magnitude", "random", "snip-shuffled", "wanda"} <= set(CRITERIA)
    assert all(criterion_of(name) is CRITERIA[name] and CRITERIA[name].name == name for name in CRITERIA)
    for wrong in ("erk", Snip, None, 3):
        with pytest.raises(
            ValueError, match=r"prune: criterion must be one of snip, .*, or an instance of a Criterion"
        ):
            criterion_of(wrong)


class LargestGradient(Criterion):
    """The example of the documentation."""

    name = "largest-gradient"

    def scores(self, on):
        return Scores({name: (g, g) for name, g in on.gradients().items()}, "magnitude")


def test_a_criterion_of_ones_own(generator):
    model, data = NETS["cnn"](), data_for("cnn", generator, batches=3)
    scores = {n: g.abs() for n, g in gradients_of(copy.deepcopy(model), data[:1]).items()}
    plan = sk.plan(model, data, keep=0.2, criterion=LargestGradient())
    require_best(plan, scores, "global", plan.kept)
    assert sk.prune_(model, data, keep=0.2, criterion=LargestGradient(), block=(2, 2)).layouts


ONES = {"0.weight": torch.ones(33, 20), "2.weight": torch.ones(17, 33), "4.weight": torch.ones(5, 17)}


def pairs(**changes):
    found = {**ONES, **{name.replace("_", "."): value for name, value in changes.items()}}
    return {name: (value, value) for name, value in found.items() if value is not None}


class Lazy(dict):
    """A mapping whose values are seen at look-ups alone."""


BAD = {
    "no scores": (lambda: None, r"given: a criterion must return Scores \(got NoneType\)"),
    "formula": (lambda: Scores(pairs(), "abs"), r"given: formula must be one of snip, .*, signed \(got 'abs'\)"),
    "missing": (lambda: Scores(pairs(**{"2_weight": None})), r"in the pool \(got none for '2.weight'\)"),
    "spare": (lambda: Scores(pairs(**{"2_bias": torch.ones(17)})), r"in the pool \(got some for '2.bias'\)"),
    "shape": (
        lambda: Scores(pairs(**{"2_weight": torch.ones(33, 17)})),
        r"given: scores of '2.weight' must have its shape and device, \[17, 33\] on cpu \(got \[33, 17\] on cpu\)",
    ),
    "device": (lambda: Scores(pairs(**{"2_weight": torch.ones(17, 33, device="meta")})), r"2.weight.*on meta\)"),
    "shape at a look-up": (
        lambda: Scores(Lazy(pairs(**{"2_weight": torch.ones(33, 17)}))),
        r"'2.weight' must have its",
    ),
    "dtype": (
        lambda: Scores(pairs(**{"2_weight": torch.ones(17, 33).long()})),
        r"weight of '2.weight' must be a dense",
    ),
    "not finite": (
        lambda: Scores(pairs(**{"2_weight": torch.full((17, 33), torch.nan)})),
        r"weight of '2.weight' must be finite \(got 561 non-finite of 561\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("scope", ["global", "row"])
def test_what_a_criterion_says_is_checked(name, scope, generator):
    make, message = BAD[name]
    model = NETS["mlp"]()
    criterion = Given({}, "snip")
    criterion.found = make()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        sk.prune_(model, data_for("mlp", generator), keep=0.2, criterion=criterion, scope=scope)
    assert_untouched(model, before)


def test_a_criterion_that_fails_or_meddles_leaves_no_trace(generator):
    class Meddling(Criterion):
        name = "meddling"

        def scores(self, on):
            on.model.train()
            on.loss_fn(on.model, next(on.given())).backward()
            torch.rand(3)
            raise RuntimeError("no scores today")

    model, data = NETS["cnn"]().eval(), data_for("cnn", generator)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no scores today"):
        sk.prune_(model, data, keep=0.2, criterion=Meddling())
    assert_untouched(model, before)


CALLS = {
    "data": ({"criterion": "snip"}, r"prune: loader must be given for criterion='snip' \(got None\)"),
    "shuffled data": ({"criterion": "snip-shuffled"}, r"prune: loader must be given for criterion='snip' \(got None\)"),
    "paper": (
        {"criterion": "magnitude", "preset": "paper"},
        r"preset='paper' is one of criterion='snip' \(got .*magnitude",
    ),
    "stream": (
        {"criterion": "wanda", "memory": "stream", "loader": [0]},
        r"prune: memory='stream' goes with criterion='snip' \(got criterion='wanda'\)",
    ),
    "batches": ({"criterion": "magnitude", "batches": 0}, r"score: batches must be a positive integer \(got 0\)"),
    "scope": ({"criterion": "magnitude", "scope": "rows"}, r"scope must be one of global, .*, row \(got 'rows'\)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls(name):
    options, message = CALLS[name]
    model = NETS["mlp"]()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        sk.prune_(model, **{"loader": None, "keep": 0.2, **options})
    assert_untouched(model, before)


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_no_copy_of_all_scores_is_made(criterion):
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(8)))
    layer = 4 * 512 * 512
    tracemalloc.start()  # of what numpy draws
    try:
        tensors = peak_allocated(lambda: sk.plan(model, None, keep=0.1, criterion=criterion, engine="masked"))
        drawn = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Masks and candidates; of random scores those of a layer, and of the one before.
    assert tensors < 1.5 * layer and (drawn < layer if criterion == "magnitude" else layer < drawn < 3 * layer)
