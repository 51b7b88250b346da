"""select(): against a full stable sort of materialised scores, on every backend, tier and path."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from selecting import DTYPES, FULL, NARROW, SAMPLED, SCORES, by_sorting, check, mappings, module, normal, tuning

import snipkern.selection.passes
from snipkern.ops.reference_saliency import keys_of
from snipkern.ops.schema_saliency import INFINITY_KEY
from snipkern.ops.schema_saliency import SCORES as OP_SCORES
from snipkern.selection.select import kept_count, select
from snipkern.selection.sources import Alone, Pairs
from snipkern.testing import run_on, tiers


@pytest.fixture(params=tiers())
def tier(request):
    with run_on(request.param):
        yield request.param


settings = hypothesis.settings(
    max_examples=100, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


@settings
@hypothesis.given(
    pairs=mappings(),
    data=st.data(),
    path=st.sampled_from([{}, SAMPLED, NARROW, FULL]),
    score=st.sampled_from([*SCORES]),
)
def test_equals_a_stable_sort(tier, pairs, data, path, score):
    total = sum(w.numel() for w, _ in pairs.values())
    keep = data.draw(st.one_of(st.integers(1, total), st.just(1.0)))
    with tuning(**path):
        check(pairs, keep, score)


@settings
@hypothesis.given(pairs=mappings(), data=st.data())
def test_any_interval_and_capacity_give_the_same_masks(tier, pairs, data):
    """What the sample says can cost time, never change a bit."""
    total = sum(w.numel() for w, _ in pairs.values())
    kept = data.draw(st.integers(1, total))
    ends = data.draw(st.lists(st.integers(0, INFINITY_KEY), min_size=2, max_size=2))
    capacity = data.draw(st.integers(0, total))
    with pytest.MonkeyPatch.context() as patch, tuning(candidates=capacity, weights_per_candidate=10**9):
        patch.setattr(module, "_bracket", lambda *_: tuple(sorted(ends)))
        assert select(pairs, kept) == by_sorting(pairs, kept)


@pytest.mark.parametrize("keep", [0.05, 0.5, 1, 299_999, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sampled_path(tier, dtype, keep):
    check(normal((300, 784), (100, 300), (10, 100), (33_800,), dtype=dtype), keep)


@pytest.mark.parametrize("path", [{}, SAMPLED, NARROW, FULL], ids=["direct", "sampled", "narrow", "full"])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-22])
def test_all_scores_equal(tier, path, value):
    pairs = {name: (torch.full((n,), value), torch.full((n,), value)) for name, n in [("a", 700), ("b", 0), ("c", 300)]}
    with tuning(**path):
        for keep in (1, 699, 700, 701, 999, 1000):
            masks = check(pairs, keep)
            assert masks["a"].count() == min(keep, 700)


@pytest.mark.parametrize("path", [SAMPLED, NARROW, FULL], ids=["sampled", "narrow", "full"])
def test_mostly_zero_scores_with_the_threshold_among_the_zeros(tier, path):
    pairs = normal((400, 100), (300, 100))
    for _, gradient in pairs.values():
        gradient[torch.rand_like(gradient) < 0.9] = 0.0
    with tuning(**path):
        check(pairs, 0.3)


def test_equals_topk_where_no_tie_is_at_the_threshold(tier):
    pairs = normal((512, 300), (200, 512))
    scores = torch.cat([(g * w).abs().view(-1) for w, g in pairs.values()])
    kept = round(scores.numel() * 0.05)
    top = torch.topk(scores, kept + 1).values
    assert top[-1] < top[-2]
    expected = torch.zeros(scores.numel(), dtype=torch.bool)
    expected[torch.topk(scores, kept).indices] = True
    masks = select(pairs, 0.05)
    assert torch.equal(torch.cat([mask.to_dense().view(-1) for mask in masks.values()]), expected)


def test_every_tier_and_thread_count_gives_the_same_words(restore_threads):
    pairs = normal((1000, 784), (5, 3, 100, 100), dtype=torch.bfloat16) | {"last": normal((900, 101))["layer0.weight"]}
    pairs["transposed"] = tuple(t.t() for t in normal((300, 400), seed=1)["layer0.weight"])
    found = []
    for name in tiers():
        for count in (1, 2):
            torch.set_num_threads(count)
            with run_on(name):
                found.append(select(pairs, 0.031))
    assert all(masks == found[0] for masks in found)


@pytest.mark.parametrize("keep", [0.05, 0.5, 1, 299_999, 1.0])
@pytest.mark.parametrize("score", SCORES)
def test_the_sampled_path_for_every_score(tier, score, keep):
    check(normal((300, 784), (100, 300), (10, 100), (33_800,)), keep, score)


@pytest.mark.parametrize("score", SCORES)
def test_signed_scores_where_most_are_negative(tier, score):
    pairs = {name: (weight, -weight.abs()) for name, (weight, _) in normal((300, 500), (70, 80)).items()}
    for path in (SAMPLED, NARROW, FULL):
        with tuning(**path):
            for keep in (0.3, 0.9):
                check(pairs, keep, score)


def test_magnitudes_need_no_gradients(tier):
    pairs = normal((300, 50), (20, 10))
    weights = {name: weight for name, (weight, _) in pairs.items()}
    assert select(weights, 0.1, score="magnitude") == by_sorting(pairs, kept_count(15_200, 0.1), "magnitude")
    bad = {name: (weight, torch.full_like(weight, math.nan)) for name, weight in weights.items()}
    assert select(bad, 0.1, score="magnitude") == select(weights, 0.1, score="magnitude")
    weights["layer1.weight"][3, 3] = -math.inf
    with pytest.raises(ValueError, match=r"weight of 'layer1.weight' must be finite \(got 1 non-finite of 200\)"):
        select(weights, 0.1, score="magnitude")


def test_scales_change_what_is_kept(tier):
    pairs = normal((300, 50), (20, 4, 5))
    scales = [(torch.rand(300), torch.rand(50)), (None, torch.rand(20))]
    scaled = {
        name: (weight.reshape(rows, -1) * ((row if row is not None else torch.ones(rows))[:, None] * col), gradient)
        for (name, (weight, gradient)), (row, col), rows in zip(pairs.items(), scales, (300, 20), strict=True)
    }
    scaled["layer1.weight"] = (scaled["layer1.weight"][0].view(20, 4, 5), scaled["layer1.weight"][1])
    with tuning(**SAMPLED):
        words = module.top_words(Pairs(pairs), Alone(), 15_400, 1000, scales=scales)
    expected = by_sorting(scaled, 1000)
    assert all(torch.equal(a, mask.words) for a, mask in zip(words, expected.values(), strict=True))


def test_scales_that_overflow_raise(tier):
    weight = torch.tensor([[1e20, 1.0], [1.0, 1.0]])
    scales = [(torch.full((2,), 1e15), torch.full((2,), 1e15))]
    with pytest.raises(ValueError, match="scales of 'w' must not make its weights overflow"):
        module.top_words(Pairs({"w": (weight, weight * 0)}), Alone(), 4, 1, scales=scales)


# Paths


def passes(monkeypatch):
    """Names of the steps that read the tensors, as they happen."""
    calls = []
    for step in ("_sample", "_partition", "_narrow", "_mask"):
        function = getattr(module, step)

        def counted(*args, step=step, function=function):
            calls.append(step)
            return function(*args)

        monkeypatch.setattr(module, step, counted)
    return calls


def test_a_large_model_is_read_once(monkeypatch):
    calls = passes(monkeypatch)
    check(normal((700, 600)), 0.05)
    assert calls == ["_sample", "_partition"]


def test_a_small_model_needs_no_sample(monkeypatch):
    calls = passes(monkeypatch)
    check(normal((70, 60)), 0.05)
    assert calls == ["_partition"]


def test_keeping_everything_is_one_pass(monkeypatch):
    calls = passes(monkeypatch)
    check(normal((700, 600)), 1.0)
    assert calls == ["_partition"]


def adversarial(size=200_000):
    """Data that is hard to sample or to tell apart: name, weight, gradient."""
    ones, normal = torch.ones(size), torch.randn(size, generator=torch.Generator().manual_seed(0))
    outlier = normal.clone()
    outlier[size // 3] = 1e19
    every = torch.arange(size)
    return {
        "all equal": (ones, ones),
        "all zero": (ones, ones * 0),
        "two values": (ones, torch.where(every % 3 == 0, 1.0, 0.5)),
        "two halves": (ones, torch.where(every < size // 2, 1.0, 0.5)),
        "sorted": (ones, normal.sort().values),
        "denormals": (normal * 1e-20, normal * 1e-21),
        "huge range": (normal * 10.0 ** torch.linspace(-20, 18, size), normal),
        "one giant outlier": (outlier, outlier),
        "clusters": (ones, torch.where(every // 16 % 4096 == 0, 1.0, 0.01) * normal),
        "a tie in noise": (ones, torch.where(every % 7 == 0, 0.25, normal)),
    }


@pytest.mark.parametrize("interval", ["sampled", "missed low", "missed high", "too wide"])
@pytest.mark.parametrize("keep", [0.5, 0.05, 7])
def test_at_most_four_reads(monkeypatch, interval, keep):
    reads = []

    class Ops:
        def __getattr__(self, name):
            if name in ("saliency_partition", "saliency_histogram", "saliency_mask"):
                reads.append(name)
            return getattr(torch.ops.snipkern, name)

    monkeypatch.setattr(snipkern.selection.passes, "ops", Ops())
    ends = {"missed low": (0, 0), "missed high": (INFINITY_KEY, INFINITY_KEY), "too wide": (0, INFINITY_KEY)}
    if interval in ends:
        monkeypatch.setattr(module, "_bracket", lambda _: ends[interval])
    with tuning(**SAMPLED, candidates=500, weights_per_candidate=10**9):
        for name, data in adversarial().items():
            reads.clear()
            check({"w": data}, keep)
            assert 0 < len(reads) <= 4, (name, reads)


@pytest.mark.parametrize("interval", [(0, 0), (0x3FFFFFFF, 0x40000000), (INFINITY_KEY, INFINITY_KEY)])
def test_a_missed_interval_falls_back_to_histograms(tier, monkeypatch, interval):
    calls = passes(monkeypatch)
    monkeypatch.setattr(module, "_bracket", lambda *_: interval)
    with tuning(candidates=100, weights_per_candidate=10**9):
        check(normal((700, 300), (50, 60)), 0.05)
    assert calls[:2] == ["_partition", "_narrow"] and calls[2:] in (["_partition"], ["_mask"])


def test_ties_beyond_the_capacity_end_in_one_mask_pass(tier, monkeypatch):
    calls = passes(monkeypatch)
    weight = torch.ones(2**18)
    with tuning(candidates=1000, weights_per_candidate=10**9):
        check({"a": (weight, weight), "b": (weight, weight)}, 2**18 + 999)
    assert calls == ["_sample", "_partition", "_narrow", "_mask"]


@pytest.mark.parametrize("score", SCORES)
def test_histograms_resolve_all_bits_in_two_passes(monkeypatch, score):
    pairs = normal((300, 300))
    search = module.Search(Pairs(pairs), Alone(), 90_000, 4500, OP_SCORES[score])
    interval = module.Interval(search.least, INFINITY_KEY, 0, 90_000, np.array([90_000]))
    changed = dataclasses.replace(module.TUNING, candidates=0, weights_per_candidate=10**9)
    monkeypatch.setattr(module, "TUNING", changed)
    seen = []
    counted = torch.ops.snipkern.saliency_histogram

    class Ops:
        @staticmethod
        def saliency_histogram(*args):
            seen.append(args[2:])
            return counted(*args)

    monkeypatch.setattr(snipkern.selection.passes, "ops", Ops)
    found = module._narrow(search, interval)
    assert found.low == found.high and len(seen) == 2
    scores = torch.sort(SCORES[score](*pairs["layer0.weight"]).view(-1), descending=True).values
    assert found.low == int(keys_of(scores)[4499]) and found.above == int((scores > scores[4499]).sum())
