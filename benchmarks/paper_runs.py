"""One network of the paper's tables and figures: how it is drawn, pruned and trained, and what is found then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import models
import paper_data
import torch
from data import Batches, Digits
from paper_methods import AFTER, prune_
from paper_training import Recipe, fit
from torch import Tensor, nn
from training import accuracy

__all__ = ["Run", "train"]

# Of the batches that are scored: larger ones are averages of several.
SCORED_AT_ONCE = 1000
SPLIT_SEED = 9


@dataclass(frozen=True)
class Run:
    """One network to train.

    Attributes:
        model: Of :data:`models.NETWORKS`.
        dataset: Of the command line.
        method: Of :mod:`paper_methods`, or "dense".
        keep: Share of the weights.
        seed: Of the first weights, of what is scored, and of the order of the batches.
        recipe: How it is trained.
        scored: How many training images are scored.
        init: How its first weights are drawn.
        labels: "true", or "random": drawn once for each image.
        images: Train on the first so many only; 0 for all.
    """

    model: str
    dataset: str
    method: str
    keep: float
    seed: int
    recipe: Recipe
    scored: int = 1000
    init: str = "vs"
    labels: str = "true"
    images: int = 0


@lru_cache(1)
def _task(dataset: str, folder: Path | None, device: str) -> Digits:
    return paper_data.load(dataset, folder).to(device)


def train(run: Run, folders: Mapping[str, Path], device: str = "cpu", compiled: bool = False) -> dict[str, Any]:
    """Draws, prunes and trains a network; its row: the run's fields, and what was found.

    Args:
        folders: Where data sets lie, by name.
        compiled: Train through ``torch.compile``, which is faster for convolutions and needs a C++ compiler.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    start = time.perf_counter()
    task = _task(run.dataset, folders.get(run.dataset), device)
    images, labels, held_out = _training_part(run, task)
    torch.manual_seed(run.seed)  # what random masks are drawn from
    model, before = _first(run, folders, device, compiled)
    densities: dict[str, float] = {}
    if run.method != "dense":
        size = min(run.scored, SCORED_AT_ONCE, len(images))
        scored = Batches(images, labels, size, True, torch.Generator().manual_seed(run.seed + 1))
        count = max(1, min(run.scored, len(images)) // size)
        pruned = prune_(model, scored, run.method, run.keep, count, faithful=run.recipe.faithful)
        densities = {name: round(mask.density, 6) for name, mask in pruned.masks.items()}
    batches = Batches(images, labels, run.recipe.batch, True, torch.Generator().manual_seed(run.seed))
    recipe = replace(run.recipe, lr=run.recipe.lr / 10) if run.method in AFTER else run.recipe
    tests = (task.test_images, task.test_labels)
    course = fit(model, batches, recipe, tests, held_out, seed=run.seed, compiled=compiled)
    found = {
        "densities": densities,
        "parameters": models.parameters(model),
        "test_error": round(100 - accuracy(model, *tests), 4),
        "error_before_pruning": before,
        **course,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return {**asdict(run), **found}


def _training_part(run: Run, task: Digits) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Images and labels to train on, and those that are held out to choose a moment by."""
    images, labels = task.train_images, task.train_labels
    if run.images:
        images, labels = images[: run.images], labels[: run.images]
    if run.labels == "random":
        drawn = torch.randint(0, models.CLASSES, labels.shape, generator=torch.Generator().manual_seed(SPLIT_SEED))
        labels = drawn.to(labels.device)
    if not run.recipe.held_out:
        return images, labels, None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED)).to(labels.device)
    out, rest = order.tensor_split([round(run.recipe.held_out * len(images))])
    return images[rest], labels[rest], (images[out], labels[out])


def _first(run: Run, folders: Mapping[str, Path], device: str, compiled: bool) -> tuple[nn.Module, float | None]:
    """What is to be pruned: a fresh network, or a trained one and its test error."""
    model = models.build(run.model, run.init, torch.Generator().manual_seed(run.seed)).to(device)
    if run.method not in AFTER:
        return model, None
    state, error = _trained(replace(run, method="dense", keep=1.0), tuple(folders.items()), device, compiled)
    model.load_state_dict(state)
    return model, error


@lru_cache(4)
def _trained(
    run: Run, folders: tuple[tuple[str, Path], ...], device: str, compiled: bool
) -> tuple[dict[str, Tensor], float]:
    """A dense network's state after training, which several sparsities start from, and its test error."""
    task = _task(run.dataset, dict(folders).get(run.dataset), device)
    images, labels, held_out = _training_part(run, task)
    model = models.build(run.model, run.init, torch.Generator().manual_seed(run.seed)).to(device)
    batches = Batches(images, labels, run.recipe.batch, True, torch.Generator().manual_seed(run.seed))
    tests = (task.test_images, task.test_labels)
    fit(model, batches, run.recipe, tests, held_out, seed=run.seed, compiled=compiled)
    return model.state_dict(), round(100 - accuracy(model, *tests), 4)
