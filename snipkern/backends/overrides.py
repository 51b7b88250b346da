"""Overriding the dispatcher's kernels for a while.

A stack of names says what is wanted; each dispatch key has at most one library over its ordinary kernels, made anew
whenever the topmost name that concerns the key changes. So blocks nest in any order.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch

from snipkern.ops import reference, schema

#: Which backends concern the tensors of a dispatch key. Only the first ones are ever overrides: "cpu" and "cuda" are
#: the ordinary kernels, so wanting them is wanting no override.
CONCERNED = {"CPU": ("reference", "cpu"), "CUDA": ("reference", "triton", "cuda")}

_stack: list[str] = []
_libraries: dict[str, torch.library.Library] = {}


def chosen(device_type: str) -> str | None:
    """The backend that was asked for last for tensors on this kind of device, if any."""
    if not _stack:
        return None
    concerned = CONCERNED.get(device_type.upper(), ("reference",))
    return next((name for name in reversed(_stack) if name in concerned), None)


@contextlib.contextmanager
def override(name: str, triton_ops: Mapping[str, Callable[..., Any]]) -> Generator[None]:
    """Runs the ops on a backend, inside a ``with`` block, where it has kernels for them."""
    before = {key: chosen(key) for key in CONCERNED}
    _stack.append(name)
    try:
        _replace(before, triton_ops)
        yield
    finally:
        before = {key: chosen(key) for key in CONCERNED}
        _stack.pop()
        _replace(before, triton_ops)


def _replace(before: dict[str, str | None], triton_ops: Mapping[str, Callable[..., Any]]) -> None:
    for key in CONCERNED:
        name = chosen(key)
        if name == before[key]:
            continue
        if key in _libraries:
            _libraries.pop(key)._destroy()
        kernels = triton_ops if name == "triton" else _reference_kernels() if name == "reference" else {}
        if kernels:
            _libraries[key] = _overriding(key, kernels)


def _reference_kernels() -> dict[str, Callable[..., Any]]:
    return {op: getattr(reference, op) for op in schema.OPS}


def _overriding(key: str, kernels: Mapping[str, Callable[..., Any]]) -> torch.library.Library:
    library = torch.library.Library(schema.NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        # Overriding the compiled kernel is the purpose here, not an accident worth telling the user.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for op, kernel in kernels.items():
            library.impl(op, kernel, key, allow_override=True)
    return library
