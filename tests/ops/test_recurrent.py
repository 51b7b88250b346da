from dataclasses import replace

import pytest
import torch
from recurrent_cases import GATES, MODES, random_recurrent
from torch import Tensor

from snipkern.ops.schema_recurrent import MODES as OP_MODES
from snipkern.testing import FLOATS, run_on, tiers

OPS = torch.ops.snipkern
TIERS = tiers()
COMPILED = [tier for tier in TIERS if tier != "reference"]
RAGGED = (5, 3, 3, 1)
EQUAL = (4, 4, 4)
# Error of results in units of the largest of each, over a few steps.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check(case, tier):
    actual, expected = case.run(tier), case.expected()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == case.x.dtype and actual[name].shape == tensor.shape
        error = (actual[name].double() - tensor).abs()
        bound = BOUNDS[case.x.dtype] * max(1e-3, tensor.abs().max().item() if tensor.numel() else 0.0)
        assert (error <= bound).all(), f"{name}: error {error.max()}, bound {bound}"


@pytest.mark.parametrize("reverse", (False, True), ids=("forward", "reverse"))
@pytest.mark.parametrize("lengths", (EQUAL, RAGGED), ids=("equal", "ragged"))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tier", TIERS)
def test_equals_torchs_own_layer(tier, mode, lengths, reverse, generator):
    for dtype in (torch.float64, torch.float32):
        check(random_recurrent(generator, mode, lengths, reverse=reverse, dtype=dtype), tier)


@pytest.mark.parametrize("reverse", (False, True), ids=("forward", "reverse"))
@pytest.mark.parametrize("tier", TIERS)
def test_projection(tier, reverse, generator):
    for size in (1, 4, 19):
        case = random_recurrent(generator, "LSTM", RAGGED, projection=size, reverse=reverse, dtype=torch.float64)
        check(case, tier)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("tier", TIERS)
def test_16_bit_types(tier, dtype, mode, generator):
    for lengths in (EQUAL, RAGGED):
        check(random_recurrent(generator, mode, lengths, inputs=20, hidden=21, dtype=dtype), tier)


# Whole tiles and what is left of them; several tiles to a chain; samples that end or join in the middle of a tile.
LENGTHS = {
    "one sample": (7,),
    "one step": (1,) * 18,
    "whole tile": (3,) * 16,
    "tile and one": (3,) * 17,
    "ends inside of a tile": (9,) * 3 + (7,) * 15 + (3,) * 5 + (1,) * 2,
    "wide tiles": (2,) * 300,
    "more tiles than chains": (1,) * 275,
    "widest tiles": (2,) * 1000 + (1,) * 100,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("tier", TIERS)
def test_tiles(tier, lengths, mode, generator):
    for reverse in (False, True):
        check(random_recurrent(generator, mode, LENGTHS[lengths], reverse=reverse, dtype=torch.float64), tier)


@pytest.mark.parametrize("sizes", ((1, 1), (1, 40), (40, 1), (17, 33)), ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tier", TIERS)
def test_widths(tier, mode, sizes, generator):
    inputs, hidden = sizes
    check(random_recurrent(generator, mode, RAGGED, inputs, hidden, density=0.5, dtype=torch.float64), tier)


@pytest.mark.parametrize("density", (0.0, 1.0), ids=("nothing kept", "all kept"))
@pytest.mark.parametrize("bias", (False, True), ids=("no bias", "bias"))
@pytest.mark.parametrize("tier", TIERS)
def test_densities_and_biases(tier, bias, density, generator):
    for mode in MODES:
        projection = 3 if mode == "LSTM" else None
        case = random_recurrent(
            generator, mode, RAGGED, density=density, bias=bias, projection=projection, dtype=torch.float64
        )
        check(case, tier)


@pytest.mark.parametrize("tier", COMPILED)
def test_rows_beyond_16_bits(tier, generator):
    check(random_recurrent(generator, "RNN_TANH", (2, 1), 65537, 3, density=0.001, dtype=torch.float64), tier)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tier", TIERS)
def test_no_steps_and_no_samples(tier, mode, generator):
    case = random_recurrent(generator, mode, (1, 1, 1), dtype=torch.float64)
    rows, out = case.x[:0], case.h0.shape[1]
    still = replace(case, x=rows, batch_sizes=case.batch_sizes[:0]).run(tier)
    assert still["output"].shape == (0, out)
    assert torch.equal(still["h_n"], case.h0) and torch.equal(still["grad h0"], 4 * case.h0)
    if mode == "LSTM":
        assert torch.equal(still["c_n"], case.c0) and torch.equal(still["grad c0"], 6 * case.c0)
    nobody = replace(
        case,
        x=rows,
        batch_sizes=torch.zeros(3, dtype=torch.int64),
        h0=case.h0[:0],
        c0=None if case.c0 is None else case.c0[:0],
    ).run(tier)
    for results in (still, nobody):
        for name in ("ih", "hh", "bias_ih", "bias_hh"):
            assert not results[f"grad {name}"].any()
    assert nobody["h_n"].shape == (0, out)


@pytest.mark.parametrize("tier", TIERS)
def test_any_strides(tier, generator):
    case = random_recurrent(generator, "LSTM", EQUAL, projection=5, dtype=torch.float64)
    twice = {name: torch.stack([values] * 2, 1)[:, 0] for name, values in case.values.items()}
    strided = replace(
        case,
        x=case.x.t().contiguous().t(),
        h0=case.h0[:1].expand(3, -1),
        c0=case.c0.t().contiguous().t(),
        values=twice,
        bias_ih=case.bias_ih[:1].expand(24),
    )
    check(strided, tier)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.floats.items()}
    with run_on(tier):
        case.layer(leaves)[0].sum().backward()  # a gradient of stride 0
    assert all(leaf.grad is not None for leaf in leaves.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_same_bits_for_any_thread_count(tier, dtype, mode, generator, restore_threads):
    lengths = (24,) * 100 + (11,) * 30
    case = random_recurrent(generator, mode, lengths, inputs=60, hidden=50, density=0.5, dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(case.run(tier))
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]) and torch.equal(tensor, results[2][name])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tier", TIERS)
def test_first_and_second_derivatives(tier, mode, generator):
    for lengths, reverse in (((3, 2), False), ((3, 2), True)):
        projection = 2 if mode == "LSTM" and reverse else None
        case = random_recurrent(
            generator, mode, lengths, 3, 3, projection=projection, reverse=reverse, dtype=torch.float64
        )
        names = list(case.floats)
        leaves = [tensor.requires_grad_() for tensor in case.floats.values()]

        def function(*tensors, case=case, names=names):
            results = case.layer(dict(zip(names, tensors, strict=True)))
            return tuple(result for result in results if result is not None)

        with run_on(tier):
            assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ("output", "h_n", "c_n"))
@pytest.mark.parametrize("tier", TIERS)
def test_gradients_of_one_result_alone(tier, name, generator):
    case = random_recurrent(generator, "LSTM", RAGGED, dtype=torch.float64)
    place = ("output", "h_n", "c_n").index(name)
    found = []
    for kind in (tier, "composite"):
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in case.floats.items()}
        with run_on("reference" if kind == "composite" else kind):
            result = (composite if kind == "composite" else case.layer)(
                *([case] if kind == "composite" else []), leaves
            )
            found.append(torch.autograd.grad(result[place].square().sum(), list(leaves.values())))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


def composite(case, given):
    from snipkern.ops.autograd_recurrent import layer

    return layer(op_args(case, given)[:12], OP_MODES.index(case.mode), case.reverse)


def op_args(case, given=None):
    """Arguments of the op without its ``save``."""
    given = given or case.floats
    index = {name: topology.on(torch.device("cpu")) for name, topology in case.topologies.items()}
    weights = [tensor for name in ("ih", "hh", "hr") for tensor in (given.get(name), index.get(name))]
    head = [given["x"], case.batch_sizes, given["h0"], given.get("c0")]
    tail = [given.get("bias_ih"), given.get("bias_hh"), OP_MODES.index(case.mode), case.reverse]
    return [*head, *weights, *tail]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
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


@pytest.mark.parametrize("tier", TIERS)
def test_what_is_saved_is_the_same_everywhere(tier, generator):
    for mode in ("LSTM", "GRU"):
        case = random_recurrent(generator, mode, (3,) * 20 + (2,) * 3, dtype=torch.float64, reverse=True)
        with run_on(tier):
            output, *_, saved = OPS.recurrent_csr(*op_args(case), True)
            *_, empty = OPS.recurrent_csr(*op_args(case), False)
        assert empty.numel() == 0
        given = {name: tensor.detach() for name, tensor in case.floats.items()}
        c_n = case.c0
        args = [output, case.h0, c_n, *op_args(case, given)[:12], output, saved, *op_args(case)[12:], True]
        with run_on(tier):
            own = OPS.recurrent_csr_backward(*args)
        with run_on("reference"):
            other = OPS.recurrent_csr_backward(*args)
        for actual, expected in zip(own, other, strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("tier", COMPILED)
def test_nan_stays_with_its_sample(tier, generator):
    for mode in MODES:
        case = random_recurrent(generator, mode, (4,) * 20)
        clean = case.run(tier)
        x = case.x.clone()
        x[20 + 18, 3] = float("nan")  # of sample 18 at step 1
        dirty = replace(case, x=x).run(tier)
        others = torch.arange(20) != 18
        for name in ("output", "grad x"):
            assert torch.equal(dirty[name].view(4, 20, -1)[:, others], clean[name].view(4, 20, -1)[:, others])
        assert torch.equal(dirty["h_n"][others], clean["h_n"][others])
        assert torch.equal(dirty["output"][: 20 + 18], clean["output"][: 20 + 18])
        assert dirty["output"].view(4, 20, -1)[1, 18].isnan().any()


@pytest.mark.parametrize("tier", COMPILED)
def test_lanes_without_a_sample_never_count(tier, generator):
    """A plain RNN whose state would overflow by itself, where no input holds it down."""
    case = random_recurrent(generator, "RNN_RELU", (200,) * 3, density=1.0, hidden=4)
    big = {"ih": torch.zeros_like(case.values["ih"]), "hh": torch.full_like(case.values["hh"], 2.0)}
    h0 = torch.zeros_like(case.h0)
    bias = torch.where(torch.arange(4) < 4, 1.0, 0.0)
    x = torch.zeros_like(case.x)
    held = replace(case, x=x, h0=h0, values=big, bias_ih=-bias, bias_hh=torch.zeros(4))
    results = held.run(tier)
    for tensor in results.values():
        assert tensor.isfinite().all()


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


def test_modes_have_their_gates():
    assert GATES == {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
