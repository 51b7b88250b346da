"""The shortcut for eager code computes what the dispatcher's ops do, and steps aside wherever a transform is at work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snipkern.nn import functional
from snipkern.ops.eager import differentiable
from snipkern.testing import random_mask, run_on, tiers
from snipkern.topology import Topology

pytestmark = pytest.mark.usefixtures("one_thread")


def linear_arguments(dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
    generator = torch.Generator().manual_seed(7)
    topology = Topology(random_mask((5, 6), 0.4, generator))
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 6), (topology.nnz,), (5,))]
    return tuple(t.requires_grad_() for t in tensors), (topology.on(torch.device("cpu")), 5, 6, False)


def conv_arguments() -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
    generator = torch.Generator().manual_seed(7)
    shape = [4, 3, 2, 3]
    topology = Topology(random_mask(shape, 0.4, generator))
    tensors = [torch.randn(s, generator=generator).double() for s in ((2, 3, 5, 6), (topology.nnz,), (4,))]
    rest = (topology.on(torch.device("cpu")), shape, [1, 2], [1, 0], [1, 1])
    return tuple(t.requires_grad_() for t in tensors), rest


CASES = {"spmm_csr": linear_arguments, "conv2d_csr": conv_arguments}


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("name", CASES)
def test_same_bits_as_the_dispatcher(name, tier):
    tensors, rest = CASES[name]()
    with run_on(tier):
        outputs = [f(*tensors, *rest) for f in (differentiable(name), getattr(torch.ops.snipkern, name))]
        grad = torch.randn_like(outputs[0])
        gradients = [torch.autograd.grad(y, tensors, grad) for y in outputs]
    assert torch.equal(*outputs)
    assert type(outputs[0].grad_fn).__name__ == f"{name}Backward"
    for got, want in zip(*gradients, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_first_and_second_order(name):
    tensors, rest = CASES[name]()
    call = differentiable(name)
    assert torch.autograd.gradcheck(lambda *t: call(*t, *rest), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: call(*t, *rest), tensors)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_computes_only_wanted_gradients(name, wanted):
    tensors, rest = CASES[name]()
    tensors = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    y = differentiable(name)(*tensors, *rest)
    y.sum().backward()
    assert [t.grad is not None for t in tensors] == list(wanted)


def test_nothing_is_recorded_without_need():
    (x, values, bias), rest = linear_arguments()
    call = differentiable("spmm_csr")
    with torch.no_grad():
        assert call(x, values, bias, *rest).grad_fn is None
    with torch.inference_mode():
        assert call(x, values, bias, *rest).is_inference()
    assert call(x.detach(), values.detach(), None, *rest).grad_fn is None


def test_errors_are_the_ops_own():
    (x, values, bias), rest = linear_arguments()
    with pytest.raises(RuntimeError, match=r"spmm_csr: x must be \[batch, 6\] \(got \[3, 5\]\)"):
        differentiable("spmm_csr")(x[:, :5], values, bias, *rest)


def test_steps_aside_for_transforms():
    topology = Topology(random_mask((5, 6), 0.4, torch.Generator().manual_seed(7)))
    x, values = torch.randn(3, 6), torch.randn(topology.nnz)

    def f(x: Tensor, values: Tensor) -> Tensor:
        return functional.sparse_linear(x, values, None, topology)

    want = f(x, values)
    # The optimising compiler would need the whole toolchain; what matters is the graph, which must hold the op.
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, values.clone().requires_grad_()), want)
    traced = torch.jit.trace(f, (x, values))
    assert "snipkern::spmm_csr" in str(traced.graph)
    assert torch.equal(traced(x, values), want)
    with pytest.raises(RuntimeError, match="only reverse-mode differentiation is supported"):
        torch.func.jvp(f, (x, values), (x, values))


def test_saved_tensor_hooks_and_checkpoint_see_the_operands():
    (x, values, bias), rest = linear_arguments()
    call = differentiable("spmm_csr")
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        want = torch.autograd.grad(call(x, values, bias, *rest).square().sum(), (x, values, bias))
    assert {id(x), id(values)} <= {id(t) for t in packed}
    y = torch.utils.checkpoint.checkpoint(lambda x: call(x, values, bias, *rest), x, use_reentrant=False)
    for got, expected in zip(torch.autograd.grad(y.square().sum(), (x, values, bias)), want, strict=True):
        assert torch.equal(got, expected)


def test_fake_tensors_pass():
    from torch._subclasses.fake_tensor import FakeTensorMode

    (x, values, bias), rest = linear_arguments()
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (x, values, bias, rest[0])]
        y = differentiable("spmm_csr")(*fakes[:3], fakes[3], *rest[1:])
    assert y.shape == (3, 5) and y.requires_grad
