"""A device that is not there: tensors that say they lie on it, hold their numbers on the CPU, and behave like CUDA's.

It refuses operands on two devices, refuses to be read by numpy, and, inside :func:`no_sync`, whatever makes the host wait
for a CUDA device or the device for the host: reading numbers, sizes that depend on data, copies between the two. So
what only breaks with the model on a GPU breaks here. Kernels, streams and speed are not what it is about.

torch has one experimental place for a device of Python's (``privateuseone``), once in a process; hence only a process
of its own installs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
READ = {aten._local_scalar_dense, aten.equal, aten.is_nonzero}
SIZED_BY_DATA = {
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount,
}  # fmt: skip
# Operands that may be on two devices, and what they do with them.
CROSSING = {aten.copy_, aten._to_copy}
# Factories that torch makes of others by giving a tensor another size, which Pretended cannot.
FACTORIES = ("arange", "arange.start", "arange.start_step", "randperm", "randperm.generator", "linspace")
_libraries: list[torch.library.Library] = []
_refusing = 0


class Synchronizes(RuntimeError):
    """The host would have waited for the device."""


class Pretended(torch.Tensor):
    """A tensor on the device; ``elem`` holds its numbers."""

    # Not among the attributes, which conversion hands on from a weight to its values.
    __slots__ = ("elem",)

    @staticmethod
    def __new__(cls, elem: Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(NAME, 0),
            requires_grad=elem.requires_grad,
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """torch itself makes no list of a subclass."""
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Pretended({list(self.shape)} {self.dtype})"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One op, as a CUDA device would take it."""
    packet = func.overloadpacket
    operands = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    ours = [leaf for leaf in operands if isinstance(leaf, Pretended)]
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    if packet not in CROSSING:
        for other in operands:
            if ours and not isinstance(other, Pretended) and other.dim() and not other.is_meta:
                raise RuntimeError(f"{func}: Expected all tensors to be on the same device ({NAME} and {other.device})")
    crosses = len(ours) < len(operands) if packet is aten.copy_ else target is not None and target.type != NAME
    waits = packet in READ or packet in SIZED_BY_DATA or (packet in CROSSING and crosses)
    waits |= func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if packet in (aten.index, aten.index_put, aten.index_put_):
        waits |= any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if waits and _refusing and not (args and kwargs.get("non_blocking")):
        raise Synchronizes(f"{func} synchronizes with the device")
    before = {id(leaf.elem): leaf for leaf in ours}
    here = target is None or target.type == NAME
    if target is not None and here:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not here or packet in READ:
        return found
    return tree_map(lambda leaf: _wrapped(leaf, before), found)


def _held(leaf: Any) -> Any:
    return leaf.elem if isinstance(leaf, Pretended) else leaf


def _wrapped(leaf: Any, before: dict[int, Pretended]) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, Pretended):
        return leaf
    return before[id(leaf)] if id(leaf) in before else Pretended(leaf)  # in-place ops return their operand


def install() -> torch.device:
    """Adds the device to this process, once and for all."""
    if not _libraries:
        _setup_privateuseone_for_python_backend(NAME)
        _libraries.extend([torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")])
        _libraries[0].fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
        for name in FACTORIES:
            packet, _, overload = name.partition(".")
            func = getattr(getattr(aten, packet), overload or "default")
            _libraries[1].impl(name, partial(_made, func), "PrivateUse1")
        torch.tensor = partial(_tensor, torch.tensor)  # type: ignore[assignment]
    return torch.device(NAME, 0)


def _made(func: Any, *args: Any, **kwargs: Any) -> Any:
    return run(func, args, kwargs)


def _tensor(original: Any, data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """torch's own brings its numbers to the device where no subclass gets to know of it."""
    return original(data, **options).to(device)


@contextlib.contextmanager
def no_sync() -> Generator[None]:
    """Refuses what synchronizes, on all threads: backward passes of a device have one of their own."""
    global _refusing
    _refusing += 1
    try:
        yield
    finally:
        _refusing -= 1
