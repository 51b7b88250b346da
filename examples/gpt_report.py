"""What a run found, as a table, a picture and JSON."""

from __future__ import annotations

import importlib.util
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpt_training import Learner, bytes_held
from rich.table import Table
from torch import nn

import snipkern as sk

__all__ = ["comparison", "draw_losses", "peak_bytes", "speeds", "summary"]

MIB = 2**20
# ru_maxrss is in KiB, but in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
SMOOTHED_SHARE = 20
BYTES_OF = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "index": "sparse index",
}


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process ever had resident, or its tensors on a CUDA device held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def summary(learner: Learner) -> dict[str, Any]:
    """Figures of a learner after its last step."""
    masks = sk.masks(learner.model)
    layers = {name: module for name, module in learner.model.named_modules() if isinstance(module, nn.Linear)}
    return {
        "bf16": learner.bf16,
        "weights": sum(
            masks[f"{name}.weight"].count() if masks else module.weight.numel() for name, module in layers.items()
        ),
        "validation_loss": list(learner.validation.values())[-1] if learner.validation else None,
        "validation": list(learner.validation.items()),
        "losses": learner.losses,
        "ms_per_step": learner.milliseconds(),
        "tokens_per_second": learner.tokens_per_second(),
        "bytes": bytes_held(learner),
    }


def comparison(results: dict[str, dict[str, Any]], title: str) -> Table:
    """A column for each learner that was trained to the end; the first is what the others are compared with."""
    trained = {name: result for name, result in results.items() if result["validation_loss"] is not None}
    table = Table(title=title, title_justify="left")
    table.add_column(no_wrap=True)
    for name in trained:
        table.add_column(name, justify="right")
    reference, first = next(iter(trained.items()))

    def row(label: str, figure: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(label, *map(figure, trained.values()))

    row("weights", lambda r: f"{r['weights']:,}")
    row("loss on held-out text", lambda r: f"{r['validation_loss']:.4f}")
    row("ms per step (median)", lambda r: f"{r['ms_per_step']:,.1f}")
    row("tokens/s", lambda r: f"{r['tokens_per_second']:,.0f}")
    several = len(trained) > 1
    if several:
        row(f"speed / {reference}", lambda r: f"{r['tokens_per_second'] / first['tokens_per_second']:.2f}x")
    for part, label in BYTES_OF.items():
        row(f"MiB of {label}", lambda r, part=part: f"{r['bytes'][part] / MIB:,.1f}")
    row("MiB in all", lambda r: f"{sum(r['bytes'].values()) / MIB:,.1f}")
    if several:
        row(f"memory / {reference}", lambda r: f"{sum(r['bytes'].values()) / sum(first['bytes'].values()):.1%}")
    return table


def speeds(results: dict[str, dict[str, Any]]) -> Table:
    """A row for each learner, trained or only timed, with its speed over that of every dense one."""
    table = Table(title="speed in both precisions", title_justify="left")
    table.add_column(no_wrap=True)
    dense = {name: result["tokens_per_second"] for name, result in results.items() if name.startswith("dense")}
    for column in ("ms per step", "tokens/s", *(f"/ {name}" for name in dense)):
        table.add_column(column, justify="right")
    for name, result in results.items():
        speed = result["tokens_per_second"]
        ratios = (f"{speed / other:.2f}x" for other in dense.values())
        table.add_row(name, f"{result['ms_per_step']:,.1f}", f"{speed:,.0f}", *ratios)
    return table


def draw_losses(results: dict[str, dict[str, Any]], path: Path) -> bool:
    """Writes the training losses, smoothed, and the validation losses as PNG; False without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, result) in enumerate(results.items()):
        losses = result["losses"]
        if result["validation_loss"] is None:
            continue
        color = f"C{number}"
        span = max(1, len(losses) // SMOOTHED_SHARE)
        means = [statistics.fmean(losses[max(0, i - span) : i + 1]) for i in range(len(losses))]
        axes.plot(range(1, len(losses) + 1), means, color=color, alpha=0.5, label=f"{name}, training")
        axes.plot(*zip(*result["validation"], strict=True), "o-", color=color, label=f"{name}, held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True
