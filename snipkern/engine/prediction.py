"""What a model of costs says of one layer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """Predicted microseconds of one training step, and the factor within which their ratio is to be trusted.

    Attributes:
        dense, masked, sparse: Of the dense module, the guarded one, and the fastest of the sparse ones.
        spread: The factor.
        engine: The fastest sparse engine.
    """

    dense: float
    masked: float
    sparse: float
    spread: float
    engine: str = "csr"
