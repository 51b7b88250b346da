"""memory="stream": the masks of "plain" bit for bit, with one gradient alive at a time, and nothing left changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nets import make_cnn, make_mlp
from selecting import FULL, NARROW, SAMPLED, tuning
from test_prune_errors import assert_untouched, snapshot
from torch import nn
from torch.utils.checkpoint import checkpoint

import snipkern as sk
from snipkern.pool import prunable
from snipkern.scoring.gradients import gradients
from snipkern.scoring.stream import repeatable
from snipkern.testing import peak_allocated

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = [(torch.randint(0, 13, (4, 6)), torch.randint(0, 13, (4,)))]
VECTORS = [(torch.randn(16, 20), torch.randint(0, 5, (16,)))]
IMAGES = [(torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,)))]


class Transformer(nn.Module):
    def __init__(self, tied: bool = False, reentrant: bool | None = None, repeats: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 13)
        self.unused = nn.Linear(4, 4)
        self.reentrant, self.repeats = reentrant, repeats
        if tied:
            self.layers[1].linear1.weight = self.layers[0].linear1.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            for _ in range(self.repeats):
                x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.head(x.mean(1))


NETS = {
    "mlp": (make_mlp, VECTORS),
    "convolutions and batch norm": (make_cnn, IMAGES),
    "transformer": (Transformer, TOKENS),
    "tied": (lambda: Transformer(tied=True), TOKENS),
    "checkpoints": (lambda: Transformer(reentrant=False), TOKENS),
    "a layer used twice": (lambda: Transformer(repeats=2), TOKENS),
}


def masks(model, data, **options):
    return sk.plan(model, data, keep=0.2, engine="masked", **options).masks


@pytest.mark.parametrize("path", [{}, SAMPLED, NARROW, FULL], ids=["direct", "sampled", "narrow", "full"])
@pytest.mark.parametrize("name", NETS)
def test_masks_are_those_of_plain(name, path):
    make, data = NETS[name]
    model = make()
    with tuning(**path):
        before = snapshot(model)
        streamed = masks(model, data, memory="stream")
        assert_untouched(model, before)
        assert streamed == masks(model, data)


@pytest.mark.parametrize("memory", ["plain", "stream"])
def test_reentrant_checkpoints_hide_no_gradients(memory):
    model, plain = Transformer(reentrant=True), Transformer()
    plain.load_state_dict(model.state_dict())
    before = snapshot(model)
    assert masks(model, TOKENS, memory=memory) == masks(plain, TOKENS)
    assert_untouched(model, before)


def test_gradients_that_come_in_parts_are_refused():
    model = Transformer(reentrant=True, repeats=2)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"every gradient must be complete at once; .* \(got that of 'layers.1.* parts"
    ):
        sk.prune_(model, TOKENS, keep=0.2, memory="stream")
    assert_untouched(model, before)


def test_random_losses_and_training_mode_see_the_same_numbers_in_every_walk(cnn):
    def loss_fn(model, batch):
        model.train()  # dropout draws, batch norm moves its statistics
        return F.cross_entropy(model(batch[0] + 0.1 * torch.randn(6, 3, 8, 8)), batch[1])

    before = snapshot(cnn)
    with tuning(**NARROW):
        streamed = masks(cnn, IMAGES, loss_fn=loss_fn, memory="stream")
    assert_untouched(cnn, before)
    assert streamed == masks(cnn, IMAGES, loss_fn=loss_fn)


def test_paper_preset(mlp):
    with tuning(**SAMPLED):
        assert masks(mlp, VECTORS, preset="paper", memory="stream") == masks(mlp, VECTORS, preset="paper")


def test_existing_gradients_stay_and_do_not_count(mlp):
    F.cross_entropy(mlp(VECTORS[0][0]), VECTORS[0][1]).backward()
    grads = [(p.grad, p.grad.clone()) for p in mlp.parameters()]
    assert masks(mlp, VECTORS, memory="stream") == masks(mlp, VECTORS)
    assert all(p.grad is g and torch.equal(g, v) for p, (g, v) in zip(mlp.parameters(), grads, strict=True))


def test_the_loader_is_read_once(mlp):
    class Loader:
        reads = 0

        def __iter__(self):
            self.reads += 1
            yield VECTORS[0]

    loader = Loader()
    with tuning(**FULL):
        sk.prune_(mlp, loader, keep=0.2, memory="stream")
    assert loader.reads == 1


@pytest.mark.parametrize("walk", [1, 2])
def test_a_loss_that_raises_leaves_nothing_behind(walk, cnn):
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        loss = F.cross_entropy(model.train()(batch[0]), batch[1])
        if len(calls) == walk:
            raise RuntimeError("no loss today")
        return loss

    before = snapshot(cnn)
    with tuning(**SAMPLED), pytest.raises(RuntimeError, match="no loss today"):
        sk.prune_(cnn, IMAGES, keep=0.2, memory="stream", loss_fn=loss_fn)
    assert len(calls) == walk
    assert_untouched(cnn, before)
    assert not any(p._post_accumulate_grad_hooks for p in cnn.parameters())


BAD = {
    "batches": ({"batches": 2}, r"prune: memory='stream' scores one batch; .* \(got batches=2\)"),
    "block": (
        {"block": (2, 2)},
        r"prune: memory='stream' goes with the plain global selection alone \(got block=\(2, 2\), balance=True, .*\)",
    ),
    "floor": ({"min_keep": 1}, r"prune: memory='stream' goes with .* alone \(got min_keep=1\)"),
    "random": (
        {"criterion": "snip-shuffled"},
        r"prune: memory='stream' goes with criterion='snip' \(got criterion='snip-shuffled'\)",
    ),
    "empty": ({"loader": []}, r"score: loader must yield at least 1 batch \(got an empty loader\)"),
    "memory": ({"memory": "disk"}, r"prune: memory must be one of plain, stream \(got 'disk'\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name, mlp):
    options, message = BAD[name]
    before = snapshot(mlp)
    with pytest.raises(ValueError, match=message):
        sk.prune_(mlp, **{"loader": VECTORS, "keep": 0.2, "memory": "stream", **options})
    assert_untouched(mlp, before)


def test_non_finite_gradients_are_named(mlp):
    mlp[2].weight.register_hook(lambda gradient: gradient * torch.inf)
    before = snapshot(mlp)
    with pytest.raises(ValueError, match=r"select: gradient of '2.weight' must be finite"):
        sk.prune_(mlp, VECTORS, keep=0.2, memory="stream")
    assert_untouched(mlp, before)


def test_hooks_that_would_see_the_gradients_are_refused(mlp):
    mlp[2].bias.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(ValueError, match=r"memory='stream' needs parameters without post-accumulate-grad .*'2.bias'"):
        sk.prune_(mlp, VECTORS, keep=0.2, memory="stream")


def test_a_gpu_repeats_itself_whatever_torch_is_told_of_precision():
    """torch refuses to read, or set, cuDNN's older permission for TF32 once the newer ones differ."""
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.conv.fp32_precision, cudnn.benchmark = "ieee", True
        with repeatable([SimpleNamespace(device=torch.device("cuda", 0))]):
            assert torch.are_deterministic_algorithms_enabled()
            assert cudnn.deterministic and not cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
        assert (cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic) == ("ieee", True, before[2])
    finally:
        cudnn.conv.fp32_precision, cudnn.benchmark, cudnn.deterministic = before


def test_one_gradient_at_a_time():
    width = 512
    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(width, width), nn.ReLU())))
    data = [(torch.randn(4, width), torch.randint(0, width, (4,)))]
    forward = peak_allocated(lambda: F.cross_entropy(model(data[0][0]), data[0][1]))
    peaks = {
        memory: peak_allocated(lambda memory=memory: masks(model, data, memory=memory))
        for memory in ("plain", "stream")
    }
    pairs = gradients(model, data, prunable(model)).pairs
    selection = peak_allocated(lambda: sk.select(pairs, 0.2))  # masks and candidates
    layer = 4 * width * width
    assert peaks["stream"] - forward - selection < 1.1 * layer
    assert peaks["plain"] - forward > 7.9 * layer
