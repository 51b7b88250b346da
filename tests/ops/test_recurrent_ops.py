from dataclasses import replace

import pytest
import torch
from recurrent_op_cases import MODES, op_args, random_recurrent

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
        options = {"hidden": 21, "projection": size, "reverse": reverse}
        case = random_recurrent(generator, "LSTM", RAGGED, dtype=torch.float64, **options)
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
@pytest.mark.parametrize("tier", ("reference", *COMPILED[-1:]))
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

    return layer(op_args(case, given)[:12], MODES.index(case.mode), case.reverse)


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
        x[20 + 18, 2] = float("nan")  # of sample 18 at step 1
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
    case = random_recurrent(generator, "RNN_RELU", (200,) * 3, hidden=4, density=1.0)
    held = replace(
        case,
        x=torch.ones_like(case.x),
        h0=torch.zeros_like(case.h0),
        values={"ih": torch.full_like(case.values["ih"], -10.0), "hh": torch.full_like(case.values["hh"], 2.0)},
        bias_ih=torch.ones(4),
        bias_hh=torch.zeros(4),
    )
    for tensor in held.run(tier).values():
        assert tensor.isfinite().all()
