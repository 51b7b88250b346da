"""Training two copies of a net side by side: recipes, timed steps, and what they hold in memory."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import data
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

__all__ = ["RECIPES", "Learner", "Recipe", "accuracy", "train"]

# Share of the training after which the learning rate is divided by ten, twice.
DECAY_AT = (0.6, 0.85)
MOMENTUM = 0.9
WARM_UP_STEPS = 10
TEST_BATCH = 1000


@dataclass(frozen=True)
class Recipe:
    """How one network is trained; the same for its dense and its sparse copy."""

    epochs: int
    lr: float
    weight_decay: float


# Epochs are for the embedded 4,000 digits. LeNet-5 diverges at the paper's rate of 0.1 when little is kept.
RECIPES = {
    ("lenet-300-100", "sgd"): Recipe(epochs=30, lr=0.1, weight_decay=5e-4),
    ("lenet-300-100", "adamw"): Recipe(epochs=30, lr=2e-3, weight_decay=1e-2),
    ("lenet-5", "sgd"): Recipe(epochs=12, lr=0.02, weight_decay=5e-4),
    ("lenet-5", "adamw"): Recipe(epochs=12, lr=2e-3, weight_decay=1e-2),
}


class Learner:
    """A model in training: its optimiser, its learning-rate schedule and the time of every step.

    Args:
        model: Trained in place; already pruned, if it is to be.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        steps: Length of the whole training, for the schedule.
    """

    def __init__(self, model: nn.Module, optimizer: str, recipe: Recipe, steps: int) -> None:
        self.model = model.train()
        options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(model.parameters(), momentum=MOMENTUM, **options)
        else:
            self.optimizer = torch.optim.AdamW(model.parameters(), **options)
        milestones = [round(share * steps) for share in DECAY_AT]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones)
        self.seconds: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One timed training step; returns its loss."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        value = loss.item()  # which waits for a device, if that computes
        self.seconds.append(time.perf_counter() - start)
        self.schedule.step()
        return value

    def milliseconds(self) -> float:
        """Median time of a step, after the first few."""
        return 1000 * statistics.median(self.seconds[WARM_UP_STEPS:] or self.seconds)

    def tensor_bytes(self) -> dict[str, int]:
        """Bytes that training holds now, counted on the tensors themselves; call it after a step."""
        parameters = list(self.model.parameters())
        state = [value for entry in self.optimizer.state.values() for value in entry.values()]
        return {
            "parameters": sum(parameter.nbytes for parameter in parameters),
            "gradients": sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None),
            "optimizer": sum(value.nbytes for value in state if isinstance(value, Tensor)),
        }


def train(pair: dict[str, Learner], batches: data.Batches, epochs: int, label: str, console: Console) -> None:
    """Trains the nets of the pair in turns on the same batches.

    Raises:
        RuntimeError: If a loss stops being finite.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    every = max(1, epochs // 5)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=epochs * len(batches))
        turn = list(pair)
        for epoch in range(1, epochs + 1):
            losses = dict.fromkeys(pair, 0.0)
            for images, labels in batches:
                for name in turn:
                    losses[name] += pair[name].step(images, labels) / len(batches)
                # Who goes second finds the batch in the cache: take turns at that too.
                turn.reverse()
                bar.advance(task)
            for name, loss in losses.items():
                if not math.isfinite(loss):
                    raise RuntimeError(f"train: the loss of {label} {name} must stay finite (got {loss}): lower --lr")
            summary = ", ".join(f"{name} loss {loss:.4f}" for name, loss in losses.items())
            bar.update(task, description=f"{label}  {summary}")
            if not console.is_terminal and (epoch % every == 0 or epoch == epochs):
                console.print(f"{label}  epoch {epoch}/{epochs}  {summary}")


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that the model classifies right."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.Batches(images, labels, TEST_BATCH))
    model.train()
    return 100 * right / len(labels)
