"""The paper's Fig. 2: does a mask that was scored on images of one class show that class?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import models
import paper_data
import torch
from data import Batches
from torch import Tensor

import snipkern as sk

__all__ = ["OneClass", "correlations", "trace"]

IMAGES = 100


@dataclass(frozen=True)
class OneClass:
    """Masks of LeNet-300-100, each scored on images of one class, for all classes.

    Attributes:
        of_class: How many images are scored for each.
    """

    dataset: str
    keep: float
    seed: int
    of_class: int = IMAGES


def trace(run: OneClass, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Scores one batch of each class at the same weights and looks at the first layer's masks.

    Returns:
        The run's fields; ``pictures``: for each class, 28 strings of 28 numbers, the kept connections of each input
        pixel; ``correlations``: ``[10][10]`` of :func:`correlations`.
    """
    torch.set_num_threads(1)
    task = paper_data.load(run.dataset, folders.get(run.dataset))
    order = torch.randperm(len(task.train_labels), generator=torch.Generator().manual_seed(run.seed))
    pictures, means = [], []
    for label in range(models.CLASSES):
        chosen = order[task.train_labels[order] == label]
        model = models.build("lenet-300-100", generator=torch.Generator().manual_seed(run.seed))
        scored = Batches(task.train_images[chosen], task.train_labels[chosen], run.of_class)
        mask = sk.plan(model, scored, run.keep, engine="csr").masks["fc1.weight"]
        pictures.append(mask.to_dense().sum(0).view(task.train_images.shape[2:]))
        means.append(task.train_images[chosen].mean((0, 1)))
    kept, mean = torch.stack(pictures), torch.stack(means)
    written = [[" ".join(map(str, line)) for line in picture] for picture in kept.tolist()]
    return {**asdict(run), "pictures": written, "correlations": correlations(kept, mean).tolist()}


def correlations(kept: Tensor, means: Tensor) -> Tensor:
    """How much a class's picture of kept connections looks like each class's mean image, ``[classes, classes]``.

    Both less their means over the classes, since what all digits share says nothing of one: so the correlation over
    the pixels is that of what is particular. Row: whose images were scored; column: whose mean image.

    Args:
        kept, means: ``[classes, height, width]``.
    """
    parts = []
    for pictures in (kept, means):
        own = pictures.double().flatten(1)
        own = own - own.mean(0)
        own = own - own.mean(1, keepdim=True)
        parts.append(own / own.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny))
    return (parts[0] @ parts[1].T).round(decimals=4)
