"""benchmarks/paper_data.py: CIFAR-10 as torchvision keeps it, and its augmentation."""

from __future__ import annotations

import os
import pickle

import numpy as np
import paper_data
import pytest
import torch
from data import DataError


def write(folder, rows=6):
    inner = folder / paper_data.CIFAR10_FOLDER
    inner.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in paper_data.CIFAR10_PARTS:
        pixels = random.integers(0, 256, (rows, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": random.integers(0, 10, rows).tolist(), "batch_label": name}
        (inner / name).write_bytes(pickle.dumps(content, protocol=2))
    return inner


def test_reads_what_torchvision_unpacks(tmp_path):
    inner = write(tmp_path)
    found = paper_data.load("cifar10", tmp_path)
    again = paper_data.read_cifar10(inner)
    assert torch.equal(found.train_images, again.train_images)
    assert found.train_images.shape == (30, 3, 32, 32) and found.test_images.shape == (6, 3, 32, 32)
    std, mean = torch.std_mean(found.train_images, dim=(0, 2, 3))
    torch.testing.assert_close(std, torch.ones(3))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    raw = pickle.loads((inner / "data_batch_2").read_bytes())
    assert found.train_labels[6:12].tolist() == raw["labels"]
    # Rows of a file are the red, green and blue plane, each by lines.
    first, second = (float(found.train_images[6, 1, 0, i]) for i in (0, 1))
    assert (first < second) == (raw["data"][0, 1024] < raw["data"][0, 1025])


def test_a_folder_is_needed(tmp_path):
    with pytest.raises(DataError, match="cifar10 must have a folder"):
        paper_data.load("cifar10", None)
    with pytest.raises(DataError, match="data_batch_1 must be a part of CIFAR-10"):
        paper_data.load("cifar10", tmp_path)


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"data": Harmful(), "labels": []}), "it names"),
        (
            pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}),
            r"must hold 3072 bytes for each of 2",
        ),
        (pickle.dumps({"labels": [0, 1]}), "must be a part"),
        (b"nothing", "must be a part"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, said):
    (write(tmp_path) / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=said):
        paper_data.load("cifar10", tmp_path)


def test_augmentation_shifts_and_flips():
    image = torch.arange(1, 3 * 8 * 8 + 1).float().view(1, 3, 8, 8)
    found = paper_data.augmented(image.expand(300, -1, -1, -1), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0], (4, 4, 4, 4))
    views = {
        (top, left, flip): padded[:, top : top + 8, left : left + 8].flip(2)
        if flip
        else padded[:, top : top + 8, left : left + 8]
        for top in range(9)
        for left in range(9)
        for flip in (False, True)
    }
    seen = set()
    for picture in found:
        places = [place for place, view in views.items() if torch.equal(view, picture)]
        assert places
        seen.update(places[:1])
    assert len(seen) > 100 and {flip for *_, flip in seen} == {False, True}


def test_augmentation_is_repeated_by_its_generator():
    images = torch.randn(5, 3, 8, 8)
    one, two = (paper_data.augmented(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
