"""Scoring: the numbers, and that nothing is left changed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import make_cnn, make_mlp
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import snipkern as sk
from snipkern.scoring.gradients import variance_scaling


def test_score_is_the_derivative_of_the_loss_by_a_connection_switch(vectors):
    """Equation 5 of the paper: dL / dc_j at c = 1, for the loss of c * w."""
    model = make_mlp().double()
    x, y = vectors[0][0].double(), vectors[0][1]
    switches = {n: torch.ones_like(p, requires_grad=True) for n, p in model.named_parameters() if p.dim() == 2}
    switched = {n: p * switches.get(n, 1.0) for n, p in model.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(model, switched, (x,)), y)
    want = torch.autograd.grad(loss, list(switches.values()))
    got = sk.score(model, [(x, y)])
    for name, value in zip(switches, want, strict=True):
        torch.testing.assert_close(got[name], value.abs().float(), rtol=1e-5, atol=1e-9)


def test_several_batches_average_gradients_before_the_absolute_value(vectors):
    model = make_mlp()
    signed = []
    for x, y in vectors[:3]:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        signed.append(model[0].weight.grad.clone())
    want = (sum(signed) / 3 * model[0].weight).abs()
    model.zero_grad(set_to_none=True)
    torch.testing.assert_close(sk.score(model, vectors, batches=3)["0.weight"], want, rtol=1e-5, atol=1e-9)


def test_eval_mode_while_scoring_and_modes_restored_one_by_one(images):
    model = make_cnn().train()
    model[1].eval()
    seen = []
    model[5].register_forward_hook(lambda m, *_: seen.append(m.training))
    running = model[1].running_mean.clone()
    sk.score(model, images)
    assert seen == [False]
    assert [m.training for m in model] == [True, False, True, True, True, True, True, True]
    assert torch.equal(model[1].running_mean, running) and model[1].num_batches_tracked == 0


def test_buffers_changed_by_a_loss_are_put_back(images):
    model = make_cnn()

    def loss_fn(net, batch):
        net.train()
        return F.cross_entropy(net(batch[0]), batch[1])

    before = {k: v.clone() for k, v in model.named_buffers()}
    pointer = model[1].running_mean.data_ptr()
    sk.score(model, images, loss_fn=loss_fn)
    assert all(torch.equal(before[k], v) for k, v in model.named_buffers())
    assert model[1].running_mean.data_ptr() == pointer


@pytest.mark.parametrize("memory", ["plain", "stream"])
def test_buffers_replaced_by_a_forward_pass_are_put_back(memory):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(20, 5)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("seen", None)

        def forward(self, x):
            self.calls = self.calls + 1
            self.seen = x.mean(0)
            return super().forward(x)

    model = Counting()
    calls = model.calls
    sk.plan(model, [(torch.randn(4, 20), torch.randint(5, (4,)))], keep=0.5, memory=memory)
    assert model.calls is calls and calls == 0 and model.seen is None


def test_gradients_are_left_as_they_were(mlp, vectors):
    F.cross_entropy(mlp(vectors[1][0]), vectors[1][1]).backward()
    before = [(p.grad, p.grad.clone()) for p in mlp.parameters()]
    mlp[0].bias.grad = None
    sk.score(mlp, vectors)
    for (grad, value), parameter in zip(before, mlp.parameters(), strict=True):
        if parameter is mlp[0].bias:
            assert parameter.grad is None
        else:
            assert parameter.grad is grad and torch.equal(grad, value)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("own_generator", [False, True])
def test_random_states_and_the_loader_are_as_before(shuffle, own_generator, mlp):
    generator = torch.Generator().manual_seed(3) if own_generator else None
    data = TensorDataset(torch.randn(64, 20), torch.randint(0, 5, (64,)))
    loader = DataLoader(data, batch_size=16, shuffle=shuffle, generator=generator)

    def loss_fn(net, batch):
        random.random(), np.random.rand(), torch.rand(1)
        return F.cross_entropy(net(batch[0]), batch[1])

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = [x for x, _ in loader]
    if generator is not None:
        generator.manual_seed(3)
    torch.set_rng_state(states[2])
    sk.score(mlp, loader, loss_fn=loss_fn, batches=2)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, loader, strict=True))


def test_the_generator_of_a_batch_sampler_is_as_before(mlp):
    data = TensorDataset(torch.randn(64, 20), torch.randint(0, 5, (64,)))
    generator = torch.Generator().manual_seed(3)
    batches = BatchSampler(RandomSampler(data, generator=generator), 16, drop_last=False)
    before = generator.get_state()
    sk.score(mlp, DataLoader(data, batch_sampler=batches))
    assert torch.equal(generator.get_state(), before)


def test_scoring_under_no_grad_works(mlp, vectors):
    with torch.no_grad():
        got = sk.score(mlp, vectors)
    assert torch.equal(got["0.weight"], sk.score(mlp, vectors)["0.weight"])


def test_half_precision_gradients_are_summed_in_float32(vectors):
    model = make_mlp().bfloat16()
    data = [(x.bfloat16(), y) for x, y in vectors]
    scores = sk.score(model, data, batches=4)
    assert all(s.dtype == torch.float32 for s in scores.values())
    grads = []
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        grads.append(model[2].weight.grad.float())
    want = (torch.stack(grads).mean(0) * model[2].weight.float()).abs()
    torch.testing.assert_close(scores["2.weight"], want, rtol=1e-6, atol=1e-12)


def test_variance_scaling_has_unit_gain():
    drawn = variance_scaling(torch.empty(400, 10, 5, 5))
    assert drawn.std() == pytest.approx(250**-0.5, rel=0.02)
    assert drawn.abs().max() <= 2.01 * 250**-0.5 / 0.8796
    assert torch.equal(variance_scaling(torch.empty(7)), torch.zeros(7))


def test_recurrent_and_attention_weights_are_pooled():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            h, _ = self.rnn(x)
            return self.head(self.attention(h, h, h)[0][:, -1])

    data = [(torch.randn(4, 5, 6), torch.randint(0, 3, (4,)))]
    model = Net()
    want = [
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    ]
    assert list(sk.score(model, data)) == want
    pruned = sk.prune_(model, data, keep=0.3, engine="csr")
    assert [layer.engine for layer in pruned.layers] == ["csr", "csr", "masked", "masked", "csr"]
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(5):
        opt.zero_grad()
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()
        opt.step()
    for name, mask in pruned.masks.items():
        path, _, leaf = name.rpartition(".")
        assert torch.equal(getattr(model.get_submodule(path), leaf) != 0, mask.to_dense())
