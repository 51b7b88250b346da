"""What the recurrent ops require and promise to torch: schemas, errors, compiled programs."""

import pytest
import torch
from recurrent_op_cases import MODES, op_args, random_recurrent
from torch import Tensor

from snipkern.testing import run_on, tiers

OPS = torch.ops.snipkern
COMPILED = [tier for tier in tiers() if tier != "reference"]
RAGGED = (5, 3, 3, 1)
EQUAL = (4, 4, 4)


@pytest.mark.parametrize(
    ("tier", "mode"), [("reference", "LSTM"), *((tier, mode) for tier in COMPILED[-1:] for mode in MODES[:3])]
)
def test_opcheck(tier, mode, generator):
    projection = 3 if mode == "LSTM" else None
    case = random_recurrent(generator, mode, RAGGED, projection=projection)
    for tensor in case.floats.values():
        tensor.requires_grad_()
    with run_on(tier):
        torch.library.opcheck(OPS.recurrent_csr, (*op_args(case), True))
        detached = op_args(case, {name: tensor.detach() for name, tensor in case.floats.items()})
        torch.library.opcheck(OPS.recurrent_csr, (*detached, False))
        output, h_n, c_n, saved = OPS.recurrent_csr(*detached, True)
        grads = (torch.ones_like(output), torch.ones_like(h_n), torch.ones_like(c_n) if mode == "LSTM" else None)
        args = [*grads, *detached[:12], output, saved, *detached[12:], True]
        torch.library.opcheck(OPS.recurrent_csr_backward, args)


def changed(**changes):
    """The op's arguments by place, some of them changed."""

    def make(args):
        names = ("x", "batch_sizes", "h0", "c0", "values_ih", "topology_ih", "values_hh", "topology_hh", "values_hr")
        names += ("topology_hr", "bias_ih", "bias_hh", "mode", "reverse")
        return [changes[name](arg) if name in changes else arg for name, arg in zip(names, args, strict=True)]

    return make


LAST = "batch_sizes must begin with 2, never rise, nor fall below 0, and add up to 5"
ERRORS = {
    "integers": (changed(x=Tensor.int), "x must be float32, float64, float16 or bfloat16 (got torch.int32)"),
    "mode": (changed(mode=lambda _: 4), "mode must be 0 (LSTM), 1 (GRU), 2 (RNN_TANH) or 3 (RNN_RELU) (got 4)"),
    "dimensions of x": (changed(x=lambda x: x[None]), "x must be [rows, inputs] (got [1, 5, 4])"),
    "dimensions of h0": (changed(h0=lambda h: h[0]), "h0 must be [batch, outputs] (got [3])"),
    "dtype of h0": (
        changed(h0=Tensor.double),
        "h0 must have x's dtype and device, torch.float32 on cpu (got torch.float64 on cpu)",
    ),
    "no cell": (changed(c0=lambda _: None), "c0 must be given for an LSTM alone (got LSTM)"),
    "cell of a GRU": (changed(mode=lambda _: 1), "c0 must be given for an LSTM alone (got GRU)"),
    "rows of c0": (changed(c0=lambda c: c[1:]), "c0 must be [2, hidden] (got [1, 6])"),
    "dtype of sizes": (
        changed(batch_sizes=Tensor.int),
        "batch_sizes must be int64 [steps] on the CPU (got [3] torch.int32)",
    ),
    "half a projection": (
        changed(values_hr=lambda _: None),
        "values_hr and topology_hr must be given together, for an LSTM alone (got LSTM)",
    ),
    "lacking projection": (
        changed(values_hr=lambda _: None, topology_hr=lambda _: None),
        "h0 must be [2, 6] without hr (got [2, 3])",
    ),
    "values": (changed(values_hh=lambda v: v[None]), "values must be [kept] (got [1, 72])"),
    "too few values": (
        changed(values_hh=lambda v: v[1:]),
        "topology must be the int32 index of a 24 x 3 mask with 71 kept weights, 172 elements (got [173] torch.int32)",
    ),
    "bias": (changed(bias_hh=lambda b: b[1:]), "bias must be [24] (got [23])"),
    "rising sizes": (changed(batch_sizes=lambda s: s[[0, 2, 1]]), f"{LAST} (got 2 at first, 5 together, not falling)"),
    "too few rows": (changed(batch_sizes=lambda s: s[:2]), f"{LAST} (got 2 at first, 4 together)"),
    "another batch": (changed(batch_sizes=lambda s: s[2:].repeat(5)), f"{LAST} (got 1 at first, 5 together)"),
}


@pytest.mark.parametrize("mistake", ERRORS)
@pytest.mark.parametrize("tier", ("reference", *COMPILED[:1]))
def test_errors_read_the_same_on_every_backend(tier, mistake, generator):
    make, text = ERRORS[mistake]
    args = op_args(random_recurrent(generator, "LSTM", (3, 2), 4, 6, projection=3, density=1.0))
    with run_on(tier), pytest.raises(RuntimeError) as error:
        OPS.recurrent_csr(*make(args), False)
    assert str(error.value) == f"recurrent_csr: {text}"


BACKWARD_ERRORS = {
    "grad_output": (0, lambda grad: grad[1:], "grad_output must be [5, 3] (got [4, 3])"),
    "grad_h_n": (1, lambda grad: grad[1:], "grad_h_n must be [2, 3] (got [1, 3])"),
    "grad_c_n": (2, lambda grad: grad[1:], "grad_c_n must be [2, 6] (got [1, 6])"),
    "no grad_c_n": (2, lambda _: None, "grad_c_n must be given for an LSTM alone (got LSTM)"),
    "output": (15, lambda output: output[:, 1:], "output must be [5, 3] (got [5, 2])"),
    "saved": (
        16,
        lambda saved: saved[:0],
        "saved must be torch.float32 [1440], what recurrent_csr returns with save (got torch.float32 [0])",
    ),
}


@pytest.mark.parametrize("mistake", BACKWARD_ERRORS)
@pytest.mark.parametrize("tier", ("reference", *COMPILED[:1]))
def test_errors_of_the_backward(tier, mistake, generator):
    place, change, text = BACKWARD_ERRORS[mistake]
    args = op_args(random_recurrent(generator, "LSTM", (3, 2), 4, 6, projection=3, density=1.0))
    with run_on(tier):
        output, h_n, c_n, saved = OPS.recurrent_csr(*args, True)
        given = [output, h_n, c_n, *args[:12], output, saved, *args[12:], True]
        given[place] = change(given[place])
        with pytest.raises(RuntimeError) as error:
            OPS.recurrent_csr_backward(*given)
    assert str(error.value) == f"recurrent_csr_backward: {text}"


@pytest.mark.parametrize("tier", ("reference", *COMPILED[:1]))
def test_derivatives_need_what_is_saved(tier, generator):
    case = random_recurrent(generator, "GRU", EQUAL)
    case.x.requires_grad_()
    with run_on(tier):
        output, *_ = OPS.recurrent_csr(*op_args(case), False)
        with pytest.raises(
            RuntimeError, match=r"recurrent_csr: derivatives need what save=True keeps \(got save=False\)"
        ):
            output.sum().backward()


def test_compiled_program_equals_eager(generator):
    case = random_recurrent(generator, "LSTM", EQUAL, dtype=torch.float64)
    names = list(case.floats)

    def function(*tensors):
        output, h_n, c_n = case.layer(dict(zip(names, tensors, strict=True)))
        return output.square().sum() + (h_n * c_n).sum()

    def loss_and_gradients(run):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in case.floats.values()]
        loss = run(*leaves)
        return [loss, *torch.autograd.grad(loss, leaves)]

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(loss_and_gradients(compiled), loss_and_gradients(function), strict=True):
        torch.testing.assert_close(actual, expected)
