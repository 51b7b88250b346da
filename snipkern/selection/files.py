"""Weights and gradients in safetensors files, read where they lie: selection on models larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["safetensor_pairs"]

Paths: TypeAlias = "str | PathLike[str] | Sequence[str | PathLike[str]]"


def safetensor_pairs(weights: Paths, gradients: Paths) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Weights and gradients for :func:`snipkern.select` from safetensors files, which are mapped, not loaded.

    A tensor is a view of its file, opened anew at each access: what has been read can be dropped by the system, and
    nothing is copied.

    Args:
        weights: A file; several; a folder of them; or the index (``*.safetensors.index.json``) of a checkpoint that is
            cut up into several.
        gradients: Alike, with tensors of the same names. It decides what is to be selected from: weights without a
            gradient are left out.

    Returns:
        A lazy mapping ``{name: (weight, gradient)}``, in the order of the gradients' files, and of names in each.

    Raises:
        ImportError: Without the safetensors package.
        FileNotFoundError: For a file that is not there.
        ValueError: For a folder without such files, a name in two files, or a gradient without a weight.
    """
    return _Pairs(_Tensors(weights), _Tensors(gradients))


class _Pairs(Mapping[str, tuple[Tensor, Tensor]]):
    def __init__(self, weights: _Tensors, gradients: _Tensors) -> None:
        self.weights, self.gradients = weights, gradients
        lacking = [name for name in gradients.files if name not in weights.files]
        if lacking:
            raise ValueError(f"safetensor_pairs: every gradient must have a weight (got {lacking[0]!r} without one)")

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[name], self.gradients[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.gradients.files)

    def __len__(self) -> int:
        return len(self.gradients.files)


class _Tensors:
    """The tensors of one or several files, by name."""

    def __init__(self, paths: Paths) -> None:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError("safetensor_pairs: needs the safetensors package; pip install safetensors") from error
        self.files: dict[str, Any] = {}
        for path in _files(paths):
            if not path.is_file():
                raise FileNotFoundError(f"safetensor_pairs: no such file: {path}")
            opened = safe_open(path, framework="pt")
            for name in sorted(opened.keys()):
                if name in self.files:
                    raise ValueError(f"safetensor_pairs: a name must be in one file alone (got {name!r} in {path} too)")
                self.files[name] = opened

    def __getitem__(self, name: str) -> Tensor:
        return self.files[name].get_tensor(name)


def _files(paths: Paths) -> list[Path]:
    if not isinstance(paths, (str, PathLike)):
        return [file for path in paths for file in _files(path)]
    path = Path(paths)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise ValueError(f"safetensor_pairs: the folder must hold *.safetensors files (got none in {path})")
        return found
    if path.suffix == ".json":
        names = json.loads(path.read_text())["weight_map"].values()
        return [path.parent / name for name in sorted(set(names))]
    return [path]
