"""The compiled extensions: importing one registers its kernels."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from types import ModuleType

import torch

from snipkern.ops import schema


@dataclass(frozen=True)
class Extension:
    """A compiled extension and the ops that it has kernels for, or no module and the reason."""

    module: ModuleType | None
    reason: str = ""
    ops: tuple[str, ...] = ()


def load(name: str, dispatch_key: str, cure: str) -> Extension:
    """Imports an extension.

    Args:
        name: Of the module.
        dispatch_key: What tensors its kernels are for, ``"CPU"`` or ``"CUDA"``.
        cure: What to do where the module is missing.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            return Extension(None, f"{name} failed to load: {error}")
        return Extension(None, f"{name} is not built: {cure}")
    except ImportError as error:
        return Extension(None, f"{name} failed to load: {error}")
    return Extension(module, ops=tuple(op for op in schema.OPS if has_kernel(op, dispatch_key)))


def has_kernel(op: str, dispatch_key: str) -> bool:
    """Whether some backend registered a kernel of its own for this kind of tensors."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{schema.NAMESPACE}::{op}", dispatch_key)


def load_cpu() -> Extension:
    """``snipkern._C``.

    Raises:
        ValueError: Where the environment asks for an instruction set that is unknown or that the processor lacks.
    """
    extension = load("snipkern._C", "CPU", "install from source with a C++17 compiler and ninja")
    if extension.module is not None:
        try:
            extension.module.isa()
        except RuntimeError as error:
            raise ValueError(str(error)) from None
    return extension


def load_cuda() -> Extension:
    """``snipkern._C_cuda``, wherever PyTorch is built for CUDA: loading it needs no device."""
    if torch.version.cuda is None:
        return Extension(None, f"PyTorch {torch.__version__} is built without CUDA")
    cure = "install from source with a CUDA toolkit (nvcc in $CUDA_HOME/bin)"
    return load("snipkern._C_cuda", "CUDA", cure)


def why_not_cuda(extension: Extension) -> str:
    """Why ``snipkern._C_cuda`` cannot run here, empty where it can.

    Capabilities of devices are looked at only once somebody has used CUDA: asking makes a context, and fork() would
    fail from then on.
    """
    if extension.module is None:
        return extension.reason
    if torch.cuda.device_count() == 0:
        return "no CUDA device is visible"
    if torch.cuda.is_initialized():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        if not runs_on(capability, extension.module.architectures()):
            return f"{name} has compute capability {capability[0]}.{capability[1]}"
    return ""


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Whether a device runs kernels compiled for a list such as "8.0;9.0a;10.0+PTX".

    A binary serves its capability and later minors of the same major; one with an "a" its own alone; PTX everything
    later.
    """
    for major, minor, specific, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", architectures):
        compiled = int(major), int(minor)
        if specific:
            fits = capability == compiled
        elif ptx:
            fits = capability >= compiled
        else:
            fits = capability[0] == compiled[0] and capability >= compiled
        if fits:
            return True
    return False
