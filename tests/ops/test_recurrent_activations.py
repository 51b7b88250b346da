"""The kernels' own sigmoid and tanh, read from layers whose gates are their inputs."""

import pytest
import torch

from snipkern import Mask
from snipkern.ops.reference_recurrent import unpacked
from snipkern.ops.schema_recurrent import LSTM, RNN_TANH, SAVED
from snipkern.testing import run_on, tiers
from snipkern.topology import Topology

OPS = torch.ops.snipkern
COMPILED = [tier for tier in tiers() if tier != "reference"]
DTYPES = (torch.float32, torch.float64)
UNITS = 4


def arguments(dtype, generator):
    """From denormals to infinity, of both signs, dense where results change."""
    info = torch.finfo(dtype)
    exponents = torch.linspace(torch.log2(torch.tensor(info.smallest_normal)).item() - 20, 10, 4000).double()
    wide = torch.exp2(exponents)
    dense = torch.rand(6000, generator=generator, dtype=torch.float64) * 60
    edge = torch.linspace(80, 760, 2000, dtype=torch.float64)
    special = torch.tensor([0.0, info.smallest_normal, info.max, float("inf"), float("nan")], dtype=torch.float64)
    positive = torch.cat([wide, dense, edge, special])
    return torch.cat([positive, -positive]).to(dtype)


def applied(mode, x, tier):
    """A plain RNN's output and an LSTM's first gate of one step, which are an activation of x."""
    gates = 4 if mode == LSTM else 1
    identity = Mask.from_dense(torch.eye(gates, 1, dtype=torch.bool))
    nothing = Mask.from_dense(torch.zeros(gates, 1, dtype=torch.bool))
    state, none = x.new_zeros(x.numel(), 1), x.new_empty(0)
    index = [Topology(mask).on(torch.device("cpu")) for mask in (identity, nothing)]
    weights = (x.new_ones(1), index[0], none, index[1], None, None)
    sizes, cell = torch.tensor([x.numel()]), state if mode == LSTM else None
    with run_on(tier):
        output, *_, saved = OPS.recurrent_csr(x[:, None], sizes, state, cell, *weights, None, None, mode, False, True)
    return unpacked(saved, [x.numel()], x.numel(), SAVED[mode])[0][:, 0] if mode == LSTM else output[:, 0]


def errors(actual, expected):
    """In units of the last place of the expected ones, NaN where both are."""
    info = torch.finfo(actual.dtype)
    exponent = torch.frexp(expected).exponent.double()
    unit = torch.exp2(exponent - 1).mul(info.eps).clamp_min(info.smallest_normal * info.eps)
    return (actual.double() - expected).abs() / unit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_tanh_is_right_to_a_few_units_in_the_last_place(tier, dtype, generator):
    x = arguments(dtype, generator)
    actual, expected = applied(RNN_TANH, x, tier), x.double().tanh()
    assert torch.equal(actual.isnan(), x.isnan())
    assert errors(actual, expected).nan_to_num(0.0).max() <= UNITS
    assert (actual.abs() <= 1).logical_or(x.isnan()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tier", COMPILED)
def test_sigmoid_is_right_to_a_few_units_in_the_last_place(tier, dtype, generator):
    x = arguments(dtype, generator)
    exp = (-x.double().abs()).exp()
    expected = torch.where(x < 0, exp / (1 + exp), 1 / (1 + exp))
    actual = applied(LSTM, x, tier)
    assert torch.equal(actual.isnan(), x.isnan())
    assert errors(actual, expected).nan_to_num(0.0).max() <= UNITS
    assert ((actual >= 0) & (actual <= 1)).logical_or(x.isnan()).all()
