"""Pruning a pruned model again: optimisers, hooks, copies and compiled models move along."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from again import ENGINES, dense_of, require_nested
from nets import make_mlp

import snipkern as sk

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = {
    "momentum": lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9),
    "amsgrad": lambda named: torch.optim.AdamW(named, amsgrad=True),
    "rprop": lambda named: torch.optim.Rprop(named),
}


@pytest.mark.parametrize(
    "first, second, name",
    [
        *((first, second, "momentum") for first in ENGINES for second in ENGINES),
        *((first, "csr", name) for first in ENGINES for name in ("amsgrad", "rprop")),
    ],
)
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
    compiled = torch.compile(mlp, backend="eager") if second == "csr" else mlp
    compiled(vectors[0][0])
    sk.prune_(mlp, vectors, keep=0.2, engine=second)
    want = mlp(vectors[0][0])
    torch.testing.assert_close(compiled(vectors[0][0]), want)
    torch.testing.assert_close(copy.deepcopy(mlp)(vectors[0][0]), want)
    assert seen[-1] == ("SparseLinear" if second == "csr" else "Linear")
    twin = sk.load_(make_mlp(), mlp.state_dict())
    torch.testing.assert_close(twin(vectors[0][0]), want)
    assert sk.masks(twin) == sk.masks(mlp)
    sk.prune_(twin, vectors, keep=0.1, engine="csr")
    require_nested(sk.masks(twin), sk.masks(mlp))


def test_hooks_on_parameters_are_named_but_not_those_of_guards(mlp, vectors, recwarn):
    sk.prune_(mlp, vectors, keep=0.5, engine="masked")
    sk.prune_(mlp, vectors, keep=0.4, engine="csr")
    assert not recwarn
    mlp[0].weight_values.register_hook(lambda gradient: gradient)
    with pytest.warns(UserWarning, match=r"Linear.weight: hooks on the parameter are not carried over"):
        sk.prune_(mlp, vectors, keep=0.3, engine="csr")
