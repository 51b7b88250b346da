"""Makes the example scripts importable, and writes small sets of digits in MNIST's own file format."""

import gzip
import struct
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def as_idx(content):
    """A uint8 tensor as the bytes of an IDX file."""
    header = struct.pack(f">HBB{content.dim()}I", 0, 0x08, content.dim(), *content.shape)
    return header + content.contiguous().numpy().tobytes()


@pytest.fixture
def idx_bytes():
    return as_idx


@pytest.fixture
def write_digits(tmp_path):
    """Writes bright-bar "digits" (the class is the bar's place) as four IDX files; returns their folder."""

    def write(train=300, test=100, suffix="", mark="-"):
        folder = tmp_path / "digits"
        folder.mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        for part, count in (("train", train), ("t10k", test)):
            labels = torch.arange(count, dtype=torch.uint8) % 10
            images = torch.randint(0, 40, (count, 28, 28), dtype=torch.uint8, generator=generator)
            for image, label in zip(images, labels.tolist(), strict=True):
                image[:, 4 + 2 * label : 6 + 2 * label] += 200
            for kind, content in (("images", images), ("labels", labels)):
                raw = as_idx(content)
                name = f"{part}-{kind}{mark}idx{content.dim()}-ubyte{suffix}"
                (folder / name).write_bytes(gzip.compress(raw) if suffix else raw)
        return folder

    return write
