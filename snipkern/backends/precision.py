"""Whether float32 products may round their factors to TF32, as torch's settings say."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch


def tf32_allowed(kind: str = "linear") -> bool:
    """Whether torch may round float32 factors to TF32 in products of layers of a kind: ``linear`` or ``conv``."""
    settings: Any = torch.backends
    if kind == "linear":
        precision = settings.cuda.matmul.fp32_precision
        return (settings.fp32_precision if precision == "none" else precision) == "tf32"
    try:
        return bool(settings.cudnn.allow_tf32)
    except RuntimeError:  # the newer setting is in use, and differs between convolutions and recurrent layers
        return settings.cudnn.conv.fp32_precision == "tf32"


def follow_torch(extension: ModuleType | None) -> None:
    """Gives the kernels of ``snipkern._C_cuda`` the permission that torch's own matrix products have.

    Convolutions go by the same one: a backward pass cannot tell them apart. A compiled program keeps what was permitted
    when a layer last ran eagerly.
    """
    if extension is not None and not torch.compiler.is_compiling():
        extension.allow_tf32(tf32_allowed())
