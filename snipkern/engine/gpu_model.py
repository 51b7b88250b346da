"""What a layer's training step is predicted to take on a CUDA device, by the roofline of its kernels (roofline.py)."""

from __future__ import annotations

from snipkern import backends
from snipkern.backends.precision import tf32_allowed
from snipkern.engine.devices import Gpu, gpu_of
from snipkern.engine.gpu_kernels import seconds
from snipkern.engine.prediction import Prediction
from snipkern.engine.workload import Workload

__all__ = ["SPREAD", "predict", "seconds_here", "served"]

# Nothing has been fitted to measurements: a ratio within this factor of break-even decides nothing.
SPREAD = 2.0
# The forward op of each sparse engine, by the kind of layer.
OPS = {
    ("bsr", "linear"): "spmm_bsr",
    ("bsr", "conv"): "conv2d_bsr",
    ("cover", "linear"): "spmm_bsr",
    ("cover", "conv"): "conv2d_bsr",
    ("csr", "linear"): "spmm_csr",
    ("csr", "conv"): "conv2d_csr",
}


def served(layer: Workload) -> tuple[str, ...]:
    """The sparse engines that have kernels for this layer on its device, of those that suit it: cover if it has one."""
    suited = ("bsr", "csr") if layer.block else ("cover", "csr") if layer.cover else ("csr",)
    needed = {"bsr": ("bsr", "csr") if layer.singles else ("bsr",)}
    return tuple(
        engine
        for engine in suited
        if all(
            backends.active(layer.device, OPS[part, layer.kind]) != "reference"
            for part in needed.get(engine, (engine,))
        )
    )


def seconds_here(engine: str, layer: Workload) -> float:
    """Predicted seconds of one step on the layer's own device, under torch's present permission for TF32."""
    return seconds(engine, layer, gpu_of(layer.device), _may_round(engine, layer))


def _may_round(engine: str, layer: Workload) -> bool:
    """Whether an engine may round float32 to TF32; cuDNN has a permission of its own, which our kernels don't take."""
    return tf32_allowed(layer.kind if engine in ("dense", "masked") else "linear")


def predict(layer: Workload, engines: tuple[str, ...], gpu: Gpu | None = None, tf32: bool | None = None) -> Prediction:
    """The fastest of some engines against dense.

    Args:
        layer: Its work; with a cover, if ``cover`` is one of the engines.
        engines: One or more of ``bsr``, ``cover`` and ``csr``.
        gpu: The device to predict for; None: the layer's own.
        tf32: Whether float32 may be rounded to TF32; None: as torch is set.
    """
    gpu = gpu or gpu_of(layer.device)

    def step(name: str) -> float:
        return seconds(name, layer, gpu, _may_round(name, layer) if tf32 is None else tf32)

    sparse, engine = min((step(name), name) for name in engines)
    dense, masked = step("dense"), step("masked")
    return Prediction(1e6 * dense, 1e6 * masked, 1e6 * sparse, SPREAD, engine)
