import pytest
import torch
from conv_cases import OPS, random_case
from torch import Tensor

from snipkern import Mask
from snipkern.testing import FLOATS, run_on, tiers

TIERS = tiers()
COMPILED = TIERS[1:]
NAMES = ("conv2d_csr", "conv2d_csr_input_grad", "conv2d_csr_weight_grad")


THREADED = {
    "many samples": {"batch": 100, "weight_shape": (20, 12, 3, 3), "size": (16, 16)},
    "one sample, many weights": {"batch": 1, "weight_shape": (64, 64, 3, 3), "size": (16, 16), "density": 0.9},
    "strided bands": {"batch": 40, "weight_shape": (30, 48, 3, 3), "size": (34, 34), "stride": (2, 2)},
}


@pytest.mark.parametrize("geometry", THREADED.values(), ids=THREADED)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, geometry, generator, restore_threads):
    for dtype in FLOATS:
        case = random_case(generator, dtype=dtype, **geometry)
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.run(tier))
        for one, two, three in zip(*results, strict=True):
            assert torch.equal(one, two) and torch.equal(one, three)


DIFFERENTIABLE = {
    "padded": {"size": (3, 3), "padding": (1, 2)},
    "strided": {"size": (5, 5), "stride": (2, 3)},
    "dilated": {"size": (5, 4), "dilation": (2, 2)},
}


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("geometry", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
@pytest.mark.parametrize("tier", COMPILED)
def test_first_and_second_derivatives(tier, geometry, op, generator):
    case = random_case(generator, **geometry, batch=2, weight_shape=(4, 2, 3, 2), density=0.3, dtype=torch.float64)
    tensors, rest = split(case.args()[op])
    leaves = [tensor.requires_grad_() for tensor in tensors]

    def function(*leaves):
        return getattr(OPS, op)(*leaves, *rest)

    with run_on(tier):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def split(args):
    """The floating tensors, which come first, and the other arguments."""
    tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
    return tensors, args[len(tensors) :]


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
def test_opcheck(tier, op, generator):
    for bias in (True, False):
        case = random_case(generator, batch=2, weight_shape=(3, 2, 3, 3), size=(6, 5), stride=(2, 1), bias=bias)
        args = case.args()[op]
        for tensor in args:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.requires_grad_()
        with run_on(tier):
            torch.library.opcheck(getattr(OPS, op), args)


@pytest.mark.parametrize("op", NAMES)
def test_forward_mode_is_refused(op, generator):
    tensors, rest = split(random_case(generator).args()[op])
    tangents = tuple(map(torch.ones_like, tensors))
    with pytest.raises(RuntimeError, match=f"{op}: only reverse-mode differentiation is supported"):
        torch.func.jvp(lambda *leaves: getattr(OPS, op)(*leaves, *rest), tuple(tensors), tangents)


@pytest.mark.parametrize(
    "backend", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)), ids=("aot_eager", "inductor")
)
def test_compiled_program_equals_eager(backend, generator):
    case = random_case(generator, stride=(2, 1), dtype=torch.float64)
    tensors, rest = split(case.args()["conv2d_csr"])

    def function(x, values, bias):
        return OPS.conv2d_csr(x.relu(), values * 2, bias, *rest).square().sum()

    def loss_and_gradients(run):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        loss = run(*leaves)
        return [loss, *torch.autograd.grad(loss, leaves)]

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for actual, expected in zip(loss_and_gradients(compiled), loss_and_gradients(function), strict=True):
        torch.testing.assert_close(actual, expected)


def to(value):
    return lambda _: value


FLOAT = "{} must be float32, float64, float16 or bfloat16 (got torch.int32)"
INPUT = "x must be [batch, channels, height, width] (got [4, 9, 11])"
CHANNELS = "x must have 4 channels (got 3)"
LIKE = "{} must have {}'s dtype and device, torch.float32 on cpu (got torch.float64 on cpu)"
KEPT = "values must be [kept] (got [1, 70])"
WEIGHT = "weight_shape must be [out_channels, in_channels, height, width] (got {})"
TWO = "stride, padding and dilation must have 2 entries each (got {})"
SIGN = "stride and dilation must be positive, padding not negative (got {})"
TOPOLOGY = "topology must be the int32 index of a 6 x 36 mask with {} kept weights, {} elements (got {} torch.{})"
LARGE = (
    "the padded input must be at least as large as the kernel (got input [9, 11], kernel [3, 3], padding [1, 1],"
    " dilation [6, 1])"
)
GRAD = "grad must be [{}, 6, {}] (got {})"
# op -> (position of an argument, its change, message)
ERRORS = {
    "conv2d_csr": (
        (0, Tensor.int, FLOAT.format("x")),
        (0, lambda x: x[0], INPUT),
        (0, lambda x: x[:, :3], CHANNELS),
        (1, lambda values: values[None], KEPT),
        (1, Tensor.double, LIKE.format("values", "x")),
        (1, lambda values: values[1:], TOPOLOGY.format(69, 183, [184], "int32")),
        (2, lambda bias: bias[1:], "bias must be [6] (got [5])"),
        (2, Tensor.double, LIKE.format("bias", "x")),
        (3, lambda index: index[1:], TOPOLOGY.format(70, 184, [183], "int32")),
        (3, Tensor.long, TOPOLOGY.format(70, 184, [184], "int64")),
        (3, lambda index: index.repeat_interleave(2)[::2], TOPOLOGY.format(70, 184, [184], "int32")),
        (4, to([6, 4, 9]), WEIGHT.format([6, 4, 9])),
        (4, to([6, 4, 0, 9]), WEIGHT.format([6, 4, 0, 9])),
        (5, to([1]), TWO.format("[1], [1, 1], [1, 1]")),
        (6, to([1, 1, 1]), TWO.format("[1, 1], [1, 1, 1], [1, 1]")),
        (7, to([]), TWO.format("[1, 1], [1, 1], []")),
        (5, to([0, 1]), SIGN.format("[0, 1], [1, 1], [1, 1]")),
        (6, to([1, -1]), SIGN.format("[1, 1], [1, -1], [1, 1]")),
        (7, to([1, 0]), SIGN.format("[1, 1], [1, 1], [1, 0]")),
        (7, to([6, 1]), LARGE),
    ),
    "conv2d_csr_input_grad": (
        (0, Tensor.int, FLOAT.format("grad")),
        (0, lambda grad: grad[:, :, 1:], GRAD.format("batch", "9, 11", [5, 6, 8, 11])),
        (0, lambda grad: grad[0], GRAD.format("batch", "9, 11", [6, 9, 11])),
        (0, Tensor.sum, GRAD.format("batch", "9, 11", [])),
        (1, lambda values: values[None], KEPT),
        (1, Tensor.double, LIKE.format("values", "grad")),
        (2, lambda index: index[1:], TOPOLOGY.format(70, 184, [183], "int32")),
        (3, to([6, 4, 9]), WEIGHT.format([6, 4, 9])),
        (4, to([9]), "size must have 2 entries (got [9])"),
        (4, to([9, 12]), GRAD.format("batch", "9, 12", [5, 6, 9, 11])),
        (5, to([1]), TWO.format("[1], [1, 1], [1, 1]")),
        (5, to([0, 1]), SIGN.format("[0, 1], [1, 1], [1, 1]")),
        (7, to([6, 1]), LARGE),
    ),
    "conv2d_csr_weight_grad": (
        (0, Tensor.int, FLOAT.format("grad")),
        (0, lambda grad: grad[1:], GRAD.format("5", "9, 11", [4, 6, 9, 11])),
        (1, lambda x: x[0], INPUT),
        (1, lambda x: x[:, :3], CHANNELS),
        (1, Tensor.double, LIKE.format("x", "grad")),
        (2, lambda index: index[1:], TOPOLOGY.format(70, 184, [183], "int32")),
        (3, to(69), TOPOLOGY.format(69, 183, [184], "int32")),
        (4, to([6, 4, 9]), WEIGHT.format([6, 4, 9])),
        (5, to([1]), TWO.format("[1], [1, 1], [1, 1]")),
        (6, to([1, -1]), SIGN.format("[1, 1], [1, -1], [1, 1]")),
        (7, to([6, 1]), LARGE),
    ),
}


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("tier", TIERS)
def test_errors_read_the_same_on_every_backend(tier, op, generator):
    kept = torch.arange(6 * 36) % 3 == 0
    kept[0] = kept[3] = False
    case = random_case(generator, mask=Mask.from_dense(kept.view(6, 4, 3, 3)))
    args = case.args()[op]
    for position, change, text in ERRORS[op]:
        bad = [change(arg) if i == position else arg for i, arg in enumerate(args)]
        with run_on(tier), pytest.raises(RuntimeError) as error:
            getattr(OPS, op)(*bad)
        assert str(error.value) == f"{op}: {text}"
