"""Text as bytes: the Python standard library's own sources, or any files; and windows of it by step number."""

from __future__ import annotations

import glob
import hashlib
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Text", "TextError", "Windows", "load"]

# Folders of the standard library that hold no code of it: tests, generated data, and what was installed beside it.
SKIPPED = {"__pycache__", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
# One file in this many is held out, or this share of the end of a single file.
HELD_OUT = 20
SEPARATOR = b"\0"
TRAINING, SCORING = 0, 1


class TextError(Exception):
    """The text cannot be read or is too short; the message says which and why."""


@dataclass(frozen=True)
class Text:
    """Bytes to train on and bytes to validate with, from different files where there are several.

    Attributes:
        name: Where it came from, for people.
        train, held_out: uint8, 1-D.
        digest: Of both, to know the same text again.
    """

    name: str
    train: Tensor
    held_out: Tensor
    digest: str


def load(patterns: Sequence[str] | None = None) -> Text:
    """The text of files, given by name or glob pattern, or of the standard library without any.

    Files are read in the order of their paths. Every 20th is held out, at least one; of a single file, its last 20th.

    Raises:
        TextError: If a pattern matches no file, or a file cannot be read or is empty.
    """
    name, files = ("the standard library of this Python", _library()) if not patterns else _matching(patterns)
    try:
        contents = [path.read_bytes() for path in files]
    except OSError as error:
        raise TextError(f"text: {error.filename} cannot be read ({error.strerror})") from None
    if len(contents) == 1:
        cut = len(contents[0]) - len(contents[0]) // HELD_OUT
        train, held_out = contents[0][:cut], contents[0][cut:]
    else:
        first = min(HELD_OUT, len(contents)) - 1
        held_out = SEPARATOR.join(contents[first::HELD_OUT])
        train = SEPARATOR.join(part for i, part in enumerate(contents) if i % HELD_OUT != first)
    digest = hashlib.sha256(train + SEPARATOR + held_out).hexdigest()[:16]
    return Text(
        f"{name}, {len(files):,} {'file' if len(files) == 1 else 'files'}", _tensor(train), _tensor(held_out), digest
    )


def _library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts))
    if not found:
        raise TextError(f"text: {root} must hold the standard library's sources (got no .py file); give --text FILE")
    return found


def _matching(patterns: Sequence[str]) -> tuple[str, list[Path]]:
    found: set[Path] = set()
    for pattern in patterns:
        files = [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]  # noqa: PTH207
        if not files:
            raise TextError(f"text: --text must name files or patterns that match some (got {pattern!r})")
        found.update(files)
    return " ".join(patterns), sorted(found)


def _tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()) if content else torch.empty(0, dtype=torch.uint8)


class Windows:
    """Batches of windows of a text, each a function of the seed and its number: no state to save but the number.

    Args:
        text: From :func:`load`.
        batch: Windows in a batch, over all ranks.
        context: Tokens in a window.

    Raises:
        TextError: If the text is shorter than a window and its next byte.
    """

    def __init__(self, text: Text, batch: int, context: int, seed: int) -> None:
        for kind, part in (("train on", text.train), ("validate with", text.held_out)):
            if len(part) <= context:
                raise TextError(
                    f"text: {text.name} must have more than --context {context} bytes to {kind} (got {len(part)})"
                )
        self.text, self.batch, self.context, self.seed = text, batch, context, seed

    def training(self, step: int, part: int = 0, parts: int = 1) -> tuple[Tensor, Tensor]:
        """A step's batch, or a part of it: int64 bytes ``[windows, context]``, and the next ones, flattened."""
        return self._drawn(TRAINING, step, part, parts)

    def scoring(self, count: int, part: int = 0, parts: int = 1) -> list[tuple[Tensor, Tensor]]:
        """Batches to score connections on: drawn apart from those of the training."""
        return [self._drawn(SCORING, number, part, parts) for number in range(count)]

    def held_out(self, count: int, part: int = 0, parts: int = 1) -> Iterable[tuple[Tensor, Tensor]]:
        """``count`` batches of windows evenly spread over the held-out text; the same ones at every call."""
        last = len(self.text.held_out) - self.context - 1
        starts = np.linspace(0, last, count * self.batch).astype(np.int64)
        for chunk in starts.reshape(count, self.batch):
            yield self._windows(self.text.held_out, chunk, part, parts)

    def _drawn(self, stream: int, number: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng((self.seed, stream, number))
        starts = random.integers(0, len(self.text.train) - self.context, self.batch)
        return self._windows(self.text.train, starts, part, parts)

    def _windows(self, source: Tensor, starts: np.ndarray, part: int, parts: int) -> tuple[Tensor, Tensor]:
        size = self.batch // parts
        rows = [source[start : start + self.context + 1] for start in starts[part * size : (part + 1) * size].tolist()]
        tokens = torch.stack(rows).long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)
