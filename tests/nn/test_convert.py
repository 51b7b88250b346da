"""Conversion in place: to sparse and back, and the modules it must not touch."""

from __future__ import annotations

import pytest
import torch
from nets import make_cnn
from torch import nn

import snipkern as sk
from snipkern.testing import random_mask


def random_masks(model: nn.Module, density: float = 0.3) -> dict[str, sk.Mask]:
    generator = torch.Generator().manual_seed(5)
    return {n: random_mask(tuple(p.shape), density, generator) for n, p in model.named_parameters() if p.dim() > 1}


def test_round_trip_keeps_objects_classes_and_kept_weights(images):
    model = make_cnn()
    modules, weights = list(model.modules()), {n: p.detach().clone() for n, p in model.named_parameters()}
    masks = random_masks(model)
    sk.sparsify_(model, masks, engine="csr")
    assert sk.masks(model) == masks
    y = model.eval()(images[0][0])
    assert sk.to_dense_(model) is model
    assert list(model.modules()) == modules
    assert [type(m) for m in model] == [type(m) for m in make_cnn()]
    assert list(model.state_dict()) == list(make_cnn().state_dict())
    for name, weight in weights.items():
        want = weight * masks[name].to_dense() if name in masks else weight
        assert torch.equal(model.get_parameter(name), want)
    torch.testing.assert_close(model(images[0][0]), y)
    sk.sparsify_(model, masks, engine="csr")
    torch.testing.assert_close(model(images[0][0]), y)


def test_gradient_attributes_and_requires_grad_carry_over():
    layer = nn.Linear(4, 3)
    layer.weight.lr_scale = 0.1
    layer(torch.ones(2, 4)).sum().backward()
    layer.bias.requires_grad_(False)
    grad = layer.weight.grad.clone()
    mask = sk.Mask.from_dense(torch.rand(3, 4) < 0.5)
    sk.sparsify_(layer, {"weight": mask}, engine="csr")
    assert layer.weight_values.lr_scale == 0.1
    assert torch.equal(layer.weight_values.grad, grad[mask.to_dense()])
    assert not layer.bias.requires_grad
    sk.to_dense_(layer)
    assert layer.weight.lr_scale == 0.1


def test_parameter_hooks_are_warned_about():
    layer = nn.Linear(4, 3)
    layer.weight.register_hook(lambda g: g)
    with pytest.warns(UserWarning, match=r"Linear.weight: hooks on the parameter are not carried over"):
        sk.sparsify_(layer, {"weight": sk.Mask.full((3, 4))}, engine="csr")


def test_own_subclass_stays_dense_and_masked():
    class Scaled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(Scaled(4, 3))
    pruned = sk.sparsify_(model, random_masks(model), engine="csr")
    assert pruned.layers[0].engine == "masked" and "Scaled is its own subclass of Linear" in pruned.layers[0].reason
    assert type(model[0]) is Scaled


@pytest.mark.parametrize("nested", [True, False])
def test_transformer_encoder_computes_sparsely_in_eval_mode(nested):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    x = torch.randn(3, 5, 16)
    masks = {n: m for n, m in random_masks(model).items() if "linear" in n}
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask.to_dense())
    want = model(x)
    sk.sparsify_(model, masks, engine="csr")
    calls = []
    for module in model.modules():
        if isinstance(module, sk.nn.SparseLinear):
            module.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    assert len(calls) == 4, "the fast path would not call the modules"
    sk.to_dense_(model)
    assert model.use_nested_tensor == nested
    assert model.layers[0].activation_relu_or_gelu == 1
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)


BAD_MASKS = {
    "unknown name": (
        {"5.weight": sk.Mask.full((1,))},
        r"masks must name parameters of the dense model \(got '5.weight'\)",
    ),
    "shape": (
        {"0.weight": sk.Mask.full((3, 8))},
        r"the mask of '0.weight' must have shape \[8, 3, 3, 3\] \(got \[3, 8\]\)",
    ),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks_are_refused_before_anything_changes(case):
    model = make_cnn()
    masks, message = BAD_MASKS[case]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        sk.sparsify_(model, {**random_masks(model), **masks})
    assert [type(m) for m in model] == [type(m) for m in make_cnn()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
