"""The launchers of the block products on CPU tensors, in Triton's interpreter, against dense float64 products.

test_triton_bsr.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import dataclasses

import pytest
import strict_products as strict_products
import torch
from bsr_checks import CPU, TF32_ERROR, Convolution, Layer, weight_of
from strict import Launch

from snipkern.nn.functional import sparse_conv2d, sparse_linear
from snipkern.ops import reference
from snipkern.triton_kernels import conv2d_bsr, spmm_bsr

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

LAYERS = {
    # block, shape, batch, dtype, on an ordered grid
    "one and a half tiles": ((16, 16), (40, 70), 19, F32, False),
    "cut edges": ((32, 32), (70, 90), 17, F16, False),
    "large blocks in double": ((64, 64), (70, 130), 5, F64, False),
    "blocks larger than tiles": ((128, 128), (140, 200), 35, BF16, False),
    "larger still, exact": ((128, 128), (130, 70), 3, F32, False),
    "columns of 4": ((4, 1), (13, 9), 18, F16, False),
    "rows of 7": ((1, 7), (5, 23), 3, F32, False),
    "odd": ((5, 3), (23, 20), 33, BF16, False),
    "odd and large": ((33, 40), (70, 90), 7, F32, False),
    "small": ((8, 8), (30, 40), 9, F64, False),
    "oblong": ((16, 32), (50, 80), 20, BF16, False),
    "ordered": ((16, 16), (50, 40), 9, F16, True),
    "ordered odd": ((5, 3), (14, 20), 5, F64, True),
}


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_layers(case):
    block, shape, batch, dtype, ordered = case
    Layer.random(block, shape, batch, dtype=dtype, ordered=ordered).check(spmm_bsr)


NOTHING_OR_ONE = {
    "no columns": ((7, 0), 3, 1.0),
    "no rows": ((0, 7), 3, 1.0),
    "no samples": ((20, 20), 0, 0.5),
    "one sample": ((20, 20), 1, 0.5),
    "one weight": ((1, 1), 1, 1.0),
    "nothing kept": ((20, 24), 3, 0.0),
    "everything kept": ((20, 24), 3, 1.0),
}


@pytest.mark.parametrize("case", NOTHING_OR_ONE.values(), ids=NOTHING_OR_ONE)
def test_nothing_and_one(case):
    shape, batch, density = case
    for ordered in (False, True):
        Layer.random((16, 16), shape, batch, density=density, ordered=ordered).check(spmm_bsr)


@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
def test_many_samples_are_added_up_in_shares(dtype, monkeypatch):
    monkeypatch.setattr(spmm_bsr, "LEAST_SHARE", 32)
    assert spmm_bsr.in_shares(16, 91) == (2, 64)
    Layer.random((16, 16), (16, 20), 91, dtype=dtype).check(spmm_bsr)


@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "ordered"])
def test_parts_of_a_backward_pass_have_its_bits(ordered):
    layer = Layer.random((16, 16), (20, 24), 5, dtype=BF16, ordered=ordered)
    for whole, part in zip(layer.results(spmm_bsr)[1:], layer.backward_in_parts(spmm_bsr), strict=False):
        assert torch.equal(whole, part)


def test_strides_do_not_matter():
    layer = Layer.random((16, 16), (24, 40), 6)
    wide = torch.randn(6, 80)
    dataclasses.replace(layer, x=wide[:, ::2], grad=torch.randn(24, 6).t()).check(spmm_bsr)
    flat = dataclasses.replace(
        layer,
        x=wide[:1, :40].expand(6, 40),
        grad=wide[:, :1].expand(6, 24),
        values=layer.values[:1].expand(layer.values.numel()),
        bias=layer.bias[:1].expand(24),
    )
    flat.check(spmm_bsr)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_reaches_only_what_reads_it():
    layer = Layer.random((16, 16), (40, 50), 20, density=0.3)
    kept = weight_of(torch.ones_like(layer.values), layer.topology) != 0
    clean, clean_grad, *_ = layer.results(spmm_bsr)
    layer.x[11, 21], layer.grad[11, 21] = float("nan"), float("inf")
    y, grad_x, *_ = layer.results(spmm_bsr)
    rows, cols = kept[:, 21], kept[21]
    assert y[11, rows].isnan().all() and not grad_x[11, cols].isfinite().any()
    y[11, rows], grad_x[11, cols] = clean[11, rows], clean_grad[11, cols]
    assert torch.equal(y, clean) and torch.equal(grad_x, clean_grad)


@pytest.fixture(params=("allow_tf32", "fp32_precision"))
def tf32(request):
    """By the older of torch's settings and by the newer one, after which torch refuses to read the older."""
    matmul = torch.backends.cuda.matmul
    before = getattr(matmul, request.param)
    setattr(matmul, request.param, "tf32" if request.param == "fp32_precision" else True)
    yield
    setattr(matmul, request.param, before)


@pytest.mark.usefixtures("tf32")
def test_tf32_with_permission():
    layer = Layer.random((16, 16), (20, 40), 17)
    layer.check(spmm_bsr, error=TF32_ERROR)
    expected = layer.dense(lambda tensor: tensor)
    # Without permission they are nearer than this, by the tests above.
    for result, want in zip(layer.results(spmm_bsr)[:3], expected, strict=False):
        assert (result.double() - want).abs().max() > 1e-4
    Layer.random((16, 16), (20, 40), 17, dtype=F64).check(spmm_bsr)
    Convolution.random((16, 16), (16, 4, 2, 2), (3, 3)).check(conv2d_bsr, error=TF32_ERROR)


def test_offsets_beyond_31_bits(monkeypatch):
    """Only the last samples run; what they do not touch stays unused address space."""
    batch = 2**27 + 16
    layer = Layer.random((16, 16), (16, 16), 16, dtype=F16, density=1.0)
    expected, grad_x, *_ = layer.results(spmm_bsr)
    x, grad = torch.empty(2, batch, 16, dtype=F16)
    x[-16:], grad[-16:] = layer.x, layer.grad
    index, programs = layer.topology.on(CPU), batch // 128
    monkeypatch.setattr(Launch, "only", (programs,))
    monkeypatch.setattr(Layer, "size", (16, 16, 16, 16))
    assert torch.equal(spmm_bsr.spmm_bsr(x, layer.values, layer.bias, index, *layer.size, False)[-16:], expected)
    assert torch.equal(spmm_bsr.spmm_bsr(grad, layer.values, None, index, *layer.size, True)[-16:], grad_x)


@pytest.mark.parametrize(
    "change",
    [{"x": lambda x: x[:, 1:]}, {"x": lambda x: x.int()}, {"values": lambda v: v[1:, None]}, {"bias": lambda b: b[1:]}],
    ids=["narrow", "integers", "matrix", "short bias"],
)
def test_bad_layers_raise_what_the_reference_raises(change):
    layer = Layer.random((16, 16), (20, 20), 3)
    layer = dataclasses.replace(layer, **{name: make(getattr(layer, name)) for name, make in change.items()})
    args = (layer.values, layer.bias, layer.topology.on(CPU), *layer.size, False)
    messages = []
    for function in (reference.spmm_bsr, spmm_bsr.spmm_bsr):
        with pytest.raises(ValueError, match=r"^spmm_bsr: .* \(got .*\)$") as error:
            function(layer.x, *args)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


# Through autograd


@pytest.fixture
def launchers_on_cpu():
    library = torch.library.Library("snipkern", "IMPL")
    for name, launcher in (spmm_bsr.OPS | conv2d_bsr.OPS).items():
        library.impl(name, launcher, "CPU", allow_override=True)
    yield
    library._destroy()


def derivatives(function, inputs):
    """Result, gradients, and the gradients of a sum of those."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    first = torch.autograd.grad(
        (y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum(), inputs, create_graph=True
    )
    second = torch.autograd.grad(sum((grad**2).sum() for grad in first), inputs, materialize_grads=True)
    return y, *first, *second


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")
@pytest.mark.usefixtures("launchers_on_cpu")
def test_derivatives_of_modules_are_those_of_dense_ones():
    layer = Layer.random((16, 16), (18, 10), 3, dtype=F64)

    def dense(x, values, bias):
        at = layer.topology.flat_index(CPU)
        return x @ torch.zeros(180, dtype=F64).index_put((at,), values).view(18, 10).t() + bias

    inputs = (layer.x, layer.values, layer.bias)
    sparse = derivatives(lambda *tensors: sparse_linear(*tensors, layer.topology), inputs)
    for actual, expected in zip(sparse, derivatives(dense, inputs), strict=True):
        torch.testing.assert_close(actual, expected)
    case = Convolution.random((16, 16), (4, 2, 2, 2), (3, 3), batch=2, dtype=F64, density=1.0)

    def dense_conv(x, values, bias):
        at = case.topology.flat_index(CPU)
        weight = torch.zeros(32, dtype=F64).index_put((at,), values).view(case.shape)
        return torch.conv2d(x, weight, bias, *case.window)

    inputs = (case.x, case.values, case.bias)
    sparse = derivatives(lambda *tensors: sparse_conv2d(*tensors, case.topology, *case.window), inputs)
    for actual, expected in zip(sparse, derivatives(dense_conv, inputs), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")
@pytest.mark.usefixtures("launchers_on_cpu")
def test_opcheck():
    layer = Layer.random((16, 16), (16, 16), 3)
    args = (layer.x.requires_grad_(), layer.values.requires_grad_(), layer.bias, layer.topology.on(CPU), *layer.size)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.snipkern.spmm_bsr, (*args, False), test_utils=utilities)
