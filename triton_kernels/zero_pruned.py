"""The ops that hold pruned entries at zero on CUDA devices, in Triton. Not yet run on a GPU.

The contract is :mod:`snipkern.ops.schema_zero_pruned`. Elements are moved as bits, whatever they mean: what is pruned
becomes +0 even where it was NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from snipkern.ops import schema_zero_pruned

W: tl.constexpr = tl.constexpr(schema_zero_pruned.WORD_BITS)
TILE_BYTES = 16 * 1024  # of a program: with 8 warps four 16-byte loads for each thread
WARPS = 8


@triton.jit
def zero_pruned_kernel(source, words, target, numel, IN_PLACE: tl.constexpr, ROWS: tl.constexpr):
    """One tile of words of 64 elements. In place it is written only if something pruned in it is not +0."""
    word = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, W)
    at = word[:, None] * W + lane[None, :]
    live = at < numel
    value = tl.load(source + at, mask=live, other=0)
    bits = tl.load(words + word, mask=word * W < numel, other=0)
    kept = ((bits[:, None] >> lane.to(tl.int64)[None, :]) & 1) != 0
    if IN_PLACE:
        dirty = tl.max(tl.max((live & (value != 0) & (kept == 0)).to(tl.int32), 1), 0)
        if dirty > 0:
            tl.store(target + at, tl.where(kept, value, 0), mask=live)
    else:
        tl.store(target + at, tl.where(kept, value, 0), mask=live)


def zero_pruned(tensor: Tensor, words: Tensor) -> Tensor:
    """One read and one write."""
    schema_zero_pruned.require_masked("zero_pruned", tensor, words)
    copy = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    launch(tensor, words, copy, in_place=False)
    return copy


def zero_pruned_(tensor: Tensor, words: Tensor) -> None:
    """One read; tiles of 16 KiB are written where something pruned in them is not +0."""
    schema_zero_pruned.require_masked("zero_pruned_", tensor, words)
    launch(tensor, words, tensor, in_place=True)


def launch(source: Tensor, words: Tensor, target: Tensor, in_place: bool) -> None:
    numel, size = source.numel(), source.element_size()
    if not numel:
        return
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    rows = TILE_BYTES // (schema_zero_pruned.WORD_BITS * size)
    programs = triton.cdiv(words.shape[0], rows)
    with torch.cuda.device_of(source):
        zero_pruned_kernel[(programs,)](
            source.view(bits), words, target.view(bits), numel, IN_PLACE=in_place, ROWS=rows, num_warps=WARPS
        )


#: The ops that serve on CUDA devices.
OPS: dict[str, Callable[..., object]] = {launcher.__name__: launcher for launcher in (zero_pruned, zero_pruned_)}
