"""What only a CUDA device has: memory of its own, graphs, streams, other devices."""

import copy

import pytest
import torch
from made import HOW, OPTIMIZERS, batch, masked_model, step
from torch import nn
from where import DEVICE, cuda_only

import snipkern as sk
from snipkern.testing import random_mask


@cuda_only
def test_memory_is_that_of_kept_weights(generator):
    """Parameters, gradients and moments of 5 % of the weights: 16 bytes each, and 8 to 12 of index."""
    size = 4096

    def held(prune):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(DEVICE)
        model = nn.Linear(size, size, device=DEVICE)
        if prune:
            sk.sparsify_(model, {"weight": random_mask((size, size), 0.05, generator)}, engine="csr")
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(16, size, device=DEVICE)).square().mean().backward()
        optimizer.step()
        return torch.cuda.memory_allocated(DEVICE) - before

    dense, sparse = held(False), held(True)
    assert dense >= 16 * size * size
    assert sparse < 0.11 * dense


@cuda_only
@pytest.mark.parametrize("how", HOW)
def test_a_cuda_graph_holds_a_step(how, generator):
    model, _, _ = masked_model(how, generator, torch.float32)
    x, target = batch(generator, torch.float32)
    parameters = list(model.parameters())

    def gradients():
        return torch.autograd.grad((model(x) - target).square().mean(), parameters)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    for _ in range(2):
        x.copy_(torch.randn(x.shape, generator=generator))
        graph.replay()
        assert all(map(torch.equal, captured, gradients()))


@cuda_only
@pytest.mark.parametrize("how", HOW)
def test_kernels_run_on_the_current_stream(how, generator):
    """Inputs come to be late, on a stream of their own: kernels on another would read what was there before."""
    model, _, _ = masked_model(how, generator, torch.float32)
    x, target = batch(generator, torch.float32)

    def results(data):
        y = model(data)
        return [y, *torch.autograd.grad((y - target).square().mean(), list(model.parameters()))]

    expected = results(x)
    late = torch.full_like(x, float("nan"))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late.copy_(x)
        found = results(late)
    side.synchronize()
    assert all(map(torch.equal, found, expected))


@cuda_only
@pytest.mark.parametrize("how", HOW)
def test_another_device_than_the_current_one(how, generator):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model, _, _ = masked_model(how, generator, torch.float32)
    data = batch(generator, torch.float32)
    expected = step(model, OPTIMIZERS["sgd"](model.parameters()), data)
    other = torch.device("cuda", 1)
    moved = copy.deepcopy(model).to(other)
    assert torch.cuda.current_device() == 0
    loss = step(moved, OPTIMIZERS["sgd"](moved.parameters()), tuple(t.to(other) for t in data))
    assert loss.device == other and loss.isfinite() and loss < expected.to(other)
