"""Whole models on the device: pruned there, trained there, moved, saved and loaded."""

import copy
import io
import pickle

import pytest
import torch
from nets import make_cnn, make_mlp
from torch import nn
from where import DEVICE, ON, REAL, cuda_only, long_elsewhere, no_sync

import snipkern as sk
from snipkern import Layout, Mask
from snipkern.nn import SparseWeight
from snipkern.testing import random_block_mask, random_mask

SHAPE = (48, 64)
HOW = {
    "single weights": {"engine": "csr"},
    "blocks": {"engine": "bsr", "block": (8, 8)},
    "mixed": {"engine": "bsr"},
    "masked": {"engine": "masked"},
    "cover": {"engine": "cover"},
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
}
PRUNING = {
    "global": {},
    "layers": {"scope": "layer"},
    "balanced": {"balance": True},
    "blocks": {"block": (4, 4), "engine": "bsr"},
    "blocks and single weights": {"block": (2, 2), "mix": 0.25, "engine": "bsr"},
    "streamed": {"memory": "stream"},
}


def masked_model(how, generator, dtype=torch.float64, device=DEVICE):
    """A sparse model on a device, and the same one dense, with its masks."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(*reversed(SHAPE)), nn.ReLU(), nn.Linear(SHAPE[0], SHAPE[0])).to(device, dtype)
    dense = copy.deepcopy(model)
    options, layouts = dict(HOW[how]), {}
    block = options.get("block") or ((8, 8) if how == "mixed" else None)
    masks = {}
    for name, weight in ((n, p) for n, p in model.named_parameters() if p.dim() == 2):
        masks[name] = (
            random_block_mask(weight.shape, block, 0.3, generator)
            if block
            else random_mask(weight.shape, 0.3, generator)
        )
        if how == "mixed":
            singles = random_mask(weight.shape, 0.05, generator).words & ~masks[name].words
            layouts[name] = Layout(block, singles=Mask(singles, weight.shape))
            masks[name] = Mask(masks[name].words | singles, weight.shape)
    if layouts:
        options["layouts"] = layouts
    sk.sparsify_(model, masks, **options)
    return model, dense, masks


def batch(generator, dtype=torch.float64, samples=24):
    x = torch.randn(samples, SHAPE[1], generator=generator).to(DEVICE, dtype)
    return x, torch.randn(samples, SHAPE[0], generator=generator).to(DEVICE, dtype)


def step(model, optimizer, data):
    optimizer.zero_grad(set_to_none=True)
    loss = (model(data[0]) - data[1]).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def weights(model):
    """Dense weights and biases by the dense model's names, on the CPU."""
    return {name: value.cpu() for name, value in sk.dense_state_dict(model).items()}


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


@pytest.mark.parametrize("how", ("single weights", "blocks", "mixed"))
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


def given_gradients(model):
    """A loss whose gradients are given, so that they are the same bits on every device."""
    generator = torch.Generator().manual_seed(11)
    given = {name: torch.randn(p.shape, generator=generator).to(p.device) for name, p in model.named_parameters()}

    def loss(model, inputs):
        return sum((p * given[name]).sum() for name, p in model.named_parameters()) + 0 * model(inputs).sum()

    return loss


@pytest.mark.parametrize("options", PRUNING.values(), ids=PRUNING)
@pytest.mark.parametrize("make, size", ((make_mlp, (20,)), (make_cnn, (3, 8, 8))), ids=("mlp", "cnn"))
def test_masks_are_the_cpus(make, size, options):
    torch.manual_seed(5)
    here = make()
    there = copy.deepcopy(here).to(DEVICE)
    x = torch.randn(6, *size)
    found = [
        sk.prune_(model, [x.to(next(model.parameters()).device)], keep=0.3, loss_fn=given_gradients(model), **options)
        for model in (here, there)
    ]
    assert found[0].masks == found[1].masks
    assert {p.device for p in there.parameters()} == {DEVICE}
    torch.testing.assert_close(there.eval()(x.to(DEVICE)).cpu(), here.eval()(x), rtol=1e-4, atol=1e-5)


def test_streamed_passes_repeat_exactly():
    """Where a device has faster algorithms whose sums come in any order, passes must not take them."""
    torch.manual_seed(5)
    model, seen = make_cnn().to(DEVICE), []
    x, y = torch.randn(6, 3, 8, 8).to(DEVICE), (torch.arange(6) % 5).to(DEVICE)

    def loss(model, batch):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    streamed = sk.plan(model, [(x, y)], keep=0.2, loss_fn=loss, memory="stream")
    assert seen and all(flag == (ON != "cpu") for flag in seen)
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert streamed.masks == sk.plan(model, [(x, y)], keep=0.2, loss_fn=loss).masks
    finally:
        torch.use_deterministic_algorithms(False)


def test_batches_may_come_from_the_cpu_and_nothing_is_left_changed():
    torch.manual_seed(5)
    model = make_cnn().to(DEVICE).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.cuda.get_rng_state(DEVICE) if REAL else torch.get_rng_state()
    plans = [sk.plan(model, [(torch.randn(6, 3, 8, 8), torch.arange(6) % 5)] * 2, keep=0.2, batches=n) for n in (1, 2)]
    assert plans[0].kept == plans[1].kept
    after = torch.cuda.get_rng_state(DEVICE) if REAL else random
    assert torch.equal(random, after)
    assert all(torch.equal(before[name].cpu(), value.cpu()) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


@pytest.mark.parametrize("engine", ("csr", "masked"))
def test_an_optimizers_state_moves_along(engine):
    torch.manual_seed(5)
    model = make_mlp().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    x, y = torch.randn(16, 20).to(DEVICE), (torch.arange(16) % 5).to(DEVICE)

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    train()
    sk.prune_(model, [(x, y)], keep=0.2, engine=engine, optimizer=optimizer)
    for parameter in model.parameters():
        moment = optimizer.state[parameter]["exp_avg"]
        assert moment.shape == parameter.shape and moment.device == DEVICE
    train()
    with no_sync():
        train()


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
    again, _, _ = masked_model(how, torch.Generator().manual_seed(0), torch.float32)
    again.load_state_dict(again.state_dict())
    moved = copy.deepcopy(model).to(other)
    assert torch.cuda.current_device() == 0
    loss = step(moved, OPTIMIZERS["sgd"](moved.parameters()), tuple(t.to(other) for t in data))
    assert loss.device == other and loss.isfinite() and loss < expected.to(other)
