"""GPUs as data: what each can do at most, for predictions. Nothing of this was measured by this project.

Peaks are the vendor's, dense (without 2:4 sparsity). Shares of them that programs reach come from others' measurements
where a comment says so, and are assumptions otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["GPUS", "Gpu", "described", "gpu_of"]

GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    Attributes:
        name: As in ``torch.cuda.get_device_name``, or a part of it.
        multiprocessors: Streaming multiprocessors (SMs).
        fp64, fp32: Peak FLOP/s of the ordinary cores.
        tf32, half: Peak FLOP/s of the tensor cores; half is for float16 and bfloat16 with sums in float32.
        hbm: Peak bytes/s of the device memory.
        l2: Bytes/s at which all multiprocessors together read what lies in L2.
        l1: Peak bytes/s of their L1 and shared memory: 128 a clock each.
        dense_share: Share of the tensor cores' peak that cuBLAS reaches on large products: by what others report.
        mma_share: Share of that peak at which ``mma.sync``, the instruction of our kernels, can be issued at all.
    """

    name: str
    multiprocessors: int
    fp64: float
    fp32: float
    tf32: float
    half: float
    hbm: float
    l2: float
    l1: float
    dense_share: float
    mma_share: float


# "NVIDIA A100 Tensor Core GPU" data sheet (SXM, 80 GB). L2: 5120 bytes a clock by the architecture's white paper, 7.2
# TB/s; two thirds of it are assumed to be reached. mma.sync is this generation's own instruction.
A100 = Gpu("A100-SXM4-80GB", 108, 9.7e12, 19.5e12, 156e12, 312e12, 2039e9, 4.8e12, 19.5e12, 0.82, 1.0)
# "NVIDIA H100 Tensor Core GPU" data sheet (SXM5), whose tensor figures are with sparsity, halved here. L2: 5.5 to 6
# TB/s in published microbenchmarks. mma.sync reaches 62 % of what wgmma does: Luo et al., "Dissecting the NVIDIA Hopper
# Architecture through Microbenchmarking and Multiple Level Analysis", 2025.
H100 = Gpu("H100 80GB HBM3", 132, 33.5e12, 66.9e12, 494.7e12, 989.4e12, 3352e9, 5.7e12, 33.4e12, 0.70, 0.62)
# "NVIDIA HGX B200" data sheet, an eighth of it, sparse figures halved. L2 is scaled from H100 by multiprocessors and
# clock, and a share of 0.25 is mma.sync at A100's rate for each clock and multiprocessor: both are assumptions.
B200 = Gpu("B200", 148, 37e12, 75e12, 1100e12, 2250e12, 7700e9, 7e12, 37.5e12, 0.70, 0.25)
GPUS = (A100, H100, B200)

# FLOP for each clock and multiprocessor by compute capability: of the float32 cores, of the tensor cores in 16 bits
# (NVIDIA's white papers on each architecture), and whether there is TF32; then the shares, which are those of the GPUs
# above or guesses.
PER_CLOCK: dict[tuple[int, int], tuple[int, int, bool, float, float]] = {
    (7, 0): (128, 1024, False, 0.8, 1.0),
    (7, 5): (128, 512, False, 0.8, 1.0),
    (8, 0): (128, 2048, True, 0.82, 1.0),
    (8, 6): (256, 1024, True, 0.8, 1.0),
    (8, 9): (256, 1024, True, 0.8, 1.0),
    (9, 0): (256, 4096, True, 0.7, 0.62),
    (10, 0): (256, 8192, True, 0.7, 0.25),
    (12, 0): (256, 1024, True, 0.8, 1.0),
}
# Where a device doesn't tell: its clock, in kHz, and the bytes that a multiprocessor finds room for at HBM each second.
USUAL_CLOCK, USUAL_HBM_SHARE = 1_500_000, 20 * GIGA
# Share of L2's 64 bytes for each clock and multiprocessor that reads reach; between A100's and H100's above.
L2_SHARE, L2_BYTES, L1_BYTES = 0.45, 64, 128


def described(properties: Any) -> Gpu:
    """What is known, or must be guessed, of a device from ``torch.cuda.get_device_properties``."""
    name, count = str(properties.name), int(properties.multi_processor_count)
    for gpu in GPUS:
        if gpu.name in name and gpu.multiprocessors == count:
            return gpu
    capability = int(properties.major), int(properties.minor)
    known = [version for version in PER_CLOCK if version <= capability] or [min(PER_CLOCK)]
    single, tensor, has_tf32, dense_share, mma_share = PER_CLOCK[max(known)]
    clocks = count * 1e3 * float(getattr(properties, "clock_rate", 0) or USUAL_CLOCK)
    width = float(getattr(properties, "memory_bus_width", 0) or 0) / 8
    # Two transfers a clock.
    hbm = 2e3 * float(getattr(properties, "memory_clock_rate", 0) or 0) * width or count * USUAL_HBM_SHARE
    fast64 = capability in ((7, 0), (8, 0), (9, 0), (10, 0))
    return Gpu(
        name,
        count,
        fp64=clocks * single / (2 if fast64 else 64),
        fp32=clocks * single,
        tf32=clocks * (tensor / 2 if has_tf32 else single),
        half=clocks * tensor,
        hbm=hbm,
        l2=clocks * L2_BYTES * L2_SHARE,
        l1=clocks * L1_BYTES,
        dense_share=dense_share,
        mma_share=mma_share,
    )


def gpu_of(device: torch.device) -> Gpu:
    """The GPU that a CUDA device is; makes a CUDA context."""
    return described(torch.cuda.get_device_properties(device))
