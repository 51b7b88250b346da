"""Selection over several ranks: threads with a part each find what one process finds."""

from __future__ import annotations

import threading

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from selecting import FULL, NARROW, SAMPLED, by_sorting, mappings, tuning

from snipkern import Mask
from snipkern.selection.sources import Pairs
from snipkern.selection.topk import top_words
from snipkern.testing import run_on


class Team:
    """Ranks that are threads of this process."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.given = [None] * size

    def exchanged(self, rank, value):
        self.given[rank] = value
        self.barrier.wait()
        found = list(self.given)
        self.barrier.wait()
        return found


class Rank:
    def __init__(self, team, rank):
        self.team, self.rank = team, rank

    def gathered(self, counts):
        return np.stack(self.team.exchanged(self.rank, counts))

    def concatenated(self, keys):
        return np.concatenate(self.team.exchanged(self.rank, keys))

    def together(self, action):
        try:
            result, fault = action(), None
        except ValueError as error:
            result, fault = None, str(error)
        for found in self.team.exchanged(self.rank, fault):
            if found:
                raise ValueError(found)
        return result


def run(parts, total, kept):
    """Words or the error that each rank found; its parts are 1-D pieces of the parameters."""
    team, found = Team(len(parts)), [None] * len(parts)

    def work(rank):
        try:
            found[rank] = top_words(Pairs(parts[rank]), Rank(team, rank), total, kept)
        except ValueError as error:
            found[rank] = error

    with run_on("reference"):  # a backend is chosen for the process: one that all threads share
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def cut(pairs, cuts):
    """The pieces of each rank: of a parameter of n elements those up to each share of n, in order."""
    parts = [{} for _ in range(len(cuts) + 1)]
    for name, (weight, gradient) in pairs.items():
        bounds = [0, *(int(share * weight.numel()) for share in cuts), weight.numel()]
        for part, first, last in zip(parts, bounds, bounds[1:], strict=False):
            part[name] = (weight.reshape(-1)[first:last], gradient.reshape(-1)[first:last])
    return parts


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    pairs=mappings(),
    data=st.data(),
    path=st.sampled_from([{}, SAMPLED, NARROW, FULL]),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3).map(sorted),
)
def test_any_cut_gives_the_masks_of_one_process(pairs, data, path, cuts):
    total = sum(w.numel() for w, _ in pairs.values())
    kept = data.draw(st.integers(1, total))
    parts = cut(pairs, cuts)
    with tuning(**path):
        found = run(parts, total, kept)
    expected = by_sorting(pairs, kept)
    for i, (name, (weight, _)) in enumerate(pairs.items()):
        pieces = [Mask(words[i], part[name][0].shape).to_dense() for words, part in zip(found, parts, strict=True)]
        assert Mask.from_dense(torch.cat(pieces).view(weight.shape)) == expected[name]


def test_what_one_rank_refuses_all_refuse():
    weight = torch.ones(100)
    broken = weight.clone()
    broken[3] = torch.nan
    found = run([{"a": (weight, weight)}, {"a": (weight, broken)}, {"a": (weight, weight)}], 300, 30)
    assert all(isinstance(error, ValueError) for error in found)
    assert len({str(error) for error in found}) == 1
    with pytest.raises(ValueError, match="gradient of 'a' must be finite"):
        raise found[0]
