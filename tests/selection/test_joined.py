"""Selection over all parameters of a device as one: the same masks and errors as one by one, in fewer calls.

On CPU tensors here, which selection does not join by itself.
"""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from selecting import FULL, NARROW, SAMPLED, SCORES, mappings, normal, tuning

import snipkern.selection.joined
import snipkern.selection.passes
from snipkern.selection.joined import on_cpu
from snipkern.selection.select import select


@pytest.fixture
def join(monkeypatch):
    monkeypatch.setattr(snipkern.selection.joined, "DEVICES", ("cpu",))


class Counted:
    """The ops, and the names of those that were called."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("saliency"):
            self.calls.append(name)
        return getattr(torch.ops.snipkern, name)


@pytest.fixture
def counted(monkeypatch):
    ops = Counted()
    monkeypatch.setattr(snipkern.selection.passes, "ops", ops)
    return ops.calls


@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    pairs=mappings(),
    data=st.data(),
    path=st.sampled_from([{}, SAMPLED, NARROW, FULL]),
    score=st.sampled_from([*SCORES]),
    head=st.sampled_from([1 << 18, 3]),
)
def test_masks_are_those_of_one_by_one(pairs, data, path, score, head):
    keep = data.draw(st.integers(1, sum(w.numel() for w, _ in pairs.values())))
    with tuning(**path), pytest.MonkeyPatch.context() as patch:
        expected = select(pairs, keep, score=score)
        patch.setattr(snipkern.selection.joined, "DEVICES", ("cpu",))
        patch.setattr(snipkern.selection.passes, "HEAD", head)
        found = select(pairs, keep, score=score)
    assert list(found) == list(expected)
    for name, mask in found.items():
        assert torch.equal(mask.words, expected[name].words) and mask.shape == expected[name].shape


def test_a_thousand_parameters_are_two_calls(join, counted):
    pairs = {f"{i}": (torch.randn(20, 10), torch.randn(20, 10)) for i in range(1000)}
    select(pairs, 0.05)
    assert counted == ["saliency_sample_many", "saliency_partition_many"]


def test_a_mapping_that_may_be_lazy_is_not_joined(join, counted):
    class Lazy(dict):
        pass

    select(Lazy(normal((5, 5), (7,))), 0.5)
    assert counted == ["saliency_partition"] * 2


@pytest.mark.parametrize("score", ["snip", "magnitude"])
def test_what_is_not_finite_is_named(join, score):
    weights = {name: torch.ones(9) for name in "abc"}
    weights["b"][4] = torch.inf
    weights["c"][0] = torch.nan
    with pytest.raises(ValueError, match="weight of 'b' must be finite \\(got 1 non-finite of 9\\)"):
        select({name: (weight, torch.ones(9)) for name, weight in weights.items()}, 3, score=score)


def test_finite_factors_may_overflow(join):
    pairs = {"a": (torch.ones(5), torch.ones(5)), "b": (torch.full((5,), 1e30), torch.full((5,), 1e30))}
    masks = select(pairs, 5)
    assert masks["a"].count() == 0 and masks["b"].count() == 5


def test_on_cpu():
    words = [torch.arange(3), torch.arange(0), torch.arange(5)]
    assert [each.tolist() for each in on_cpu(words)] == [[0, 1, 2], [], [0, 1, 2, 3, 4]]
