"""What second derivatives are by definition: differences of gradients and of outputs, in float64, weight by weight."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from snipkern.allocation import allocation
from snipkern.criteria.context import Context
from snipkern.pool import prunable
from snipkern.scoring.gradients import default_loss
from snipkern.selection.sources import Alone

STEP = 1e-5


def context(model, loader, *, loss_fn=default_loss, batches=None, kept=1):
    batches = len(loader) if batches is None else batches
    return Context(model, prunable(model), loader, loss_fn, batches, kept, allocation(), Alone())


def pooled(model):
    return {entry.fqn: entry.parameter for entry in prunable(model)}


def flat(tensors):
    """Tensors of all parameters, in the pool's order, as one vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])


@contextlib.contextmanager
def moved(model, index, by):
    """One weight of the pool, counted through, is changed."""
    for parameter in pooled(model).values():
        if index < parameter.numel():
            break
        index -= parameter.numel()
    was = parameter.detach().clone()
    with torch.no_grad():
        parameter.view(-1)[index] += by
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(was)


@contextlib.contextmanager
def evaluated(model):
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


def gradient(model, batches, loss_fn=default_loss):
    """Of the mean loss over batches."""
    parameters = pooled(model)
    with evaluated(model):
        loss = sum(loss_fn(model, batch) for batch in batches) / len(batches)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return flat(
        {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}
    )


def hessian(model, batches, loss_fn=default_loss):
    """Column j is the difference of the gradients beside weight j."""
    columns = []
    for j in range(flat(pooled(model)).numel()):
        sides = []
        for by in (STEP, -STEP):
            with moved(model, j, by):
                sides.append(gradient(model, batches, loss_fn))
        columns.append((sides[0] - sides[1]) / (2 * STEP))
    return torch.stack(columns, 1)


def jacobian(model, inputs):
    """[samples, outputs, weights]."""
    columns = []
    with evaluated(model), torch.no_grad():
        for j in range(flat(pooled(model)).numel()):
            sides = []
            for by in (STEP, -STEP):
                with moved(model, j, by):
                    sides.append(model(inputs))
            columns.append(((sides[0] - sides[1]) / (2 * STEP)).flatten(1))
    return torch.stack(columns, 2)


def softmax_curvature(outputs):
    """[samples, classes, classes] of cross entropy."""
    p = outputs.detach().double().softmax(1)
    return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)


def gauss_newton(model, batches):
    """Of mean cross entropy over batches of (inputs, labels)."""
    total = 0
    for inputs, _ in batches:
        j = jacobian(model, inputs)
        with evaluated(model):
            middle = softmax_curvature(model(inputs))
        total = total + torch.einsum("nci,ncd,ndj->ij", j, middle, j) / len(inputs) / len(batches)
    return total


def fisher(model, batches, loss_fn=default_loss):
    """Mean outer product of the gradients of single samples."""
    total = 0
    for inputs, labels in batches:
        for i in range(len(inputs)):
            g = gradient(model, [(inputs[i : i + 1], labels[i : i + 1])], loss_fn)
            total = total + torch.outer(g, g) / len(inputs) / len(batches)
    return total


# Networks


class Tied(nn.Module):
    """One weight in two places, and a weight used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.middle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.second(torch.sigmoid(self.middle(self.first(x))))))))


class Recurrent(nn.Module):
    def __init__(self, kind="LSTM"):
        super().__init__()
        self.layer, self.last = getattr(nn, kind)(2, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x):
        return self.last(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.layer(x, x, x, need_weights=False)[0].mean(1))


def convolutional():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2, padding=1, groups=2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 2, 2, stride=2, dilation=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    model[1].running_mean.normal_(0, 0.3)
    model[1].running_var.uniform_(0.5, 2)
    return model


def perceptron():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


NETS = {
    "perceptron": (perceptron, (5,)),
    "convolutional": (convolutional, (2, 4, 4)),
    "tied": (Tied, (4,)),
    "recurrent": (Recurrent, (3, 2)),
    "attention": (Attention, (3, 4)),
}


def build(name, seed=0, samples=(5, 5), dtype=torch.float64):
    """A network and batches for it."""
    torch.manual_seed(seed)
    make, shape = NETS[name]
    model = make().to(dtype)
    return model, [(torch.randn(n, *shape, dtype=dtype), torch.randint(0, 3, (n,))) for n in samples]


def state_of(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.grad for parameter in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state(),
        (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled()),
    )


def same_state(before, after):
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])
    assert before[5] == after[5]
