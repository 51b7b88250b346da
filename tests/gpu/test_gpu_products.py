"""Products and convolutions on the device: the CPU tests' cases against the same float64 references."""

from dataclasses import replace

import bsr_cases
import conv_cases
import csr_cases
import pytest
import torch
from where import DEVICE, FLOATS, PRODUCTS, TIERS, cuda_only, few, long_elsewhere, serving

from snipkern import Mask

MAKERS = {
    "spmm_csr": csr_cases.random_spmm,
    "sddmm_csr": csr_cases.random_sddmm,
    "spmm_csr_backward": csr_cases.random_backward,
}
BATCHES = (0, 1, 3, 63, 64, 65, 200)
# What kernels are tuned for, and all the ways in which blocks end.
BLOCKS = (
    (1, 1), (4, 1), (1, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (3, 5), (16, 8), (2, 17), (33, 40), (500, 2),
)  # fmt: skip


@pytest.mark.parametrize("batch", few(BATCHES))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", MAKERS)
@pytest.mark.parametrize("tier", TIERS)
def test_single_weights_on_random_ragged_shapes(tier, op, dtype, batch, generator):
    with serving(tier, op):
        MAKERS[op](generator, dtype=dtype, batch=batch).to(DEVICE).check(tier)
        if op == "spmm_csr":
            case = csr_cases.random_spmm(generator, dtype=dtype, batch=batch, transpose=True, bias=False)
            case.to(DEVICE).check(tier)


@pytest.mark.parametrize("op", MAKERS)
@pytest.mark.parametrize("tier", PRODUCTS)
def test_single_weights_of_every_kind(tier, op, generator):
    with serving(tier, op):
        for density in (0.0, 0.01, 1.0):
            MAKERS[op](generator, density=density).to(DEVICE).check(tier)
        for shape in ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1)):
            MAKERS[op](generator, shape=shape, density=0.5).to(DEVICE).check(tier)
        for shape in ((9, 5003), (5003, 9), (3, 70_001)):  # columns above 65536 take indices of 32 bits
            MAKERS[op](generator, shape=shape, density=0.001, batch=67).to(DEVICE).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", PRODUCTS)
def test_tiny_and_huge_magnitudes(tier, dtype, generator):
    with serving(tier, "spmm_csr"):
        for left, right in csr_cases.SCALES[dtype]:
            case = csr_cases.random_spmm(generator, dtype=dtype, batch=17, shape=(40, 50), bias=False).to(DEVICE)
            replace(case, x=case.x * left, values=case.values * right).check(tier)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", PRODUCTS)
def test_any_strides(tier, dtype, generator):
    with serving(tier, "spmm_csr"):
        case = csr_cases.random_spmm(generator, dtype=dtype, batch=70, shape=(33, 41)).to(DEVICE)
        wide = torch.randn(70, 82, generator=generator).to(dtype).to(DEVICE)
        for x in (wide[:, ::2], wide[:41].t().contiguous().t()[:, :41].repeat(2, 1)[:70], wide[:1, :41].expand(70, 41)):
            replace(case, x=x).check(tier)
        replace(case, x=wide[:, :1].expand(70, 41)).check(tier)
        replace(case, values=case.values[:1].expand(case.values.numel())).check(tier)
    with serving(tier, "spmm_bsr"):
        blocked = bsr_cases.random_case(generator, (3, 5), dtype=dtype, batch=70, shape=(33, 41)).to(DEVICE)
        for x, grad in ((wide[:, :82:2], wide[:, :66:2]), (wide[:1, :41].expand(70, 41), wide[:, :1].expand(70, 33))):
            replace(blocked, x=x, grad=grad).check_spmm(tier)
            replace(blocked, x=x, grad=grad).check_sddmm(tier)


@pytest.mark.parametrize("block", few(BLOCKS), ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_blocks_on_random_ragged_shapes(tier, dtype, block, generator):
    with serving(tier, "spmm_bsr"):
        for batch in bsr_cases.some(BATCHES, generator):
            case = bsr_cases.random_case(generator, block, dtype=dtype, batch=batch, bias=batch % 2 == 1).to(DEVICE)
            case.check_spmm(tier)
            case.check_sddmm(tier)


@pytest.mark.parametrize("block", few(BLOCKS), ids=str)
@pytest.mark.parametrize("tier", PRODUCTS)
def test_blocks_with_orders(tier, block, generator):
    with serving(tier, "spmm_bsr_backward"):
        for dtype in FLOATS:
            bsr_cases.Ordered.random(generator, block, dtype=dtype, batch=65).to(DEVICE).check(tier)


@pytest.mark.parametrize("tier", PRODUCTS)
def test_blocks_of_every_kind(tier, generator):
    with serving(tier, "spmm_bsr"):
        for block in ((4, 1), (16, 16), (32, 32)):
            for shape in ((0, 7), (7, 0), (1, 1), (1, 130), (130, 1), (9, 5003), (5003, 9)):
                case = bsr_cases.random_case(generator, block, shape=shape, density=0.3, batch=67).to(DEVICE)
                case.check_spmm(tier)
                case.check_sddmm(tier)
            for density in (0.0, 0.01, 1.0):
                bsr_cases.random_case(generator, block, density=density).to(DEVICE).check_spmm(tier)


GEOMETRIES = {
    "3x3": {},
    "strided": {"stride": (2, 3), "padding": (2, 5), "size": (15, 17)},
    "dilated": {"stride": (2, 4), "dilation": (2, 2), "size": (15, 17)},
    "1x1": {"weight_shape": (5, 8, 1, 1), "size": (8, 8), "stride": (2, 2), "padding": (0, 0)},
    "patches": {"weight_shape": (6, 3, 4, 4), "size": (16, 20), "stride": (4, 4), "padding": (0, 0)},
    "padding larger than the kernel": {"padding": (5, 4), "size": (3, 2)},
    "no window reaches all of it": {"size": (12, 10), "stride": (5, 4), "padding": (0, 0)},
    "one row": {"weight_shape": (4, 3, 1, 5), "size": (1, 70), "padding": (0, 2)},
    "many channels": {"weight_shape": (40, 70, 3, 3), "size": (5, 6), "batch": 18},
    "no samples": {"batch": 0},
}


@pytest.mark.parametrize("block", (None, (4, 1), (16, 16), (3, 5)), ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("tier", TIERS)
def test_convolutions(tier, geometry, block, generator):
    with serving(tier, "conv2d_csr" if block is None else "conv2d_bsr"):
        for dtype in FLOATS:
            options = {"batch": 5, **geometry, "density": 0.4, "block": block, "dtype": dtype}
            case = conv_cases.random_case(generator, **options).to(DEVICE)
            case.check(tier)
        last = torch.channels_last
        replace(case, x=case.x.to(memory_format=last), grad=case.grad.to(memory_format=last)).check(tier)


@pytest.mark.parametrize("tier", PRODUCTS)
def test_nan_reaches_only_what_reads_it(tier, generator):
    with serving(tier, "spmm_csr"):
        case = csr_cases.random_spmm(generator, batch=70, shape=(37, 45)).to(DEVICE)
        clean = case.run(tier).cpu()
        case.x[66, 11] = float("nan")
        y, reads = case.run(tier).cpu(), case.mask.to_dense()[:, 11]
    others = torch.arange(70) != 66
    assert y[66, reads].isnan().all() and torch.equal(y[66, ~reads], clean[66, ~reads])
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("tier", PRODUCTS)
def test_same_bits_twice(tier, generator):
    """Also with other work on the device in between, and one huge row."""
    kept = torch.rand(300, 500, generator=generator) < 0.02
    kept[7] = True
    for dtype in FLOATS:
        with serving(tier, "spmm_csr_backward"):
            shape = {"dtype": dtype, "batch": 333, "shape": (300, 500)}
            case = csr_cases.random_backward(generator, **shape)
            values = torch.randn(int(kept.sum()), generator=generator).to(dtype)
            case = replace(case, mask=Mask.from_dense(kept), values=values).to(DEVICE)
            first = case.run(tier)
            torch.randn(400, 400).to(DEVICE).square_()
            assert all(map(torch.equal, first, case.run(tier)))
        with serving(tier, "spmm_bsr_backward"):
            blocked = bsr_cases.random_case(generator, (16, 16), **shape).to(DEVICE)
            first = bsr_cases.OPS.spmm_bsr_backward(*blocked.backward_args())
            assert all(map(torch.equal, first, bsr_cases.OPS.spmm_bsr_backward(*blocked.backward_args())))


@long_elsewhere
@pytest.mark.parametrize("op", ("spmm_csr", "sddmm_csr", "spmm_csr_backward", "spmm_bsr", "sddmm_bsr", "conv2d_csr"))
@pytest.mark.parametrize("tier", PRODUCTS)
def test_opcheck(tier, op, generator):
    blocked = bsr_cases.random_case(generator, (4, 2), batch=4, shape=(9, 9)).to(DEVICE)
    convolution = conv_cases.random_case(generator, batch=2, weight_shape=(3, 2, 3, 3), size=(6, 5)).to(DEVICE)
    args = {
        "spmm_bsr": blocked.spmm_args,
        "sddmm_bsr": blocked.sddmm_args,
        "conv2d_csr": lambda: convolution.args()["conv2d_csr"],
    }.get(op) or MAKERS[op](generator, batch=4, shape=(8, 9)).to(DEVICE).args
    with serving(tier, op):
        found = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args()]
        torch.library.opcheck(getattr(torch.ops.snipkern, op).default, tuple(found))


@pytest.mark.parametrize("tier", PRODUCTS)
def test_errors_come_before_anything_runs(tier, generator):
    with serving(tier, "spmm_csr"):
        x, *rest = csr_cases.random_spmm(generator, batch=3, shape=(4, 6)).to(DEVICE).args()
        with pytest.raises(RuntimeError, match=r"^spmm_csr: x must be \[batch, 6\] \(got \[3, 5\]\)$"):
            csr_cases.OPS.spmm_csr(x[:, 1:], *rest)
        with pytest.raises(RuntimeError, match=r"^spmm_csr: values must have x's dtype and device, torch.float32 on"):
            csr_cases.OPS.spmm_csr(x, rest[0].double(), *rest[1:])


@cuda_only
@pytest.mark.parametrize("op", ("spmm_csr", "spmm_bsr"))
def test_reduced_float32_only_where_allowed(op, generator):
    """With TF32, a product is as far off as rounding the operands to 11 bits may put it."""
    torch.backends.cuda.matmul.allow_tf32 = True
    with serving("cuda", op):
        if op == "spmm_csr":
            case = csr_cases.random_spmm(generator, batch=129, shape=(200, 300), bias=False).to(DEVICE)
            y = case.run("cuda")
        else:
            case = bsr_cases.random_case(generator, (32, 32), batch=129, shape=(200, 300), bias=False).to(DEVICE)
            y = bsr_cases.OPS.spmm_bsr(*case.spmm_args())
    weight = bsr_cases.dense_weight(case.values, case.mask).t()
    x = case.x.cpu().double()
    error = (y.cpu().double() - x @ weight).abs()
    assert (error <= 2**-9 * (x.abs() @ weight.abs()) + 1e-30).all()


@cuda_only
@pytest.mark.parametrize("op", ("spmm_csr", "spmm_bsr"))
@pytest.mark.parametrize("tier", PRODUCTS)
def test_more_elements_than_32_bits_count(tier, op):
    """Activations of more than 2^31 elements: the last samples' outputs are as if they were alone."""
    batch, inputs, outputs = 2**25 + 3, 64, 72
    if torch.cuda.mem_get_info()[0] < 3 * batch * (inputs + outputs):
        pytest.skip("needs 14 GB of the device's memory")
    kept = torch.zeros(outputs, inputs, dtype=torch.bool)
    kept[16:32, :16] = kept[64:72, 48:] = kept[0:16, 32:48] = True
    with serving(tier, op):
        topology = (
            csr_cases.Topology(Mask.from_dense(kept))
            if op == "spmm_csr"
            else bsr_cases.BlockTopology(Mask.from_dense(kept), (16, 16))
        )
        rest = (None, topology.on(DEVICE), outputs, inputs, *((16, 16) if op == "spmm_bsr" else ()), False)
        x = torch.ones(batch, inputs, dtype=torch.float16, device=DEVICE)
        x[-5:] = torch.randn(5, inputs, device=DEVICE).half()
        values = torch.randn(topology.nnz, device=DEVICE).half()
        function = getattr(torch.ops.snipkern, op)
        y = function(x, values, *rest)
        assert torch.equal(y[-5:], function(x[-5:].clone(), values, *rest))
        assert torch.equal(y[:64], function(x[:64].clone(), values, *rest))
