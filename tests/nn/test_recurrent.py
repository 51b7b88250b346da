"""Sparse recurrent modules: what dense ones with the same zeros do, for all of torch's options."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch
from recurrent_nets import Options, flat, zeroed_
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import snipkern as sk
from snipkern.nn import SparseGRU, SparseLSTM, SparseRNN
from snipkern.nn.convert import SPARSE_CLASSES
from snipkern.testing import run_on

FORMS = ("batched", "unbatched", "packed", "unsorted")
BASE = [Options(), Options("GRU"), Options("RNN"), Options("RNN", nonlinearity="relu"), Options(projection=4)]
STACKED = {"layers": 2, "bidirectional": True, "batch_first": True}
CASES = [
    *(replace(base, form=form) for base in BASE for form in FORMS),
    *(replace(base, form=form, states=False, **STACKED) for base in BASE for form in FORMS),
    *(replace(base, bias=False, keep=keep, seed=3) for base in BASE for keep in (0.0, 1.0)),
]


def drawn(count: int) -> list[Options]:
    """Random options, new in every session."""
    at = random.Random(int(os.environ["SNIPKERN_TEST_SEED"]))
    made: list[Options] = []
    for _ in range(count):
        kind, hidden = at.choice(("LSTM", "GRU", "RNN")), at.randint(2, 40)
        made.append(
            Options(
                kind,
                input_size=at.randint(1, 40),
                hidden_size=hidden,
                layers=at.randint(1, 3),
                bidirectional=at.random() < 0.5,
                bias=at.random() < 0.7,
                batch_first=at.random() < 0.5,
                projection=at.choice((0, at.randint(1, hidden - 1))) if kind == "LSTM" else 0,
                nonlinearity=at.choice(("tanh", "relu")),
                form=at.choice(FORMS),
                states=at.random() < 0.5,
                keep=at.random(),
                seed=at.randrange(2**31),
            )
        )
    return made


def pair_of(options: Options, dtype: torch.dtype = torch.float64) -> tuple[nn.RNNBase, nn.RNNBase]:
    dense = options.module(dtype)
    masks = options.masks(dense)
    kind = SPARSE_CLASSES[type(dense)]
    return zeroed_(dense, masks), kind.from_dense(dense, masks)


def results(module: nn.RNNBase, options: Options) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Outputs and states, and the gradients of a random function of them in inputs, states and dense parameters."""
    x, leaf, states = options.inputs(module.bias_ih_l0.dtype if module.bias else torch.float64)
    made = flat(module(x) if states is None else module(x, states))
    torch.manual_seed(options.seed + 3)
    sum((y * torch.randn_like(y)).sum() for y in made).backward()
    given = [] if states is None else list(states) if isinstance(states, tuple) else [states]
    return made, [leaf.grad, *(state.grad for state in given)]


@pytest.mark.parametrize("options", [*CASES, *drawn(8)], ids=str)
def test_outputs_states_and_all_gradients_equal_the_dense_module(options):
    dense, sparse = pair_of(options)
    expected, expected_grads = results(dense, options)
    found, grads = results(sparse, options)
    exact = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(found, expected, **exact)
    torch.testing.assert_close(grads, expected_grads, **exact)
    for name, parameter in dense.named_parameters():
        topology = sparse.topologies.get(name)
        if topology is None:
            torch.testing.assert_close(sparse.get_parameter(name).grad, parameter.grad, **exact)
        else:
            wanted = parameter.grad.reshape(-1)[topology.flat_index(torch.device("cpu"))]
            torch.testing.assert_close(sparse.values_of(name).grad, wanted, **exact)


@pytest.mark.parametrize("options", [Options(layers=2, projection=4), Options("GRU", form="packed")], ids=str)
def test_hessians_of_a_loss_equal_the_dense_module(options):
    """Unlike those of the outputs alone: here the gradient that comes back depends on all that went in."""
    dense, sparse = pair_of(options)
    generator, found = torch.Generator().manual_seed(7), []
    ways = {n: torch.randn(mask.shape, generator=generator, dtype=torch.float64) for n, mask in sparse.masks.items()}
    for module in (dense, sparse):
        x, leaf, states = options.inputs()
        loss = sum(y.square().square().sum() for y in flat(module(x, states)))
        if module is dense:
            weights = {name: module.get_parameter(name) for name in ways}
            along = {name: way * sparse.masks[name].to_dense() for name, way in ways.items()}
        else:
            index = {n: topology.flat_index(torch.device("cpu")) for n, topology in sparse.topologies.items()}
            weights = {name: module.values_of(name) for name in ways}
            along = {name: way.flatten()[index[name]] for name, way in ways.items()}
        first = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        slope = sum((gradient * way).sum() for gradient, way in zip(first, along.values(), strict=True))
        found.append(torch.autograd.grad(slope, [leaf, *weights.values()]))
    (expected_leaf, *expected), (leaf, *products) = found
    torch.testing.assert_close(leaf, expected_leaf)
    for name, product, wanted in zip(ways, products, expected, strict=True):
        torch.testing.assert_close(product, wanted.flatten()[index[name]])


@pytest.mark.parametrize("options", [Options(layers=2), Options("GRU", form="unsorted")], ids=str)
def test_reference_kernels_do_the_same(options):
    dense, sparse = pair_of(options)
    expected, _ = results(dense, options)
    with run_on("reference"):
        found, _ = results(sparse, options)
    torch.testing.assert_close(found, expected)


def test_packed_sequences_come_back_packed_alike():
    dense, sparse = pair_of(Options(form="unsorted"))
    x, _, states = Options(form="unsorted").inputs()
    (expected, _), (found, _) = dense(x, states), sparse(x, states)
    assert isinstance(found, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("form", ["batched", "packed", "unbatched"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_between_layers_draws_what_the_dense_module_draws(form, batch_first):
    options = Options("GRU", layers=3, dropout=0.5, bidirectional=True, form=form, batch_first=batch_first)
    dense, sparse = pair_of(options)
    x, _, states = options.inputs()
    made = []
    for module in (dense, sparse):
        torch.manual_seed(5)
        made.append(flat(module.train()(x, states)))
    torch.testing.assert_close(made[1], made[0])
    assert not torch.equal(sparse(x, states)[0].data, made[1][0])  # it is random
    torch.testing.assert_close(flat(sparse.eval()(x, states)), flat(dense.eval()(x, states)))


def test_an_empty_batch_goes_through():
    dense, sparse = pair_of(Options())
    x = torch.zeros(5, 0, 5, dtype=torch.float64)
    torch.testing.assert_close(flat(sparse(x)), flat(dense(x)))


@pytest.mark.parametrize("base", BASE, ids=str)
def test_autocast_computes_and_returns_its_dtype(base):
    options = replace(base, input_size=20, hidden_size=24)
    dense, sparse = pair_of(options, torch.float32)
    x, _, states = options.inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flat(sparse(x, states))
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    torch.testing.assert_close([y.float() for y in found], flat(dense(x, states)), rtol=0.05, atol=0.05)
    sum(tensor.float().sum() for tensor in found).backward()
    assert {parameter.grad.dtype for parameter in sparse.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes(dtype):
    options = Options(layers=2)
    dense, sparse = pair_of(options)
    x, _, states = options.inputs()
    expected = flat(dense(x, states))
    sparse.to(dtype)
    found = flat(sparse(x.to(dtype), tuple(state.to(dtype) for state in states)))
    assert {tensor.dtype for tensor in found} == {dtype}
    close = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close([y.double() for y in found], expected, rtol=close, atol=close)


def test_wrong_inputs_are_refused():
    _, sparse = pair_of(Options())
    x = torch.zeros(7, 3, 5, dtype=torch.float64)
    state = torch.zeros(1, 3, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"SparseLSTM: input must be 2-D or 3-D \(got 1-D\)"):
        sparse(x[0, 0])
    with pytest.raises(RuntimeError, match=r"input must be \[..., 5\] of 3 dimensions \(got \[7, 3, 4\]\)"):
        sparse(x[..., :4])
    with pytest.raises(ValueError, match=r"input must be torch.float64 as the weights are \(got torch.float32\)"):
        sparse(x.float())
    with pytest.raises(RuntimeError, match="at least one step"):
        sparse(x[:0])
    with pytest.raises(RuntimeError, match=r"hx must be 3-D for 3-D input \(got 2-D\)"):
        sparse(x, (state[0], state[0]))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 3, 6\), got \[1, 2, 6\]"):
        sparse(x, (state, state[:, :2]))
    with pytest.raises(ValueError, match=r"hx must be torch.float64 as the input is \(got torch.float32\)"):
        sparse(x, (state.float(), state.float()))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        sparse(pack_sequence([x[:, 0], x[:3, 0]]), (state, state))


@pytest.mark.parametrize(
    ("kind", "dense", "other"),
    [(SparseLSTM, nn.LSTM, nn.GRU), (SparseGRU, nn.GRU, nn.RNN), (SparseRNN, nn.RNN, nn.LSTM)],
)
def test_from_dense_refuses_what_does_not_fit(kind, dense, other):
    module = dense(3, 4)
    masks = {name: sk.Mask.full(module.get_parameter(name).shape) for name in ("weight_ih_l0", "weight_hh_l0")}
    wrong = rf"{kind.__name__}.from_dense: the module must be a dense nn.{dense.__name__} \(got {other.__name__}\)"
    with pytest.raises(ValueError, match=wrong):
        kind.from_dense(other(3, 4), masks)
    with pytest.raises(ValueError, match=r"must be of weight_ih_l0, weight_hh_l0 \(got masks of weight_ih_l0\)"):
        kind.from_dense(module, {"weight_ih_l0": masks["weight_ih_l0"]})
    with pytest.raises(ValueError, match="the mask of 'weight_hh_l0' must have shape"):
        kind.from_dense(module, {**masks, "weight_hh_l0": sk.Mask.full((2, 2))})
    with pytest.raises(TypeError, match=f"{kind.__name__}: sparse modules are made from dense ones"):
        kind(3, 4)
    assert type(kind.from_dense(module, masks)) is kind and type(module) is dense
