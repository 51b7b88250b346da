"""The Triton backend: launchers become kernels of the ops for CUDA tensors."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from snipkern.backends.extensions import has_kernel
from snipkern.ops import schema


@dataclass(frozen=True)
class Launchers:
    """The launcher of each op that Triton has kernels for, and Triton's version; or no launchers and the reason."""

    ops: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])
    version: str = ""
    reason: str = ""

    @property
    def products(self) -> bool:
        """Whether there are matrix products among them."""
        return "spmm_bsr" in self.ops


def serve() -> Launchers:
    """Loads Triton's launchers and makes them the kernels of ops that have none for CUDA tensors yet.

    Importing Triton takes a while, so it comes last; so that fork() stays possible, no CUDA context is made.
    """
    launchers = _load()
    for name, launcher in launchers.ops.items():
        if not has_kernel(name, "CUDA"):
            torch.library.impl(f"{schema.NAMESPACE}::{name}", "CUDA", launcher)
    return launchers


def _load() -> Launchers:
    if torch.version.cuda is None:
        return Launchers(reason=f"PyTorch {torch.__version__} is built without CUDA")
    if torch.cuda.device_count() == 0:
        return Launchers(reason="no CUDA device is visible")
    try:
        version = str(importlib.import_module("triton").__version__)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return Launchers(reason="triton is not installed: pip install 'snipkern[triton]'")
        return Launchers(reason=f"triton failed to load: {error}")
    ops: dict[str, Callable[..., Any]] = {}
    try:
        package = importlib.import_module("snipkern.triton_kernels")
        for found in pkgutil.iter_modules(package.__path__):
            if not found.name.endswith("_kernels"):
                ops.update(getattr(importlib.import_module(f"{package.__name__}.{found.name}"), "OPS", {}))
    except ImportError as error:
        return Launchers(reason=f"snipkern.triton_kernels failed to load: {error}")
    return Launchers(ops, version)
