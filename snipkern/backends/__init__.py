"""Which kernels run: loading, reporting and switching backends.

==============  ===========================  ==============================================================
``reference``   plain PyTorch                always there, on any device
``cpu``         the extension ``_C``         CPU tensors; one tier per instruction set
``cuda``        the extension ``_C_cuda``    CUDA tensors: products and what holds pruned weights at zero
``triton``      snipkern.triton_kernels      CUDA tensors: saliency; products where ``_C_cuda`` is absent, or on request
==============  ===========================  ==============================================================

``cuda`` and ``triton`` were not yet run on a GPU. The dispatcher is the registry: a backend registers its kernels for
CPU or CUDA tensors, over the reference, and :func:`use` is an override for a while. A backend that cannot run is
reported by :func:`status` with the reason, never silently replaced.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Generator
from dataclasses import dataclass

import torch

from snipkern.backends import extensions, launchers, overrides, precision

__all__ = ["BackendStatus", "active", "best_isa", "isa", "missing_kernels", "release_scratch", "status", "use"]

BACKENDS = ("reference", "cpu", "triton", "cuda")
ISA_TIERS = ("scalar", "avx2", "avx512")
UNTRIED = "not yet run on a GPU"


@dataclass(frozen=True)
class BackendStatus:
    """One backend: whether it runs here, and with what or why not."""

    name: str
    available: bool
    detail: str


_cpu = extensions.load_cpu()
_cuda = extensions.load_cuda()
_triton = launchers.serve()


def isa() -> str | None:
    """Instruction-set tier of the ``cpu`` backend ("scalar", "avx2", "avx512"), None where it is not built."""
    return None if _cpu.module is None else str(_cpu.module.isa())


def best_isa() -> str | None:
    """The best tier of the ``cpu`` backend that this processor runs, None where the backend is not built."""
    return None if _cpu.module is None else str(_cpu.module.best_isa())


def missing_kernels(device: torch.device | str = "cpu") -> str:
    """Why this device's products run on the reference although nobody asked for it; empty where they don't."""
    kind = torch.device(device).type
    if kind == "cpu":
        return _cpu.reason
    if kind != "cuda":
        return f"no {kind} kernels"
    if _cuda.module is not None or _triton.products:
        return ""
    return f"{_cuda.reason}; {_triton.reason}" if _triton.reason else _cuda.reason


def active(device: torch.device | str = "cpu", op: str | None = None) -> str:
    """The backend that this device's tensors use now.

    Args:
        device: A device or its type; it need not exist.
        op: One op, such as ``"conv2d_csr"``; None: matrix products, at least those with whole blocks.
    """
    kind = torch.device(device).type
    chosen = overrides.chosen(kind)
    if chosen == "reference" or (chosen == "triton" and (op is None or op in _triton.ops)):
        return chosen
    if kind == "cpu" and _cpu.module is not None and (op is None or op in _cpu.ops):
        return "cpu"
    if kind == "cuda" and _cuda.module is not None and (op is None or op in _cuda.ops):
        return "cuda"
    if kind == "cuda" and (_triton.products if op is None else op in _triton.ops):
        return "triton"
    return "reference"


def status() -> list[BackendStatus]:
    """Every backend: whether it is live, with its details, or why it is not."""
    return [
        BackendStatus("reference", True, "plain PyTorch on any device; saves memory, no time"),
        _cpu_status(),
        BackendStatus("triton", not _triton.reason, _triton_detail()),
        BackendStatus("cuda", not extensions.why_not_cuda(_cuda), _cuda_detail()),
    ]


def _cpu_status() -> BackendStatus:
    if _cpu.module is None:
        return BackendStatus("cpu", False, _cpu.reason)
    best = best_isa()
    detail = f"{isa()} kernels on {platform.machine()}"
    if isa() != best:
        detail += f" (this processor also runs {best})"
    return BackendStatus("cpu", True, f"{detail}, {torch.get_num_threads()} threads")


def _triton_detail() -> str:
    if _triton.reason:
        return _triton.reason
    return f"Triton {_triton.version} on CUDA devices: {', '.join(_triton.ops)}; {UNTRIED}"


def _cuda_detail() -> str:
    reason = extensions.why_not_cuda(_cuda)
    if _cuda.module is None:
        return reason
    built = f"compiled for {_cuda.module.architectures()} with CUDA {_cuda.module.compiled_version()}"
    return f"{reason} ({built})" if reason else f"{built}: {', '.join(_cuda.ops)}; {UNTRIED}"


def follow_torch(x: torch.Tensor) -> None:
    """Before a product of x: gives kernels for its device the permissions that torch has now."""
    if x.is_cuda:
        precision.follow_torch(_cuda.module)


def release_scratch() -> int:
    """Frees the packing memory that the calling thread's kernels keep between calls; returns its bytes."""
    return 0 if _cpu.module is None else int(_cpu.module.release_scratch())


def use(name: str, *, isa: str | None = None) -> contextlib.AbstractContextManager[None]:
    """Runs the ops with one backend, inside a ``with`` block; compiled models follow too.

    ``cpu`` concerns CPU tensors, ``triton`` and ``cuda`` those on CUDA devices, ``reference`` both. An op that the
    backend lacks stays with what serves it otherwise. Blocks nest; the inner one counts. It is a matter of the whole
    process, not of a thread.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        isa: For ``"cpu"``, the instruction-set tier: ``"scalar"``, ``"avx2"`` or ``"avx512"``.

    Raises:
        ValueError: On entering, for an unknown backend or tier, or one that cannot run here; the message says why.
    """
    return _use(name, isa)


@contextlib.contextmanager
def _use(name: str, tier: str | None) -> Generator[None]:
    if name not in BACKENDS:
        raise ValueError(f"backends.use: name must be one of {', '.join(BACKENDS)} (got {name!r})")
    if tier is not None and name != "cpu":
        raise ValueError(f"backends.use: isa is for the cpu backend (got {tier!r})")
    reasons = {"cpu": _cpu.reason, "triton": _triton.reason, "cuda": extensions.why_not_cuda(_cuda)}
    if reasons.get(name):
        raise ValueError(f"backends.use: the {name} backend cannot run ({reasons[name]})")
    with contextlib.ExitStack() as stack:
        if name == "cpu":
            stack.enter_context(_tier(tier))
        stack.enter_context(overrides.override(name, _triton.ops))
        yield


@contextlib.contextmanager
def _tier(name: str | None) -> Generator[None]:
    assert _cpu.module is not None
    before = _cpu.module.isa()
    if name is not None and not _cpu.module.set_isa(name):
        raise ValueError(
            f"backends.use: isa must be one of {', '.join(ISA_TIERS)} up to this processor's {best_isa()} (got"
            f" {name!r})"
        )
    try:
        yield
    finally:
        _cpu.module.set_isa(before)
