"""Options of prune_ that share out kept weights: defaults, and clear errors for what does not go together."""

from __future__ import annotations

import pytest
from nets import make_mlp

import snipkern as sk
from snipkern.allocation import Allocation, allocation


def test_defaults_depend_on_the_block():
    assert allocation() == Allocation(order="auto") and allocation().plain
    assert allocation(min_keep=0).plain and not allocation(min_keep=1).plain
    assert not allocation(scope="layer").plain
    blocks = allocation((4, 1))
    assert blocks.balance and blocks.cascade and not blocks.plain and not blocks.ordered()
    assert allocation((16, 16)).ordered() and not allocation((16, 8)).ordered()
    assert allocation((4, 1), order=True).ordered() and not allocation((32, 32), order=False).ordered()
    assert allocation(balance=True).cascade and not allocation(balance=True, cascade=False).cascade
    assert not allocation((4, 4), balance=False, cascade=False).balance


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope": "all"}, r"prune: scope must be one of global, layer, uniform, erk, row \(got 'all'\)"),
        ({"balance": 1}, r"prune: balance must be True, False or None \(got 1\)"),
        ({"cascade": "yes"}, r"prune: cascade must be True, False or None \(got 'yes'\)"),
        ({"order": "rows", "block": (4, 4)}, r"prune: order must be 'auto', True or False \(got 'rows'\)"),
        ({"order": True}, r"prune: order and mix need block=\(height, width\) \(got order=True and block=None\)"),
        ({"mix": 0.5}, r"prune: order and mix need block=\(height, width\) \(got mix=0.5 and block=None\)"),
        ({"mix": 1.5, "block": (4, 4)}, r"prune: mix must be a share in \[0, 1\] \(got 1.5\)"),
        ({"mix": True, "block": (4, 4)}, r"prune: mix must be a share in \[0, 1\] \(got True\)"),
        ({"min_keep": -1}, r"prune: min_keep must be a number of weights or a share in \[0, 1\] \(got -1\)"),
        ({"min_keep": 1.5}, r"prune: min_keep must be a number of weights or a share in \[0, 1\] \(got 1.5\)"),
        ({"min_keep": 0.5}, r"prune: min_keep must leave at most the 131 weights that are kept \(got 0.5, which is"),
        (
            {"scope": "uniform"},
            r"prune: scope='uniform' keeps the first layer dense; .* \(got 131 to keep, 660 of them",
        ),
        ({"criterion": "chance"}, r"prune: criterion must be one of snip, magnitude, .* Criterion \(got 'chance'\)"),
    ],
)
def test_bad_options_are_refused_and_change_nothing(options, text, vectors):
    model = make_mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=text):
        sk.prune_(model, vectors, keep=0.1, **options)
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())
    assert [type(module).__name__ for module in model] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
