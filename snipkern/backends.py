"""Which kernels run: loading, reporting and switching backends.

``reference`` is plain PyTorch and always there; ``cpu`` is the compiled extension ``snipkern._C``, with one tier per
instruction set; ``triton`` serves the saliency ops on CUDA devices and was not yet run on a GPU. A backend that cannot
run is reported by :func:`status` with the reason, never silently replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from types import ModuleType

import torch

from snipkern.ops import reference, schema

__all__ = ["BackendStatus", "active", "best_isa", "isa", "release_scratch", "status", "use"]

BACKENDS = ("reference", "cpu")
ISA_TIERS = ("scalar", "avx2", "avx512")


@dataclass(frozen=True)
class BackendStatus:
    """One backend: whether it runs here, and with what or why not."""

    name: str
    available: bool
    detail: str


def _load() -> tuple[ModuleType | None, str]:
    """The compiled extension, or why there is none."""
    try:
        module = importlib.import_module("snipkern._C")
    except ModuleNotFoundError as error:
        if error.name != "snipkern._C":
            return None, f"snipkern._C failed to load: {error}"
        return None, "snipkern._C is not built: install from source with a C++17 compiler and ninja"
    except ImportError as error:
        return None, f"snipkern._C failed to load: {error}"
    try:
        module.isa()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return module, ""


def _serve_triton() -> tuple[list[str], str]:
    """Makes Triton kernels the ops' kernels for CUDA tensors; their names and Triton's version, or no names and why.

    Importing Triton takes a while, so it comes last; so that fork() stays possible, no CUDA context is made.
    """
    if torch.version.cuda is None:
        return [], f"PyTorch {torch.__version__} is built without CUDA"
    if torch.cuda.device_count() == 0:
        return [], "no CUDA device is visible"
    try:
        version = str(importlib.import_module("triton").__version__)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return [], "triton is not installed: pip install 'snipkern[triton]'"
        return [], f"triton failed to load: {error}"
    try:
        module = importlib.import_module("snipkern.triton_kernels.saliency")
    except ImportError as error:
        return [], f"snipkern.triton_kernels failed to load: {error}"
    for name, launcher in module.OPS.items():
        torch.library.impl(f"{schema.NAMESPACE}::{name}", "CUDA", launcher)
    return list(module.OPS), version


_extension, _reason = _load()
_triton_ops, _triton_detail = _serve_triton()
_overrides: list[str] = []


def isa() -> str | None:
    """Instruction-set tier of the ``cpu`` backend ("scalar", "avx2", "avx512"), None where it is not built."""
    return None if _extension is None else str(_extension.isa())


def best_isa() -> str | None:
    """The best tier of the ``cpu`` backend that this processor runs, None where the backend is not built."""
    return None if _extension is None else str(_extension.best_isa())


def missing_kernels() -> str:
    """Why CPU tensors run on the reference although nobody asked for it; empty where they don't."""
    return _reason


def active(device: torch.device | str = "cpu") -> str:
    """The backend that matrix products on this device use now."""
    if _overrides:
        return _overrides[-1]
    return "cpu" if torch.device(device).type == "cpu" and _extension is not None else "reference"


def status() -> list[BackendStatus]:
    """Every backend: whether it is live, with its details, or why it is not."""
    rows = [BackendStatus("reference", True, "plain PyTorch on any device; saves memory, no time")]
    if _extension is None:
        rows.append(BackendStatus("cpu", False, _reason))
    else:
        best = best_isa()
        detail = f"{isa()} kernels on {platform.machine()}"
        if isa() != best:
            detail += f" (this processor also runs {best})"
        rows.append(BackendStatus("cpu", True, f"{detail}, {torch.get_num_threads()} threads"))
    detail = _triton_detail
    if _triton_ops:
        detail = f"{', '.join(_triton_ops)} on CUDA devices, Triton {detail}; not yet run on a GPU"
    rows.append(BackendStatus("triton", bool(_triton_ops), detail))
    rows.append(BackendStatus("cuda", False, "C++ kernels for CUDA are not part of this release"))
    return rows


def release_scratch() -> int:
    """Frees the packing memory that the calling thread's kernels keep between calls; returns its bytes."""
    return 0 if _extension is None else int(_extension.release_scratch())


@contextlib.contextmanager
def use(name: str, *, isa: str | None = None) -> Generator[None]:
    """Runs the ops on CPU tensors with one backend, inside a ``with`` block; compiled models follow too.

    Args:
        name: ``"reference"`` or ``"cpu"``.
        isa: For ``"cpu"``, the instruction-set tier: ``"scalar"``, ``"avx2"`` or ``"avx512"``.

    Raises:
        ValueError: For an unknown backend or tier, or one that cannot run here; the message says why.
    """
    if name not in BACKENDS:
        raise ValueError(f"backends.use: name must be one of {', '.join(BACKENDS)} (got {name!r})")
    if name == "reference":
        if isa is not None:
            raise ValueError(f"backends.use: isa is for the cpu backend (got {isa!r})")
        library = torch.library.Library(schema.NAMESPACE, "IMPL")
        try:
            with warnings.catch_warnings():
                # Overriding the compiled kernel is the purpose here, not an accident worth telling the user.
                warnings.filterwarnings("ignore", message="Warning only once for all operators")
                for op in schema.OPS:
                    library.impl(op, getattr(reference, op), "CPU", allow_override=True)
            with _marked(name):
                yield
        finally:
            library._destroy()
        return
    if _extension is None:
        raise ValueError(f"backends.use: the cpu backend cannot run ({_reason})")
    if "reference" in _overrides:
        raise ValueError("backends.use: cpu cannot be nested inside reference")
    before = _extension.isa()
    if isa is not None and not _extension.set_isa(isa):
        raise ValueError(
            f"backends.use: isa must be one of {', '.join(ISA_TIERS)} up to this processor's {best_isa()} (got {isa!r})"
        )
    try:
        with _marked(name):
            yield
    finally:
        _extension.set_isa(before)


@contextlib.contextmanager
def _marked(name: str) -> Generator[None]:
    _overrides.append(name)
    try:
        yield
    finally:
        _overrides.pop()
