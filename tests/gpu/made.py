"""Pruned models of every kind on the device, for the tests here, and what training them takes."""

import copy

import torch
from torch import nn
from where import DEVICE

import snipkern as sk
from snipkern import Layout, Mask
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
