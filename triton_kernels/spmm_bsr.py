"""The products with whole blocks on CUDA devices, in Triton. Not yet run on a GPU: interpreted, compiled ahead of time.

The contract is :mod:`snipkern.ops.schema_bsr`, with two exceptions: a tensor that is not contiguous is copied first,
and since the index is on the device, that it holds as many kept weights as it should is trusted. Here are the
launchers; spmm_bsr_kernels.py has the kernels and tuning.py the tiles.

Where the grid has an order of its own, inputs are brought into it and outputs out of it by one pass over each, which
reads and writes them once: a product reads x as often as a column has kept blocks, so that whole vectors pay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from snipkern.backends.precision import tf32_allowed
from snipkern.ops import schema_bsr
from snipkern.triton_kernels.bsr_index import BlockIndex
from snipkern.triton_kernels.spmm_bsr_kernels import (
    add_shares_kernel,
    permute_kernel,
    product_kernel,
    transposed_product_kernel,
    value_grad_kernel,
)
from snipkern.triton_kernels.tuning import PLACE_TILES, SAMPLE_TILES, Tuned, side_tile

PRODUCT = Tuned(product_kernel, "BATCH", "ROWS", SAMPLE_TILES)
TRANSPOSED_PRODUCT = Tuned(transposed_product_kernel, "BATCH", "COLS", SAMPLE_TILES)
VALUE_GRAD = Tuned(value_grad_kernel, "PLACES", "ROWS", PLACE_TILES)

LANES = 1024  # elements of a program that moves data
PROGRAMS = 512  # of a value gradient at least, as far as there are samples: a few for each multiprocessor
LEAST_SHARE = 512  # samples that are worth a program and a partial result


def precision(dtype: torch.dtype) -> str:
    """How operands are multiplied: float32 as it is, unless PyTorch's own products may use tf32."""
    return "tf32" if dtype == torch.float32 and tf32_allowed() else "ieee"


def spmm_bsr(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Tensor,
    rows: int,
    cols: int,
    block_height: int,
    block_width: int,
    transpose: bool,
) -> Tensor:
    """Reads each kept weight once for each tile of samples, and x once for each kept block of a column (or row)."""
    schema_bsr.spmm_bsr(x, values, bias, topology, rows, cols, block_height, block_width, transpose)
    with torch.cuda.device_of(x):
        index = BlockIndex(topology, rows, cols, block_height, block_width)
        return product(x.contiguous(), values.contiguous(), bias, index, transpose)


def sddmm_bsr(
    a: Tensor, b: Tensor, topology: Tensor, nnz: int, rows: int, cols: int, block_height: int, block_width: int
) -> Tensor:
    """Reads a and b once for each kept block of a row or column."""
    schema_bsr.sddmm_bsr(a, b, topology, nnz, rows, cols, block_height, block_width)
    with torch.cuda.device_of(a):
        index = BlockIndex(topology, rows, cols, block_height, block_width)
        return value_grad(into_grid(a, index.row_place), into_grid(b, index.col_place), nnz, index)


def spmm_bsr_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    topology: Tensor,
    rows: int,
    cols: int,
    block_height: int,
    block_width: int,
    with_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both products, and with a bias a sum over grad."""
    schema_bsr.spmm_bsr_backward(grad, x, values, topology, rows, cols, block_height, block_width, with_bias)
    with torch.cuda.device_of(x):
        index = BlockIndex(topology, rows, cols, block_height, block_width)
        on_grid = into_grid(grad, index.row_place)
        grad_x = out_of_grid(grid_product(on_grid, values.contiguous(), None, index, True), index.col_place)
        grad_values = value_grad(on_grid, into_grid(x, index.col_place), values.shape[0], index)
        return grad_x, grad_values, grad.sum(0) if with_bias else grad.new_empty(0)


# Parts


def product(x: Tensor, values: Tensor, bias: Tensor | None, index: BlockIndex, transpose: bool) -> Tensor:
    """The product of a weight whose rows and columns may have an order of their own."""
    inputs, outputs = index.col_place, index.row_place
    if transpose:
        inputs, outputs = outputs, inputs
    bias = None if bias is None else into_grid(bias[None], outputs)[0]
    return out_of_grid(grid_product(into_grid(x, inputs), values, bias, index, transpose), outputs)


def grid_product(x: Tensor, values: Tensor, bias: Tensor | None, index: BlockIndex, transpose: bool) -> Tensor:
    """The product on the grid. All tensors are contiguous."""
    batch = x.shape[0]
    y = x.new_empty(batch, index.cols if transpose else index.rows)
    if not y.numel():
        return y
    constants: dict[str, Any] = {
        "HEIGHT": index.height,
        "WIDTH": index.width,
        "VECTOR": index.vector(x.element_size()),
        "BIAS": bias is not None,
        "PRECISION": precision(x.dtype),
    }
    if transpose:
        tuned, side, blocks = TRANSPOSED_PRODUCT, index.width, index.block_cols
        constants["ROW_VECTOR"] = index.row_vector(x.element_size())
    else:
        tuned, side, blocks = PRODUCT, index.height, index.block_rows
    tile = constants[tuned.side] = side_tile(side, x.dtype, constants["PRECISION"])
    tiles = blocks * triton.cdiv(side, tile)
    tuned.launch(
        lambda meta: (triton.cdiv(batch, meta["BATCH"]) * tiles,),
        (x, values, x if bias is None else bias, *index.arguments, y, batch),
        constants,
        batch,
    )
    return y


def value_grad(a: Tensor, b: Tensor, nnz: int, index: BlockIndex) -> Tensor:
    """The value gradient on the grid. All tensors are contiguous."""
    batch = a.shape[0]
    out = a.new_empty(nnz)
    if not nnz:
        return out
    constants: dict[str, Any] = {
        "HEIGHT": index.height,
        "WIDTH": index.width,
        "VECTOR": index.vector(a.element_size()),
        "PRECISION": precision(a.dtype),
    }
    tile = constants["ROWS"] = side_tile(index.height, a.dtype, constants["PRECISION"])
    parts = triton.cdiv(index.height, tile)
    places = nnz // min(index.height, index.rows)
    shares, share = in_shares(places * parts, batch)
    target = out if shares == 1 else out.new_empty(shares, nnz, dtype=sums_dtype(a.dtype))
    VALUE_GRAD.launch(
        lambda meta: (index.slots(meta["PLACES"]) * parts * shares,),
        (a, b, *index.arguments, target, batch, nnz, share, shares),
        constants,
        places,
    )
    return added_up(target, out)


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_shares(places: int, samples: int) -> tuple[int, int]:
    """How many shares the samples are added up in, and the size of each, for so many places of all runs.

    It follows from the sizes alone, hence the order of every sum.
    """
    programs = triton.cdiv(places, max(size for size, *_ in PLACE_TILES))
    shares = max(1, min(PROGRAMS // programs, samples // LEAST_SHARE))
    share = max(1, triton.cdiv(samples, LEAST_SHARE * shares)) * LEAST_SHARE
    return max(1, triton.cdiv(samples, share)), share


def added_up(parts: Tensor, out: Tensor) -> Tensor:
    """``out``, after the results of shares ``[shares, numel]`` are in it."""
    if parts is not out:
        size = out.numel()
        add_shares_kernel[(triton.cdiv(size, LANES),)](parts, out, size, parts.shape[0], SIZE=LANES)
    return out


def into_grid(source: Tensor, place: Tensor | None) -> Tensor:
    """Contiguous, with the columns where they lie in the grid."""
    return permuted(source, place, False)


def out_of_grid(source: Tensor, place: Tensor | None) -> Tensor:
    return permuted(source, place, True)


def permuted(source: Tensor, place: Tensor | None, gather: bool) -> Tensor:
    source = source.contiguous()
    if place is None or not source.numel():
        return source
    out = torch.empty_like(source)
    batch, size = source.shape
    pieces = triton.cdiv(size, LANES)
    # Elements are moved as they are, of any dtype.
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[source.element_size()]
    permute_kernel[(batch * pieces,)](
        source.view(bits), place, out.view(bits), size, pieces, GATHER=gather, SIZE=LANES
    )  # fmt: skip
    return out


#: The ops that serve on CUDA devices.
OPS: dict[str, Callable[..., object]] = {
    launcher.__name__: launcher for launcher in (spmm_bsr, sddmm_bsr, spmm_bsr_backward)
}
