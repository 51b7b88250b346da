"""What a run found, as a table, a picture and JSON."""

from __future__ import annotations

import importlib.util
import resource
import sys
from pathlib import Path
from typing import Any

from gpt_training import Learner, bytes_held
from rich.table import Table
from torch import nn

import snipkern as sk

__all__ = ["comparison", "draw_losses", "peak_bytes", "summary"]

MIB = 2**20
# ru_maxrss is in KiB, but in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
SMOOTHED_SHARE = 20


def peak_bytes() -> int:
    """The most memory that this process ever had resident."""
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
    """A row for each learner; the first is what the others are compared with."""
    table = Table(title=title, title_justify="left")
    columns = ("", "weights", "validation loss", "ms per step", "tokens/s", "speed", "parameters", "+ gradients",
               "+ optimizer", "+ index, MiB", "memory")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    first = next(iter(results.values()))
    whole = sum(first["bytes"].values())
    for name, result in results.items():
        loss, held = result["validation_loss"], result["bytes"]
        sums = [sum(list(held.values())[: i + 1]) for i in range(len(held))]
        table.add_row(
            name,
            f"{result['weights']:,}",
            "only timed" if loss is None else f"{loss:.4f}",
            f"{result['ms_per_step']:.1f}",
            f"{result['tokens_per_second']:,.0f}",
            f"{result['tokens_per_second'] / first['tokens_per_second']:.2f}x",
            *(f"{size / MIB:,.1f}" for size in sums),
            f"{sums[-1] / whole:.1%}",
        )
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
        means = [
            sum(losses[max(0, i - span) : i + 1]) / len(losses[max(0, i - span) : i + 1]) for i in range(len(losses))
        ]
        axes.plot(range(1, len(losses) + 1), means, color=color, alpha=0.5, label=f"{name}, training")
        axes.plot(*zip(*result["validation"], strict=True), "o-", color=color, label=f"{name}, held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True
