"""CUDA tensors without CUDA: what ops promise of their results there, and programs of pruned models traced for there.

Gradients through autograd's engine need a device; here its formulas are called one by one.
"""

import copy

import pytest
import torch
from faking import CPU, CUDA, faked, moved_, new_mode
from op_calls import BATCH, STAYING, calls
from torch import Tensor, nn

import snipkern
from snipkern.ops import autograd, schema
from snipkern.ops.checks import FLOATS
from snipkern.testing import random_block_mask

OPS = torch.ops.snipkern
FORMULAS = [name for name in autograd.FORMULAS if not name.endswith("_")]


def results(name, args):
    """What an op returns, or what it changed."""
    output = getattr(OPS, name)(*args)
    return (args[0],) if output is None else output if isinstance(output, tuple) else (output,)


def same_size(claimed, real):
    """Symbols stand for lengths that depend on data; all others must be the same."""
    return len(claimed) == len(real) and all(
        not isinstance(size, int) or size == other for size, other in zip(claimed, real, strict=True)
    )


def stay(name, args):
    if name in STAYING:
        args[STAYING[name]] = torch.empty_like(args[STAYING[name]], device=CPU)


def test_every_op_is_called():
    assert list(calls(torch.float32)) == list(schema.OPS)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", schema.OPS)
def test_results_on_cuda_are_those_of_the_cpu(name, dtype):
    args, mode = calls(dtype)[name], new_mode()
    on_cuda = list(faked(mode, args))
    expected = results(name, args)
    with mode:
        stay(name, on_cuda)
        claimed = results(name, on_cuda)
    assert len(claimed) == len(expected)
    for fake, real in zip(claimed, expected, strict=True):
        assert fake.device == CUDA and fake.dtype == real.dtype
        assert same_size(fake.shape, real.shape), (fake.shape, real.shape)
        assert fake.is_contiguous() and real.is_contiguous()


@pytest.mark.parametrize(
    ("name", "place", "text"),
    [
        ("spmm_csr", 1, "spmm_csr: values must have x's dtype and device, torch.float32 on cuda:0"),
        ("spmm_csr", 2, "spmm_csr: bias must "),
        ("sddmm_bsr", 1, "sddmm_bsr: b must have a's dtype and device, torch.float32 on cuda:0"),
        ("saliency_mask", 1, "saliency_mask: gradient must have the weight's shape and device, "),
    ],
)
def test_operands_on_two_devices_are_an_error(name, place, text):
    mode = new_mode()
    args = list(faked(mode, calls(torch.float32)[name]))
    with mode:
        args[place] = torch.empty(args[place].shape)
        with pytest.raises(RuntimeError) as error:
            getattr(OPS, name)(*args)
    assert str(error.value).startswith(text) and "cpu" in str(error.value)


class Context:
    """What autograd hands to formulas."""

    def __init__(self, args):
        self.needs_input_grad = tuple(isinstance(arg, Tensor) and arg.dtype.is_floating_point for arg in args)

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def set_materialize_grads(self, value):
        pass

    def mark_non_differentiable(self, *tensors):
        pass


# The derivatives of recurrent_csr_backward go through the steps again, which are as many as its arguments say.
@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "recurrent_csr_backward"])
def test_gradients_stay_on_the_device(name):
    mode = new_mode()
    args = list(faked(mode, calls(torch.float32)[name]))
    backward, context = autograd.FORMULAS[name]
    ctx = Context(args)
    with mode:
        stay(name, args)
        output = getattr(OPS, name)(*args)
        context(ctx, args, output)
        gradients = backward(ctx, *(output if isinstance(output, tuple) else (output,)))
    assert len(gradients) == len(args)
    for gradient, arg, needed in zip(gradients, args, ctx.needs_input_grad, strict=True):
        assert (gradient is not None) == needed
        if needed:
            assert gradient.device == CUDA and gradient.shape == arg.shape and gradient.dtype == arg.dtype


def pruned_model(engine):
    """A small network with a convolution, each layer of which takes the engine."""
    generator = torch.Generator().manual_seed(0)
    block = (4, 4) if engine == "bsr" else None
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Linear(16, 8)
    )
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            shape = (parameter.shape[0], parameter[0].numel())
            mask = random_block_mask(shape, block or (1, 1), 0.3, generator)
            masks[name] = snipkern.Mask.from_dense(mask.to_dense().view(parameter.shape))
    snipkern.sparsify_(model, masks, engine=engine, block=block)
    return model.eval()


@pytest.mark.parametrize("engine", ("csr", "bsr", "masked"))
def test_a_pruned_model_is_traced_for_cuda_in_one_graph(engine):
    torch._dynamo.reset()
    mode = new_mode()
    model = moved_(pruned_model(engine), mode)
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        assert all(given.device == CUDA for given in inputs if isinstance(given, Tensor))
        return graph

    with mode, torch.no_grad():
        x = torch.empty(BATCH, 4, 6, 6, device=CUDA)
        assert model(x).device == CUDA
        output = torch.compile(model, fullgraph=True, backend=compiler)(x)
    assert output.device == CUDA and output.shape == (BATCH, 8)
    [graph] = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    products = [f"snipkern.conv2d_{engine}", f"snipkern.spmm_{engine}"] if engine != "masked" else []
    assert all(any(product in target for target in called) for product in products)


@pytest.mark.parametrize("engine", ("csr", "bsr"))
def test_a_pruned_model_is_exported_for_cuda(engine):
    mode = new_mode()
    model = moved_(pruned_model(engine), mode)
    with mode, torch.no_grad():
        x = torch.empty(BATCH, 4, 6, 6, device=CUDA)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    ops = [str(node.target) for node in program.graph.nodes if "snipkern" in str(node.target)]
    assert ops == [f"snipkern.conv2d_{engine}.default", *[f"snipkern.spmm_{engine}.default"] * 2]
    for node in program.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            assert node.meta["val"].device == CUDA


def test_index_lists_follow_the_model_to_its_device():
    model = pruned_model("csr")
    twin = copy.deepcopy(model)
    mode = new_mode()
    topology = moved_(model, mode)[0].topology
    assert topology.on(CUDA).device == CUDA and topology.on(CPU).device == CPU
    assert twin[0].topology is topology  # shared, and still on the CPU for the twin
    assert twin(torch.randn(2, 4, 6, 6)).shape == (2, 8)
