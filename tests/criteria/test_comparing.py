"""Criteria beside a yardstick: rank correlations, what is kept in common, the table."""

import math

import explicit
import pytest
import torch
from explicit import build, flat

import snipkern as sk
from snipkern.comparing import Agreement, spearman
from snipkern.criteria import Magnitude, Obd, Random, Shuffled


def by_counting(a, b):
    """Spearman's correlation, with ranks by counting what is smaller."""

    def ranks(values):
        smaller = (values.unsqueeze(0) < values.unsqueeze(1)).sum(1)
        equal = (values.unsqueeze(0) == values.unsqueeze(1)).sum(1)
        return smaller + (equal + 1) / 2

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]).double())[0, 1])


def test_spearman(generator):
    for levels in (2, 5, 10**6):  # many ties, and hardly any
        for n in (2, 3, 50):
            a, b = (torch.randint(0, levels, (n,), generator=generator).float() for _ in range(2))
            a[0], a[1], b[0], b[1] = 0, 1, 1, 0
            assert spearman(a, b) == pytest.approx(by_counting(a, b), abs=1e-12)
    a = torch.randn(4, 5, generator=generator)
    assert spearman(a, a.exp()) == 1.0
    assert spearman(a, -a) == -1.0
    assert math.isnan(spearman(a, torch.ones(20)))
    assert spearman(torch.tensor([0.0, -0.0, 1.0]), torch.tensor([2.0, 2.0, 3.0])) == 1.0


def test_what_it_says_of_some_criteria():
    model, batches = build("convolutional", dtype=torch.float32)
    before = explicit.state_of(model)
    criteria = ["snip", "magnitude", Obd(curvature="fisher"), "grasp", "wanda"]
    found = sk.compare(model, batches, criteria, keep=0.2, batches=2)
    explicit.same_state(before, explicit.state_of(model))
    names = list(explicit.pooled(model))
    labels = ["snip", "magnitude", "obd(curvature='fisher')", "grasp", "wanda"]
    assert [(row.criterion, row.parameter) for row in found.rows] == [(a, b) for a in labels for b in [None, *names]]
    assert found.against == "leave-one-out"
    best = sk.plan(model, batches, 0.2, criterion="leave-one-out", batches=2).masks
    yardstick = sk.score(model, batches, criterion="leave-one-out", batches=2)
    rows = iter(found.rows)
    for criterion in criteria:
        scores = sk.score(model, batches, criterion=criterion, batches=2)
        masks = sk.plan(model, batches, 0.2, criterion=criterion, batches=2).masks
        for some in ([*names], *([name] for name in names)):
            row = next(rows)
            kept, wanted = (flat({name: of[name].to_dense() for name in some}) for of in (masks, best))
            assert (row.numel, row.kept, row.wanted) == (len(kept), int(kept.sum()), int(wanted.sum()))
            assert row.common == int((kept & wanted).sum())
            a, b = (flat({name: of[name] for name in some}) for of in (scores, yardstick))
            assert row.spearman == pytest.approx(by_counting(a, b), abs=1e-9)
    assert list(found.overall) == labels
    assert found.overall["snip"] is found.rows[0]


def test_a_criterion_agrees_with_itself():
    model, batches = build("tied", dtype=torch.float32)
    row = sk.compare(model, batches, ["snip"], against="snip", keep=9).rows[0]
    assert (row.spearman, row.overlap, row.jaccard, row.kept) == (1.0, 1.0, 1.0, 9)


def test_random_masks():
    model, batches = build("perceptron")
    torch.manual_seed(3)
    found = sk.compare(model, batches, ["random", "snip-shuffled", Shuffled(Magnitude())], against="snip", keep=0.5)
    quotas = {name: mask.count() for name, mask in sk.plan(model, batches, 0.5).masks.items()}
    shuffled = [row for row in found.rows if row.criterion == "snip-shuffled"]
    assert {row.parameter: row.kept for row in shuffled[1:]} == quotas
    assert all(math.isnan(row.spearman) for row in shuffled)
    assert -1 < found.overall["random"].spearman < 1
    assert "snip-shuffled(of=Magnitude())" in found.overall
    torch.manual_seed(3)
    again = sk.compare(model, batches, ["random"], against="snip", keep=0.5)
    assert again.overall["random"] == found.overall["random"]


def test_agreements():
    row = Agreement("snip", None, 100, 0.5, kept=10, wanted=5, common=3)
    assert row.overlap == 3 / 5
    assert row.jaccard == 3 / 12
    empty = Agreement("snip", "a", 100, 0.5, kept=0, wanted=0, common=0)
    assert math.isnan(empty.overlap)
    assert math.isnan(empty.jaccard)


def test_the_table():
    rows = [
        Agreement("snip", None, 12345, 0.9371, 617, 617, 500),
        Agreement("snip", "0.weight", 12345, math.nan, 617, 617, 500),
        Agreement("random", None, 12345, -0.001, 617, 0, 0),
    ]
    lines = str(sk.Comparison("leave-one-out", 0.05, rows)).splitlines()
    assert lines[0] == "criteria against leave-one-out, 5.00% kept (chance: 5.00% in common)"
    assert "rank correlation" in lines[2]
    cells = [line.split() for line in lines if any(c.isdigit() for c in line)][1:]
    assert cells == [
        ["snip", "all", "12,345", "+0.937", "617", "617", "81.0%", "0.681"],
        ["0.weight", "12,345", "-", "617", "617", "81.0%", "0.681"],
        ["random", "all", "12,345", "-0.001", "617", "0", "-", "0.000"],
    ]


@pytest.mark.parametrize(
    ("criteria", "options", "text"),
    [
        ([], {}, "compare: criteria must be one or more, each of them once (got none)"),
        (["snip", "snip"], {}, "compare: criteria must be one or more, each of them once (got snip, snip)"),
        (["snip"], {"against": "snip-shuffled"}, "compare: against must be a criterion with scores of its own (got snip-shuffled)"),
        (["snip"], {"keep": 0.0}, "select: keep must be a fraction in (0, 1] or a count in [1, 32] (got 0.0)"),
    ],
)  # fmt: skip
def test_errors(criteria, options, text):
    model, batches = build("perceptron")
    with pytest.raises(ValueError) as error:
        sk.compare(model, batches, criteria, **options)
    assert str(error.value) == text


def test_without_data():
    model, _ = build("perceptron")
    assert sk.compare(model, None, [Random()], against="magnitude", keep=0.5).overall["random"].numel == 32
    with pytest.raises(ValueError, match="loader"):
        sk.compare(model, None, ["snip"], against="magnitude")


@pytest.mark.parametrize("engine", ["csr", "masked"])
def test_a_pruned_model_is_compared_by_what_is_left(engine, mlp, vectors):
    sk.prune_(mlp, vectors, keep=0.5, engine=engine)
    left = sum(mask.count() for mask in sk.masks(mlp).values())
    found = sk.compare(mlp, vectors, ("snip", "random", "snip-shuffled"), against="magnitude", keep=0.2)
    total = found.overall["snip"]
    assert (total.numel, total.kept, total.wanted) == (left, 261, 261)
    scores = [sk.score(mlp, vectors, criterion=name) for name in ("snip", "magnitude")]
    kept = {name: mask.to_dense() for name, mask in sk.masks(mlp).items()}
    ours, theirs = (torch.cat([each[name][kept[name]] for name in kept]) for each in scores)
    assert total.spearman == pytest.approx(spearman(ours, theirs))
    assert "chance: 39.97% in common" in str(found)
    with pytest.raises(ValueError, match="keep must be at most what is left"):
        sk.compare(mlp, vectors, "snip", against="magnitude", keep=0.7)


def test_loaders_that_are_used_up_are_refused(mlp, vectors):
    with pytest.raises(
        ValueError,
        match=r"compare: loader must be iterable once for each criterion, such as a list \(got list_iterator\)",
    ):
        sk.compare(mlp, iter(vectors), "snip", against="magnitude")
    assert list(sk.compare(mlp, vectors, "snip", against="magnitude").overall) == ["snip"]
