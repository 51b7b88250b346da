"""Checkpoints: a pruned model comes back as it was, in a fresh dense model too; others can read a dense one."""

from __future__ import annotations

import io

import pytest
import torch
from nets import make_cnn, make_mlp

import snipkern as sk


@pytest.fixture(params=["csr", "masked", "auto"])
def pruned(request, images):
    model = make_cnn()
    sk.prune_(model, images, keep=0.2, engine=request.param)
    return model.eval()


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_fresh_dense_model_becomes_the_saved_one(pruned, images):
    fresh = make_cnn().eval()
    assert sk.load_(fresh, saved(pruned.state_dict())) is fresh
    assert sk.masks(fresh) == sk.masks(pruned)
    assert [type(m) for m in fresh] == [type(m) for m in pruned]
    assert torch.equal(fresh(images[0][0]), pruned(images[0][0]))


def test_pruned_model_takes_it_too(pruned):
    state = saved(pruned.state_dict())
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    sk.load_(pruned, state)
    assert all(torch.equal(v, state[k]) for k, v in pruned.state_dict().items())


def test_dense_state_dict_is_the_dense_models(pruned, images):
    dense = sk.dense_state_dict(pruned)
    plain = make_cnn().eval()
    assert list(dense.keys()) == list(plain.state_dict()) or set(dense) == set(plain.state_dict())
    plain.load_state_dict(dense)
    torch.testing.assert_close(plain(images[0][0]), pruned(images[0][0]), rtol=1e-5, atol=1e-6)
    pruned.load_state_dict(dense)


def test_dense_state_dict_into_dense_model(mlp):
    other = make_mlp()
    sk.load_(other, mlp.state_dict())
    assert torch.equal(other[0].weight, mlp[0].weight) and sk.masks(other) == {}


MISFITS = {
    "a mask too many": (
        lambda s: s.update({"9.weight": torch.ones(2), "9.weight_mask": torch.ones(1, dtype=torch.int64)}),
        "a mask for '9.weight'",
    ),
    "a mask of another size": (
        lambda s: s.update({"0.weight_mask": torch.zeros(99, dtype=torch.int64)}),
        "the mask of '0.weight' must fit",
    ),
    "a missing bias": (lambda s: s.pop("0.bias"), r"got 1 differences: 0.bias: \[8\] in the model, none given"),
    "an unknown key": (lambda s: s.update({"x": torch.ones(2)}), r"x: none in the model, \[2\] given"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfit_is_refused_and_the_model_untouched(case, pruned):
    change, message = MISFITS[case]
    state = dict(pruned.state_dict())
    change(state)
    model = make_cnn()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"load_: .*{message}"):
        sk.load_(model, state)
    assert [type(m) for m in model] == [type(m) for m in make_cnn()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
