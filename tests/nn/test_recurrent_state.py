"""Sparse recurrent modules as modules: state dicts, copies, attributes, conversion and back, tracing."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from recurrent_nets import Options, flat, zeroed_
from torch import nn

import snipkern as sk
from snipkern.nn import SparseLSTM
from snipkern.nn.convert import SPARSE_CLASSES

OPTIONS = {
    "LSTM": Options(layers=2, bidirectional=True, projection=4, seed=1),
    "GRU": Options("GRU", layers=2, seed=2),
    "RNN": Options("RNN", bias=False, seed=3),
}


@pytest.fixture(params=OPTIONS)
def options(request) -> Options:
    return OPTIONS[request.param]


@pytest.fixture
def dense(options) -> nn.RNNBase:
    module = options.module()
    return zeroed_(module, options.masks(module))


@pytest.fixture
def sparse(options, dense) -> nn.RNNBase:
    return SPARSE_CLASSES[type(dense)].from_dense(dense, options.masks(dense))


def outputs(module: nn.Module, options: Options) -> list[torch.Tensor]:
    x, _, states = options.inputs(next(module.parameters()).dtype)
    return [y.detach() for y in flat(module(x, states))]


def same(module: nn.Module, other: nn.Module, options: Options) -> None:
    torch.testing.assert_close(outputs(module, options), outputs(other, options))


def test_parameters_keep_their_places(dense, sparse):
    wanted = [n + "_values" if n.startswith("weight") else n for n, _ in dense.named_parameters()]
    assert [name for name, _ in sparse.named_parameters()] == wanted
    assert sum(p.numel() for n, p in sparse.named_parameters() if "weight" in n) == sum(
        mask.count() for mask in sparse.masks.values()
    )
    assert sk.masks(sparse) == sparse.masks
    # Nothing holds the dense weights any more.
    held = [value for value in vars(sparse).values() if isinstance(value, (list, tuple))]
    assert not [item for part in held for item in part if isinstance(item, torch.Tensor)]


def test_dense_weights_are_made_on_demand_and_cannot_be_set(dense, sparse):
    for name, parameter in dense.named_parameters():
        assert torch.equal(getattr(sparse, name), parameter)
    assert [len(row) for row in sparse.all_weights] == [len(row) for row in dense.all_weights]
    sparse.weight_hh_l0.sum().backward()
    assert torch.equal(sparse.weight_hh_l0_values.grad, torch.ones_like(sparse.weight_hh_l0_values))
    with pytest.raises(AttributeError, match="weight_hh_l0 is made from weight_hh_l0_values and cannot be set"):
        sparse.weight_hh_l0 = nn.Parameter(torch.zeros(2))
    with pytest.raises(AttributeError, match="has no attribute 'weight_hh_l9'"):
        _ = sparse.weight_hh_l9


def test_other_attributes_can_be_set():
    options = OPTIONS["GRU"]
    dense = options.module()
    sparse = SPARSE_CLASSES[nn.GRU].from_dense(dense, options.masks(dense))
    sparse.bias_ih_l0 = nn.Parameter(torch.zeros_like(sparse.bias_ih_l0))
    sparse.weight_hh_l1_values = nn.Parameter(torch.zeros_like(sparse.weight_hh_l1_values))
    sparse.note = "kept"
    assert sparse.note == "kept" and not sparse.bias_ih_l0.any() and not sparse.weight_hh_l1.any()


def test_copies_and_pickles_compute_alike(sparse, options):
    buffer = io.BytesIO()
    torch.save(sparse, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), loaded):
        assert type(other) is type(sparse) and sk.masks(other) == sk.masks(sparse)
        same(other, sparse, options)
        before = outputs(sparse, options)
        with torch.no_grad():
            other.values_of("weight_ih_l0").zero_()
        assert torch.equal(outputs(sparse, options)[0], before[0])
        assert type(sk.to_dense_(other)) is sparse.dense_class


def test_state_dicts_go_back_and_forth(dense, sparse, options):
    saved = sparse.state_dict()
    names = [name for name, _ in dense.named_parameters()]
    wanted = {n + end for n in names if n.startswith("weight") for end in ("_values", "_mask")}
    assert set(saved) == wanted | {name for name in names if name.startswith("bias")}
    other = SPARSE_CLASSES[type(dense)].from_dense(options.module(), sparse.masks)
    other.reset_parameters()
    other.load_state_dict(saved)
    same(other, sparse, options)
    other.reset_parameters()
    other.load_state_dict(dense.state_dict())  # dense, with the same zeros
    same(other, sparse, options)
    fresh = options.module()
    sk.load_(fresh, saved)
    assert type(fresh) is type(sparse)
    same(fresh, sparse, options)
    plain = sk.dense_state_dict(sparse)
    assert set(plain) == set(names)
    again = options.module()
    again.load_state_dict(plain)
    same(again, dense, options)
    masked = options.module()
    sk.sparsify_(masked, sparse.masks, engine="masked")
    masked.load_state_dict(saved)
    same(masked, sparse, options)
    other.reset_parameters()
    other.load_state_dict(masked.state_dict())
    same(other, sparse, options)


def test_wrong_state_dicts_are_refused(dense, sparse, options):
    saved = sparse.state_dict()
    stray = dense.state_dict()
    stray["weight_hh_l0"] = torch.ones_like(stray["weight_hh_l0"])
    with pytest.raises(RuntimeError, match=r"weight_hh_l0: must be zero outside the mask \(got \d+ non-zero"):
        sparse.load_state_dict(stray)
    other_mask = {**saved, "weight_ih_l0_mask": ~saved["weight_ih_l0_mask"]}
    with pytest.raises(RuntimeError, match="weight_ih_l0: the state dict's mask must be the module's"):
        sparse.load_state_dict(other_mask)
    lacking = {key: value for key, value in saved.items() if key != "weight_hh_l0_values"}
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_hh_l0_values"):
        sparse.load_state_dict(lacking)
    partly = {key: value for key, value in saved.items() if key not in ("weight_hh_l0_values", "weight_hh_l0_mask")}
    partly["weight_hh_l0"] = dense.weight_hh_l0.detach()
    fresh = options.module()
    with pytest.raises(ValueError, match=r"must become sparse together \(got none for weight_hh_l0\)"):
        sk.load_(fresh, partly)
    assert type(fresh) is type(dense) and not sk.masks(fresh)


def test_dense_again_it_is_what_it_was(dense, sparse, options):
    sparse.weight_ih_l0_values.tag = "mine"
    sk.to_dense_(sparse)
    assert type(sparse) is type(dense) and not sk.masks(sparse)
    assert [n for n, _ in sparse.named_parameters()] == [n for n, _ in dense.named_parameters()]
    assert sparse.weight_ih_l0.tag == "mine"
    same(sparse, dense, options)
    # torch's own list of weights is up to date: fused kernels see changes, moves and other parameters.
    with torch.no_grad():
        sparse.weight_ih_l0.zero_()
    assert not torch.equal(outputs(sparse, options)[0], outputs(dense, options)[0])
    assert all(a is b for a, b in zip(sparse._flat_weights, sparse.parameters(), strict=True))
    same(copy.deepcopy(sparse).float().double(), sparse, options)


def test_moves_and_dtypes(sparse, options):
    expected = outputs(sparse, options)
    sparse.float()
    assert {p.dtype for p in sparse.parameters()} == {torch.float32}
    torch.testing.assert_close([y.double() for y in outputs(sparse, options)], expected, rtol=1e-4, atol=1e-5)
    sparse.to("meta")
    assert all(parameter.is_meta for parameter in sparse.parameters())
    sparse.to_empty(device="cpu").double()
    sparse.reset_parameters()
    assert all(torch.isfinite(y).all() for y in outputs(sparse, options))


def test_reset_parameters_draws_what_the_dense_module_draws(sparse):
    sparse.reset_parameters()
    bound = sparse.hidden_size**-0.5
    values = torch.cat([parameter.detach().flatten() for parameter in sparse.parameters()])
    assert values.abs().max() <= bound and values.abs().max() > 0.8 * bound


def test_repr_and_flatten_parameters(dense, sparse):
    kept = sum(mask.count() for mask in sparse.masks.values())
    assert repr(sparse).startswith(f"Sparse{repr(dense)[:-1]}, kept={kept} (")
    sparse.flatten_parameters()
    assert sparse._flat_weights == []


def test_hooks_and_functional_calls(sparse, options):
    x, _, states = options.inputs()
    seen = []
    sparse.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    sparse(x, states)
    assert len(seen) == 1
    halved = {name: parameter.detach() / 2 for name, parameter in sparse.named_parameters()}
    found = torch.func.functional_call(sparse, halved, (x, states))
    other = copy.deepcopy(sparse)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.div_(2)
    torch.testing.assert_close(flat(found), flat(other(x, states)))


def test_replaced_entries_of_one_weight(sparse, options):
    mask = sk.Mask.full(sparse.masks["weight_hh_l0"].shape)
    topology = sk.topology.Topology(mask)
    sparse.replace_("weight_hh_l0", nn.Parameter(torch.zeros(mask.count(), dtype=torch.float64)), topology)
    assert sparse.masks["weight_hh_l0"] == mask and not sparse.weight_hh_l0.any()
    same(sparse, sk.to_dense_(copy.deepcopy(sparse)), options)


def test_compiled_it_computes_the_same():
    options = Options(projection=4)
    dense = options.module()
    sparse = SparseLSTM.from_dense(dense, options.masks(dense))
    x, leaf, states = options.inputs()
    compiled = torch.compile(sparse, backend="aot_eager")
    found = compiled(x, states)
    torch.testing.assert_close(flat(found), flat(sparse(x, states)))
    found[0].sum().backward()
    grads = [leaf.grad.clone(), *(p.grad.clone() for p in sparse.parameters())]
    leaf.grad = None
    sparse.zero_grad()
    sparse(x, states)[0].sum().backward()
    torch.testing.assert_close(grads, [leaf.grad, *(p.grad for p in sparse.parameters())])


def test_exported_it_computes_the_same(sparse, options):
    x, _, states = options.inputs()
    args = (x.detach(), states if isinstance(states, torch.Tensor) else tuple(s.detach() for s in states))
    program = torch.export.export(sparse, args, strict=False)
    torch.testing.assert_close(flat(program.module()(*args)), flat(sparse(*args)))


def test_subclasses_and_shared_weights_stay_masked():
    class Mine(nn.LSTM):
        pass

    model = nn.ModuleDict({"mine": Mine(3, 4), "one": nn.LSTM(3, 4), "other": nn.LSTM(3, 4), "free": nn.LSTM(3, 4)})
    model["other"].weight_hh_l0 = model["one"].weight_hh_l0
    names = [name for name, _ in model.named_parameters() if "weight" in name and name != "free.weight_ih_l0"]
    masks = {name: sk.Mask.from_dense(torch.rand(model.get_parameter(name).shape) < 0.5) for name in names}
    masks["other.weight_hh_l0"] = masks["one.weight_hh_l0"]
    pruned = sk.sparsify_(model, masks, engine="csr")
    why = {layer.name: layer.reason for layer in pruned.layers}
    assert {layer.engine for layer in pruned.layers} == {"masked"}
    assert why["mine.weight_ih_l0"] == "Mine is its own subclass of LSTM"
    assert why["one.weight_ih_l0"] == why["one.weight_hh_l0"] == "weight shared with another module"
    assert why["free.weight_hh_l0"] == "sparse with all of its weights only, and weight_ih_l0 has no mask"
    assert sk.masks(model) == masks and not isinstance(model["one"], SparseLSTM)
