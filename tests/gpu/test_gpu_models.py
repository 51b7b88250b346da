"""Pruned models on the device: trained there, moved, saved and loaded."""

import copy
import io
import pickle

import pytest
import torch
from made import HOW, OPTIMIZERS, SHAPE, batch, masked_model, step, weights
from torch import nn
from where import DEVICE, ON, REAL, long_elsewhere, no_sync

import snipkern as sk
from snipkern.nn import SparseWeight
from snipkern.testing import random_mask


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("how", HOW)
def test_trains_as_the_masked_dense_model(how, optimizer, generator):
    model, dense, masks = masked_model(how, generator)
    kept = {name: mask.to_dense(DEVICE) for name, mask in masks.items()}
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name in kept:
                parameter.mul_(kept[name])
                parameter.register_hook(lambda grad, mask=kept[name]: grad * mask)
    trained = [(m, OPTIMIZERS[optimizer](m.parameters())) for m in (model, dense)]
    data = batch(generator)
    for _ in range(6):
        losses = [step(m, o, data) for m, o in trained]
        torch.testing.assert_close(losses[0].cpu(), losses[1].cpu(), rtol=1e-9, atol=1e-11)
    found = weights(model)
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(found[name], value.cpu(), rtol=1e-7, atol=1e-9)
        if name in masks:
            assert not found[name][~masks[name].to_dense()].any()


@pytest.mark.parametrize("how", HOW)
def test_a_step_never_waits_for_the_device(how, generator):
    model, _, _ = masked_model(how, generator, torch.float32)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    data = batch(generator, torch.float32)
    step(model, optimizer, data)  # state of the optimiser comes to be, kernels are compiled
    with no_sync():
        for _ in range(2):
            step(model, optimizer, data)
        with torch.no_grad():
            model(data[0])


@pytest.mark.parametrize("how", HOW)
def test_a_model_that_was_moved_never_waits_either(how, generator):
    """What the kernels need beside values has come along: a first forward pass may lie in a CUDA graph."""
    x = batch(generator, torch.float32)[0]
    if REAL:
        masked_model(how, generator, torch.float32)[0](x)  # kernels are compiled, libraries have their handles
    model, _, _ = masked_model(how, generator, torch.float32, torch.device("cpu"))
    model.to(DEVICE)
    with no_sync():
        model(x)


@pytest.mark.parametrize("how", HOW)
def test_same_bits_in_every_run(how, generator):
    model, _, _ = masked_model(how, generator, torch.float32)
    data = batch(generator, torch.float32, samples=333)
    found = []
    for _ in range(2):
        copied = copy.deepcopy(model)
        optimizer = OPTIMIZERS["adamw"](copied.parameters())
        for _ in range(4):
            step(copied, optimizer, data)
        found.append(weights(copied))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize("how", HOW)
def test_copies_checkpoints_and_other_devices(how, generator):
    model, dense, _ = masked_model(how, generator)
    x = batch(generator)[0]
    with torch.no_grad():
        y = model(x)
        assert torch.equal(copy.deepcopy(model)(x), y)
        torch.testing.assert_close(copy.deepcopy(model).cpu()(x.cpu()), y.cpu(), rtol=1e-9, atol=1e-12)
        if ON != "pretend":  # whose tensors are not for pickling
            assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
            file = io.BytesIO()
            torch.save(model.state_dict(), file)
            for place in (DEVICE, "cpu"):
                file.seek(0)
                loaded = sk.load_(copy.deepcopy(dense), torch.load(file, map_location=place))
                assert {p.device for p in loaded.parameters()} == {DEVICE}
                exact = how != "cover"  # which is a choice of kernels, not of weights: what is loaded takes csr's
                torch.testing.assert_close(
                    loaded(x).cpu(), y.cpu(), rtol=0 if exact else 1e-9, atol=0 if exact else 1e-12
                )
        model.load_state_dict(model.state_dict())
        assert torch.equal(model(x), y)
        back = sk.to_dense_(copy.deepcopy(model))
        torch.testing.assert_close(back(x).cpu(), y.cpu(), rtol=1e-9, atol=1e-12)


def test_made_on_the_meta_device(generator):
    masks = {"0.weight": random_mask(SHAPE, 0.2, generator)}
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(*reversed(SHAPE)))
    sk.sparsify_(model, masks, engine="csr")
    model.to_empty(device=DEVICE)
    assert isinstance(model[0], SparseWeight)
    model[0].reset_parameters()
    x = batch(generator, torch.float32)[0]
    with no_sync():
        y = model(x)
    torch.testing.assert_close(
        y.cpu(), nn.functional.linear(x, model[0].weight, model[0].bias).cpu(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("how", HOW)
@pytest.mark.skipif(ON == "pretend", reason="the pretended device knows no autocast")
def test_autocast(how, generator):
    model, _, _ = masked_model(how, generator, torch.float32)
    x, target = batch(generator, torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y = model(x)
        loss = (y - target).square().mean()
    assert y.dtype == torch.bfloat16
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    narrow = copy.deepcopy(model).bfloat16()
    if how != "mixed":  # whose two products meet in a sum
        assert torch.equal(narrow(x.bfloat16()), y)


@pytest.mark.skipif(ON == "pretend", reason="the pretended device has no gradient scaler")
def test_gradient_scaler(generator):
    model, _, _ = masked_model("single weights", generator, torch.float32)
    optimizer, data = OPTIMIZERS["sgd"](model.parameters()), batch(generator, torch.float32)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**8)
    before = weights(model)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.float16 if REAL else torch.bfloat16):
            loss = (model(data[0]) - data[1]).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    after = weights(model)
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(before["0.weight"], after["0.weight"])


@long_elsewhere
@pytest.mark.parametrize("how", HOW)
@pytest.mark.skipif(ON == "pretend", reason="the compiler does not know the pretended device")
def test_compiled(how, generator):
    model, _, _ = masked_model(how, generator, torch.float32, torch.device("cpu"))
    model.to(DEVICE)  # compiled before it ever ran there
    data = batch(generator, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="inductor" if REAL else "aot_eager")
    found = []
    for run in (compiled, model):
        model.zero_grad()
        loss = (run(data[0]) - data[1]).square().mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
