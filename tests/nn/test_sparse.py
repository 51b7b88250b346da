"""Sparse modules: what dense modules do, with the kept weights alone."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import snipkern as sk
from snipkern.nn import SparseConv2d, SparseLinear
from snipkern.nn.functional import sparse_conv2d, sparse_linear
from snipkern.testing import random_mask, run_on, tiers


def sparse_pair(dense: nn.Module, density: float = 0.3):
    """A dense module with its pruned weights zeroed, and its sparse copy."""
    mask = random_mask(tuple(dense.weight.shape), density, torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense.weight.mul_(mask.to_dense())
    kind = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
    return dense, kind.from_dense(dense, mask)


LAYERS = {
    "linear": (lambda: nn.Linear(19, 11), (7, 19)),
    "linear without bias": (lambda: nn.Linear(19, 11, bias=False), (7, 19)),
    "linear with leading dimensions": (lambda: nn.Linear(19, 11), (2, 3, 4, 19)),
    "linear on one vector": (lambda: nn.Linear(19, 11), (19,)),
    "linear on an empty batch": (lambda: nn.Linear(19, 11), (0, 19)),
    "conv": (lambda: nn.Conv2d(5, 7, 3), (4, 5, 9, 8)),
    "conv unbatched": (lambda: nn.Conv2d(5, 7, 3, padding=1), (5, 9, 8)),
    "conv strided and dilated": (
        lambda: nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 3)),
        (3, 5, 9, 8),
    ),
    "conv same, odd total": (lambda: nn.Conv2d(5, 7, (4, 3), padding="same", dilation=(1, 2)), (3, 5, 9, 8)),
    "conv valid": (lambda: nn.Conv2d(5, 7, 3, padding="valid", bias=False), (3, 5, 9, 8)),
    "conv reflect": (lambda: nn.Conv2d(5, 7, 3, padding=2, padding_mode="reflect"), (3, 5, 9, 8)),
    "conv circular": (lambda: nn.Conv2d(5, 7, 3, padding=(1, 2), padding_mode="circular"), (3, 5, 9, 8)),
}


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("case", LAYERS)
def test_forward_and_gradients_equal_the_masked_dense_layer(case, tier):
    make, shape = LAYERS[case]
    dense, sparse = sparse_pair(make().double())
    x = torch.randn(shape, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    with run_on(tier):
        outputs = [layer(i) for layer, i in zip((dense, sparse), inputs, strict=True)]
        upstream = torch.randn_like(outputs[0])
        for output in outputs:
            output.backward(upstream)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    kept = sparse.mask.to_dense()
    torch.testing.assert_close(sparse.weight_values.grad, dense.weight.grad[kept])
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


@pytest.fixture(params=["linear", "conv"])
def pair(request):
    make, shape = LAYERS[request.param]
    return *sparse_pair(make()), torch.randn(shape)


def test_from_dense_copies(pair):
    dense, sparse, _ = pair
    assert type(dense) in (nn.Linear, nn.Conv2d)
    assert isinstance(sparse, type(dense))
    assert [n for n, _ in sparse.named_parameters()] == ["weight_values", "bias"]
    assert sparse.bias is not dense.bias
    assert torch.equal(sparse.weight, dense.weight)
    assert f"kept={sparse.mask.count()}" in repr(sparse)


def test_mask_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"SparseLinear.from_dense: the mask of 'weight' must have shape \[3, 2\] \(got \[2, 3\]\)"
    ):
        SparseLinear.from_dense(nn.Linear(2, 3), sk.Mask.full((2, 3)))
    with pytest.raises(ValueError, match=r"must be a dense nn.Linear, .* or nn.RNN \(got ReLU\)"):
        SparseLinear.from_dense(nn.ReLU(), sk.Mask.full((2, 3)))
    with pytest.raises(ValueError, match=r"must have a sparse kernel \(got: no sparse kernel for 2 groups\)"):
        SparseConv2d.from_dense(nn.Conv2d(2, 2, 1, groups=2), sk.Mask.full((2, 1, 1, 1)))


def test_weight_is_differentiable_and_cannot_be_set(pair):
    _, sparse, _ = pair
    sparse.weight.square().sum().backward()
    torch.testing.assert_close(sparse.weight_values.grad, 2 * sparse.weight_values.detach())
    with pytest.raises(AttributeError, match="weight is made from weight_values and cannot be set"):
        sparse.weight = nn.Parameter(torch.zeros(3))
    del sparse.weight_values
    with pytest.raises(RuntimeError, match=r"weight: .*weight_values"):
        _ = sparse.weight


def test_deepcopy_pickle_and_torch_save(pair):
    _, sparse, x = pair
    buffer = io.BytesIO()
    torch.save(sparse, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), loaded):
        assert type(other) is type(sparse) and other.mask == sparse.mask
        assert other.weight_values is not sparse.weight_values
        assert torch.equal(other(x), sparse(x))
        with torch.no_grad():
            other.weight_values.zero_()
        assert torch.count_nonzero(sparse.weight_values) > 0
    assert copy.deepcopy(sparse).topology is sparse.topology


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_to_dtype(pair, dtype):
    dense, sparse, x = pair
    dense, sparse, x = dense.to(dtype), sparse.to(dtype), x.to(dtype)
    assert sparse(x).dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(sparse(x), dense(x), rtol=tolerance, atol=tolerance)


def test_mixed_dtypes_are_refused(pair):
    _, sparse, x = pair
    with pytest.raises((ValueError, RuntimeError), match="values must have x's dtype"):
        sparse(x.double())


def test_autocast_computes_in_its_dtype(pair):
    dense, sparse, x = pair
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = dense(x), sparse(x)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)
    got.float().sum().backward()
    assert sparse.weight_values.grad.dtype == torch.float32


def test_compile_fullgraph_with_gradients(pair):
    _, sparse, x = pair
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    got = sparse.weight_values.grad.clone()
    sparse.zero_grad()
    sparse(x).square().sum().backward()
    torch.testing.assert_close(got, sparse.weight_values.grad)


def test_export_with_a_dynamic_batch(pair):
    _, sparse, x = pair
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(sparse, (x,), dynamic_shapes=({0: batch},))
    bigger = torch.cat([x, x, x])
    torch.testing.assert_close(program.module()(bigger), sparse(bigger))


def test_functional_call_and_checkpoint(pair):
    _, sparse, x = pair
    doubled = {n: 2 * p.detach() for n, p in sparse.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(sparse, doubled, (x,)), 2 * sparse(x))
    torch.utils.checkpoint.checkpoint(sparse, x, use_reentrant=False).sum().backward()
    want = torch.autograd.grad(sparse(x).sum(), sparse.weight_values)[0]
    torch.testing.assert_close(sparse.weight_values.grad, want)


def test_meta_device_to_empty_and_load(pair):
    _, sparse, x = pair
    other = copy.deepcopy(sparse).to("meta")
    assert other(x.to("meta")).shape == sparse(x).shape
    other.to_empty(device="cpu").load_state_dict(sparse.state_dict())
    assert torch.equal(other(x), sparse(x))
    other = copy.deepcopy(sparse).to("meta")
    other.load_state_dict(sparse.state_dict(), assign=True)
    assert torch.equal(other(x), sparse(x))


def test_reset_parameters_draws_the_dense_distribution():
    _, sparse = sparse_pair(nn.Linear(400, 300), 0.1)
    before = sparse.weight_values.detach().clone()
    sparse.reset_parameters()
    assert not torch.equal(before, sparse.weight_values)
    assert sparse.weight_values.abs().max() <= 400**-0.5
    assert sparse.weight_values.std().item() == pytest.approx(nn.Linear(400, 300).weight.std().item(), rel=0.05)


class TestStateDict:
    def test_round_trip(self, pair):
        _, sparse, x = pair
        state = sparse.state_dict()
        assert list(state) == ["weight_values", "bias", "weight_mask"]
        other = copy.deepcopy(sparse)
        other.reset_parameters()
        assert not torch.equal(other(x), sparse(x))
        other.load_state_dict(state)
        assert torch.equal(other(x), sparse(x))

    def test_dense_weight_loads_where_it_is_zero_outside_the_mask(self, pair):
        dense, sparse, x = pair
        sparse.reset_parameters()
        sparse.load_state_dict(dense.state_dict())
        torch.testing.assert_close(sparse(x), dense(x))

    def test_stray_weights_are_refused_and_nothing_else_is_said(self, pair):
        dense, sparse, _ = pair
        before = sparse.weight_values.detach().clone()
        state = {k: v.clone() for k, v in dense.state_dict().items()}
        state["weight"] = torch.ones_like(state["weight"])
        with pytest.raises(RuntimeError, match=r"weight: must be zero outside the mask \(got \d+ non-zero") as caught:
            sparse.load_state_dict(state)
        assert "Missing" not in str(caught.value) and "Unexpected" not in str(caught.value)
        assert torch.equal(sparse.weight_values, before)

    def test_another_mask_is_refused(self, pair):
        _, sparse, _ = pair
        state = sparse.state_dict()
        state["weight_mask"] = state["weight_mask"].clone()
        state["weight_mask"][0] ^= 1
        with pytest.raises(RuntimeError, match="weight: the state dict's mask must be the module's"):
            sparse.load_state_dict(state)

    def test_values_without_a_mask_are_refused(self, pair):
        _, sparse, _ = pair
        state = sparse.state_dict()
        del state["weight_mask"]
        with pytest.raises(RuntimeError, match=r"weight_mask: must be given with weight_values"):
            sparse.load_state_dict(state)

    def test_missing_and_misshapen_weights_are_reported(self, pair):
        _, sparse, _ = pair
        with pytest.raises(RuntimeError, match=r'Missing key.*"weight_values"'):
            sparse.load_state_dict({"bias": sparse.bias})
        with pytest.raises(RuntimeError, match=r"weight: shape must be"):
            sparse.load_state_dict({"bias": sparse.bias, "weight": torch.zeros(2, 2)})


def test_functional_shapes_are_checked():
    topology = SparseLinear.from_dense(nn.Linear(4, 3), sk.Mask.full((3, 4))).topology
    with pytest.raises(ValueError, match=r"sparse_linear: x must be \[..., 4\] \(got \[2, 5\]\)"):
        sparse_linear(torch.zeros(2, 5), torch.zeros(12), None, topology)
    topology = SparseConv2d.from_dense(nn.Conv2d(4, 3, 1), sk.Mask.full((3, 4, 1, 1))).topology
    with pytest.raises(ValueError, match=r"sparse_conv2d: x must be \[batch, 4, height, width\]"):
        sparse_conv2d(torch.zeros(2, 5), torch.zeros(12), None, topology)


def test_a_layer_that_keeps_nothing_passes_its_bias():
    layer = SparseLinear.from_dense(nn.Linear(4, 3), sk.Mask.from_dense(torch.zeros(3, 4, dtype=torch.bool)))
    x = torch.randn(5, 4, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, layer.bias.expand(5, 3))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(5, 4)) and layer.weight_values.grad.shape == (0,)
    opt = torch.optim.AdamW(layer.parameters())
    opt.step()
    F.mse_loss(layer(x), torch.zeros(5, 3)).backward()
    opt.step()
