"""Tiles of the products with whole blocks: the candidates, and how one of them is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

#: Candidates: size of a tile's free side, bytes of a row of a step, warps, stages. The likely best for much work first.
Tiles = Sequence[tuple[int, int, int, int]]
SAMPLE_TILES: Tiles = (
    (128, 128, 4, 3),
    (128, 128, 8, 3),
    (64, 128, 4, 3),
    (32, 128, 4, 4),
    (16, 128, 4, 4),
)
PLACE_TILES: Tiles = (
    (128, 128, 4, 3),
    (128, 64, 8, 4),
    (64, 128, 4, 3),
    (32, 128, 4, 3),
)
#: Where elements are gathered one by one, they pass through registers: shorter steps.
PIXEL_TILES: Tiles = (
    (128, 64, 4, 3),
    (128, 64, 8, 3),
    (64, 64, 4, 3),
    (16, 64, 4, 3),
)
WINDOW_PLACE_TILES: Tiles = (
    (128, 64, 8, 3),
    (64, 64, 8, 3),
    (32, 64, 4, 3),
)
KEY = ("HEIGHT", "WIDTH", "PRECISION")  # constants that a choice is for
LEAST_SIDE = 16  # of a tile; smaller blocks are padded
LARGEST_BUCKET = 4096
MOST_SUMS, LEAST_SUMS = 128, 2  # of a thread, in registers
#: Bytes of shared memory that a program may have on an A100, the least of the GPUs that we compile for.
SHARED_MEMORY = 166_912


def is_exact(dtype: torch.dtype, precision: str) -> bool:
    """Whether operands are multiplied one by one; float64's tensor cores are as narrow."""
    return dtype == torch.float64 or (dtype == torch.float32 and precision == "ieee")


def most_sums(dtype: torch.dtype, precision: str) -> int:
    """Sums that a thread may hold, beside its part of the operands, which are wider the less they are rounded."""
    if is_exact(dtype, precision):
        return MOST_SUMS // 8
    return MOST_SUMS // 2 if dtype == torch.float32 else MOST_SUMS


def side_tile(side: int, dtype: torch.dtype, precision: str) -> int:
    """How much of a block's side a program takes: all of it unless that is too much for registers."""
    most = 64 if is_exact(dtype, precision) else 128
    return min(max(triton.next_power_of_2(side), LEAST_SIDE), most)


def bucket(size: int) -> int:
    """Sizes that share a choice: up to a power of two."""
    return min(max(triton.next_power_of_2(max(size, 1)), LEAST_SIDE), LARGEST_BUCKET)


class Tuned:
    """A kernel and the candidates for its tile.

    Which candidate is best is found by timing them when dtypes, a block and a bucket of sizes first come, which waits
    for the device; the choice is kept. While a CUDA graph is captured nothing is timed, and where results have to be
    the same in every process (``torch.use_deterministic_algorithms``) nothing ever is: the first candidate that fits
    serves.

    Args:
        kernel: Takes ``bucket`` and, as constants, ``HEIGHT``, ``WIDTH``, ``PRECISION``, ``DEPTH`` and both sides.
        free: Name of the side that candidates choose.
        side: Name of the other one, that of the block.
        tiles: The candidates.
        most: Sums that a thread may hold.
    """

    def __init__(self, kernel: Any, free: str, side: str, tiles: Tiles, most: int = MOST_SUMS) -> None:
        self.kernel, self.free, self.side = kernel, free, side
        self.tiles, self.most = tiles, most
        self.tuners: dict[int, Any] = {}
        self.timed: set[str] = set()

    def configs(self, itemsize: int) -> list[triton.Config]:
        return [
            triton.Config({self.free: size, "DEPTH": depth // itemsize}, num_warps=warps, num_stages=stages)
            for size, depth, warps, stages in self.tiles
        ]

    def fitting(
        self, dtype: torch.dtype, constants: Mapping[str, Any], size: int, shared_memory: int
    ) -> list[triton.Config]:
        """The candidates for operands of this dtype whose free side is at most ``size`` long; never none."""
        side, most = constants[self.side], min(self.most, most_sums(dtype, constants["PRECISION"]))

        def fits(config: triton.Config) -> bool:
            free, depth = config.kwargs[self.free], config.kwargs["DEPTH"]
            sums = free * side // (32 * config.num_warps)
            shared = config.num_stages * depth * (free + side) * dtype.itemsize
            return free <= size and LEAST_SUMS <= sums <= most and shared <= shared_memory

        configs = self.configs(dtype.itemsize)
        return [config for config in configs if fits(config)] or configs[-1:]

    def launch(
        self, grid: Callable[[Mapping[str, Any]], tuple[int]], arguments: Sequence[Any], constants: Mapping[str, Any],
        size: int,
    ) -> None:  # fmt: skip
        """Runs the kernel, whose first argument is an operand.

        Args:
            grid: From the constants to the number of programs.
            size: Of the free side; goes to the kernel as its last argument, as a bucket.
        """
        operand = arguments[0]
        arguments = (*arguments, bucket(size))
        call = [constants[name] for name in KEY], bucket(size), [a.dtype for a in arguments if isinstance(a, Tensor)]
        if choice_allowed(str(call) in self.timed):
            self.timed.add(str(call))
            self.tuner(operand.dtype)[grid](*arguments, **constants)
            return
        config = self.fitting(operand.dtype, constants, bucket(size), device_shared_memory(operand.device))[0]
        everything = {**constants, **config.all_kwargs()}
        self.kernel[grid(everything)](*arguments, **everything)

    def tuner(self, dtype: torch.dtype) -> Any:
        if dtype.itemsize not in self.tuners:

            def prune(_: object, arguments: Mapping[str, Any], **constants: Any) -> list[triton.Config]:
                operand = next(iter(arguments.values()))
                limit = device_shared_memory(operand.device)
                return self.fitting(operand.dtype, constants, arguments["bucket"], limit)

            self.tuners[dtype.itemsize] = triton.autotune(
                self.configs(dtype.itemsize),
                key=[*KEY, "bucket"],
                prune_configs_by={"early_config_prune": prune},
            )(self.kernel)
        return self.tuners[dtype.itemsize]


def is_interpreting() -> bool:
    return triton.knobs.runtime.interpret


def choice_allowed(timed: bool) -> bool:
    """Whether the best candidate may serve, given that it is known already or not."""
    if is_interpreting() or torch.are_deterministic_algorithms_enabled():
        return False
    return timed or not torch.cuda.is_current_stream_capturing()


def device_shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    if device.type != "cuda":
        return SHARED_MEMORY
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
