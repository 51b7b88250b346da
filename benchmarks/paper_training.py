"""Training as the paper does it, and as it works here: recipes, and one loop for all networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from data import Batches
from paper_data import augmented
from torch import Tensor, nn
from training import DECAY_AT, MOMENTUM, accuracy

__all__ = ["DENSE_RECIPES", "FAITHFUL", "RECIPES", "Recipe", "fit"]

# The authors' code saves a checkpoint every so many iterations, keeps the last of them, and reports the least test
# error among these.
CHECKPOINT = 1000
CHECKPOINTS_KEPT = 5


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, dense or pruned.

    Attributes:
        optimizer: "sgd" (momentum 0.9) or "adam".
        epochs: Passes over the training images.
        weight_decay: Of all parameters.
        warm_up: Iterations in which the rate rises to ``lr``.
        clip: Largest norm of the gradient; 0 for any.
        decay_every: Iterations after which the rate is divided by ten; 0: at 60 % and 85 % of the training.
        linear: The rate falls to zero in a straight line instead.
        held_out: Share of the training images that is not trained on.
        augment: Flip and shift images (CIFAR).
        faithful: Score and judge as the authors' code does: one batch of 100, biases pooled, a draw of its own for
            scoring; the test error at checkpoints, of which their code reports the least.
    """

    optimizer: str
    lr: float
    epochs: int
    weight_decay: float = 5e-4
    batch: int = 100
    warm_up: int = 0
    clip: float = 0.0
    decay_every: int = 0
    linear: bool = False
    held_out: float = 0.0
    augment: bool = False
    faithful: bool = False


_RECURRENT = Recipe("adam", 5e-3, 20, weight_decay=0.0, clip=1.0, linear=True)
_CIFAR = Recipe("sgd", 0.1, 250, batch=128, decay_every=30_000, held_out=0.1, augment=True)
#: What works here in little time, by the first part of a network's name. LeNet-5 has no activation after its
#: convolutions, and may diverge at this rate where little is kept: hence the warm-up and the bound on the gradient.
RECIPES = {
    "lenet-300-100": Recipe("sgd", 0.1, 30),
    "lenet-5": Recipe("sgd", 0.1, 20, warm_up=600, clip=1.0),
    "lstm": _RECURRENT,
    "gru": replace(_RECURRENT, lr=1e-2, epochs=30),
    "alexnet": _CIFAR,
    "vgg": _CIFAR,
    "wrn": _CIFAR,
}
#: Of dense networks that take another one: at the rate where pruned GRUs gain, a dense one's training breaks down.
DENSE_RECIPES = {"gru": replace(_RECURRENT, epochs=10)}
#: The published set-up for MNIST; 100,000 iterations, after which the rate is 1e-5.
FAITHFUL = Recipe("sgd", 0.1, 185, decay_every=25_000, held_out=0.1, faithful=True)


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    tests: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor] | None,
    *,
    seed: int,
    compiled: bool = False,
) -> dict[str, Any]:
    """Trains in place; returns what is plotted.

    Returns:
        ``loss`` and ``accuracy``: means over each epoch's training batches, the latter in percent, as they were when
        the batch came. ``diverged``: the epoch in which the loss stopped being finite, or None; training ends there.
        ``held_out_error``: in the end, in percent, or None. ``checkpoints``: test errors, of a faithful recipe.
    """
    steps = recipe.epochs * len(batches)
    optimizer = _optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(recipe, step, steps))
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    forward = torch.compile(model) if compiled and convolves else model
    generator = torch.Generator().manual_seed(seed)
    course: dict[str, Any] = {"loss": [], "accuracy": [], "diverged": None, "checkpoints": []}
    step = 0
    model.train()
    for epoch in range(recipe.epochs):
        total = torch.zeros(2, device=batches.images.device)
        for images, labels in batches:
            inputs = augmented(images, generator) if recipe.augment else images
            optimizer.zero_grad()
            outputs = forward(inputs)
            loss = nn.functional.cross_entropy(outputs, labels)
            loss.backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            right = (outputs.detach().argmax(1) == labels).sum()
            total += torch.stack((loss.detach() * len(labels), right))
            step += 1
            if recipe.faithful and step % CHECKPOINT == 0:
                course["checkpoints"].append(round(100 - accuracy(model, *tests), 4))
        mean = (total / len(batches.images)).tolist()
        if not math.isfinite(mean[0]):
            course["diverged"] = epoch
            break
        course["loss"].append(round(mean[0], 6))
        course["accuracy"].append(round(100 * mean[1], 4))
    course["held_out_error"] = None if held_out is None else round(100 - accuracy(model, *held_out), 4)
    return course


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(trained, lr=recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay)


def _rate(recipe: Recipe, step: int, steps: int) -> float:
    """What the learning rate is multiplied with."""
    warm = min(1.0, (step + 1) / recipe.warm_up) if recipe.warm_up else 1.0
    if recipe.linear:
        return warm * (1 - step / steps)
    if recipe.decay_every:
        return warm * 0.1 ** (step // recipe.decay_every)
    return warm * 0.1 ** sum(step > share * steps for share in DECAY_AT)
