"""The saliency launchers on lists of tensors, in Triton's interpreter, against the reference, bit for bit.

test_triton_saliency.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import dataclasses
import itertools

import pytest
import strict
import torch
from interpreted_saliency import DTYPES, launchers_on_cpu, long_runs, pair, selection
from strict import Launch

import snipkern
import snipkern.selection.joined
from snipkern import backends
from snipkern.ops import reference
from snipkern.ops.schema_saliency import LARGEST_KEY, MAGNITUDE, SCORES, WORD_BITS
from snipkern.triton_kernels import saliency, saliency_many
from snipkern.triton_kernels.saliency_tiles import TILE, Tiles

saliency_many.address_of = strict.address_of
launchers_on_cpu, long_runs = launchers_on_cpu, long_runs
FLOAT32 = (torch.float32, torch.float32)


def check(name, *args):
    """The launcher's result, equal to the reference's."""
    result, expected = saliency.OPS[name](*args), getattr(reference, name)(*args)
    if name == "saliency_partition_many":
        listed = int(expected[3][:, 1].sum())
        listed = listed if listed <= args[4] else 0
        result, expected = (
            (words, keys[:listed], index[:listed], counts) for words, keys, index, counts in (result, expected)
        )
    for got, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want), (name, args[2:])


def check_all(weights, gradients, score=0, brief=False):
    """All ops at an interval in the middle of the keys."""
    total = sum(weight.numel() for weight in weights)
    _, keys, _, counts = reference.saliency_partition_many(weights, gradients, -(2**31), LARGEST_KEY, total, score)
    low, middle = (int(keys.sort()[0][total * part // 10]) for part in (4, 5))
    inside = int(((keys >= low) & (keys <= middle)).sum())
    assert counts[:, 1].sum() == total and inside > 1
    for capacity in (inside,) if brief else (inside, inside - 1, 0):
        check("saliency_partition_many", weights, gradients, low, middle, capacity, score)
    ties = int((keys == middle).sum())
    for kept in (ties // 2 + 1,) if brief else (0, ties // 2 + 1):
        check("saliency_mask_many", weights, gradients, middle, kept, score)
    check("saliency_histogram_many", weights, gradients, low, middle, 16, score)
    starts = torch.randint(total, (30,), generator=torch.Generator().manual_seed(0))
    check("saliency_sample_many", weights, gradients, starts, 16, score)


def lists(cases):
    """Weights and gradients of (shape, dtypes)."""
    made = [pair(shape, dtypes) for shape, dtypes in cases]
    return [weight for weight, _ in made], [gradient for _, gradient in made]


def test_lengths():
    lengths = (1, 0, 64, TILE, 63, TILE + 65, TILE - 1)
    check_all(*lists([((length,), FLOAT32) for length in lengths]))


def test_dtypes():
    check_all(*lists([((5, 31), dtypes) for dtypes in zip(DTYPES, (*DTYPES[1:], DTYPES[0]), strict=True)]))


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores(score):
    weights, gradients = lists([((5, 31), DTYPES[2:]), ((70,), FLOAT32), ((), FLOAT32)])
    check_all(weights, None if score == MAGNITUDE else gradients, score, brief=True)


def test_addresses_that_are_not_aligned():
    weights, gradients = lists([((TILE + 40,), FLOAT32), ((200,), FLOAT32), ((90,), FLOAT32)])
    weights[0], gradients[0] = weights[0][1:], gradients[0][1:]
    weights[1], gradients[1] = weights[1][4:], gradients[1][3:-1]
    assert all(weight.is_contiguous() for weight in weights)
    check_all(weights, gradients, brief=True)


@pytest.mark.parametrize("copied", [saliency_many.COPIED, 100])
def test_layouts(copied, monkeypatch):
    """Copied are one batch of tensors, or several."""
    monkeypatch.setattr(saliency_many, "COPIED", copied)
    weights, gradients = lists([((9, 10), FLOAT32), ((6, 5, 3, 2), DTYPES[2:]), ((70, 2), FLOAT32), ((40,), FLOAT32)])
    weights[0], gradients[0] = weights[0].t(), gradients[0].t().contiguous()
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    gradients[2] = gradients[2][:1].expand(70, 2)
    assert not gradients[2].is_contiguous()
    check_all(weights, gradients, brief=True)


def test_nothing():
    weights, gradients = [torch.empty(0), torch.empty(3, 0)], [torch.empty(0), torch.empty(3, 0)]
    check("saliency_partition_many", weights, gradients, 0, 5, 9)
    check("saliency_mask_many", weights, gradients, 0, 5)
    check("saliency_histogram_many", weights, gradients, 0, 5, 0)
    check("saliency_sample_many", weights, gradients, torch.empty(0, dtype=torch.int64), 4)


def test_launches_do_not_grow_with_tensors():
    weights, gradients = lists([((7,), FLOAT32)] * 12)
    for name, args, launches in (
        ("saliency_partition_many", (5, LARGEST_KEY, 1000), 2),
        ("saliency_mask_many", (0x3F000000, 9), 2),
        ("saliency_histogram_many", (0, 1000, 0), 1),
        ("saliency_sample_many", (torch.arange(50), 16), 1),
    ):
        before = Launch.count
        saliency.OPS[name](weights, gradients, *args)
        assert Launch.count - before == launches


def test_bits_beyond_31_bits(monkeypatch):
    """Only the last two tiles run; what they do not touch stays unused address space."""
    large = torch.empty(2**31 + TILE, dtype=torch.float16)
    tail = pair((TILE + 100,), (torch.float16, torch.float16))[0]
    large[-TILE:] = tail[:TILE]
    many = saliency_many.Many([large, tail[TILE:]], [large, tail[TILE:]], 0)
    tile = 2**31 // TILE
    monkeypatch.setattr(Launch, "only", (tile, tile + 1))
    tiles = Tiles(many, 1, 0x3E000000, 5000)
    words, _, index, _ = reference.saliency_partition_many([tail], [tail], 1, 0x3E000000, 5000)
    assert torch.equal(tiles.words[2**31 // WORD_BITS :], words)
    listed = int(tiles.inside[tile:].sum())
    assert listed > 0 and torch.equal(tiles.index[:listed].sort()[0], index[:listed] + 2**31)


# Direct; a sampled interval; one that is too full, narrowed until one key is left.
@pytest.mark.parametrize(
    "tuning",
    [{}, {"direct": 1000, "clusters": (64, 128)}, {"candidates": 0, "weights_per_candidate": 10**9}],
    ids=["direct", "sampled", "one key"],
)
def test_select_is_that_of_the_reference(tuning, monkeypatch, request):
    monkeypatch.setattr(selection, "TUNING", dataclasses.replace(selection.TUNING, **tuning))
    pairs = {
        f"{shape} {dtypes}": pair(shape, dtypes, 20)
        for shape, dtypes in zip(((90, 51), (7,), (5, 4, 3, 20)), itertools.permutations(DTYPES, 2), strict=False)
    }
    keeps = (0.05, 0.6)
    with backends.use("reference"):
        expected = [snipkern.select(pairs, keep) for keep in keeps]
    request.getfixturevalue("launchers_on_cpu")
    monkeypatch.setattr(snipkern.selection.joined, "DEVICES", ("cpu",))
    for keep, masks in zip(keeps, expected, strict=True):
        for name, mask in snipkern.select(pairs, keep).items():
            assert torch.equal(mask.words, masks[name].words), (keep, name)
