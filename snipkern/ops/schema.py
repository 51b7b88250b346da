"""The contract of every op: schema, requirements and output shape, side by side.

A check runs wherever an op runs: in its fake (compiled and exported programs), in the reference kernel and, as the same
requirements in C++, in ``csrc/bindings``. Messages read ``op: requirement (got ...)``.

All sparse ops take a *topology*: the packed int32 index of :class:`snipkern.topology.Topology`. Its size is checked,
and by compiled kernels on the CPU that its lists begin at 0 and end at the number of kept weights; a GPU would have to
be waited for. The rest is trusted: an index made elsewhere whose lists fall in between, or that names rows and columns
outside its matrix, reads and writes foreign memory. schema_bsr.py has the ops for whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from snipkern.ops.checks import (
    require,
    require_bias,
    require_float,
    require_geometry,
    require_like,
    require_topology,
)

NAMESPACE = "snipkern"

#: name -> (schema, fake). The reference kernel of an op is the function of the same name in reference.py.
OPS: dict[str, tuple[str, Callable[..., Tensor | tuple[Tensor, ...]]]] = {}


def op(schema: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Declares the decorated function as the fake of an op with this schema."""

    def register(fake: Callable[..., object]) -> Callable[..., object]:
        OPS[fake.__name__] = (schema, fake)  # pyright: ignore[reportArgumentType]
        return fake

    return register


# Matrix products


@op("(Tensor x, Tensor values, Tensor? bias, Tensor topology, int rows, int cols, bool transpose) -> Tensor")
def spmm_csr(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Tensor,
    rows: int,
    cols: int,
    transpose: bool,
) -> Tensor:
    """``x W^T + bias``, or ``x W + bias`` with ``transpose``, for a sparse ``W [rows, cols]``.

    Args:
        x: ``[batch, cols]``, or ``[batch, rows]`` with ``transpose``.
        values: ``[kept]``, row-major.
        bias: ``[rows]``, or ``[cols]`` with ``transpose``.

    Returns:
        ``[batch, rows]``, or ``[batch, cols]`` with ``transpose``, of x's dtype; sums of 16-bit types are in float32.

    Cost: ``2 * batch * kept`` operations.
    """
    inputs, outputs = (rows, cols) if transpose else (cols, rows)
    require_float("spmm_csr", "x", x)
    require(
        x.dim() == 2 and x.shape[1] == inputs,
        "spmm_csr",
        f"x must be [batch, {inputs}]",
        list(x.shape),
    )
    require(values.dim() == 1, "spmm_csr", "values must be [kept]", list(values.shape))
    require_like("spmm_csr", "values", values, x, "x")
    require_bias("spmm_csr", bias, outputs, x)
    require_topology("spmm_csr", topology, values.shape[0], rows, cols)
    return x.new_empty(x.shape[0], outputs)


@op("(Tensor a, Tensor b, Tensor topology, int nnz, int rows, int cols) -> Tensor")
def sddmm_csr(a: Tensor, b: Tensor, topology: Tensor, nnz: int, rows: int, cols: int) -> Tensor:
    """The kept entries of ``a^T b``: the gradient of ``spmm_csr``'s values.

    Args:
        a: ``[batch, rows]``.
        b: ``[batch, cols]``, of a's dtype.

    Returns:
        ``[nnz]``, of a's dtype; sums of 16-bit types are in float32.

    Cost: ``2 * batch * nnz`` operations.
    """
    require_float("sddmm_csr", "a", a)
    require(
        a.dim() == 2 and a.shape[1] == rows,
        "sddmm_csr",
        f"a must be [batch, {rows}]",
        list(a.shape),
    )
    require(
        b.dim() == 2 and b.shape[1] == cols and b.shape[0] == a.shape[0],
        "sddmm_csr",
        f"b must be [{a.shape[0]}, {cols}]",
        list(b.shape),
    )
    require_like("sddmm_csr", "b", b, a, "a")
    require_topology("sddmm_csr", topology, nnz, rows, cols)
    return a.new_empty(nnz)


@op(
    "(Tensor grad, Tensor x, Tensor values, Tensor topology, int rows, int cols, bool with_bias)"
    " -> (Tensor, Tensor, Tensor)"
)
def spmm_csr_backward(
    grad: Tensor, x: Tensor, values: Tensor, topology: Tensor, rows: int, cols: int, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All gradients of ``spmm_csr`` without ``transpose`` at once, which saves packing grad and x more often.

    Args:
        grad: ``[batch, rows]``: of the output.
        x: ``[batch, cols]``, of grad's dtype.
        values: ``[kept]``, row-major.
        with_bias: Whether the bias's gradient is wanted too.

    Returns:
        The gradients of x ``[batch, cols]``, of the values ``[kept]`` and of the bias ``[rows]`` (``[0]`` without).

    Cost: ``4 * batch * kept`` operations.
    """
    name = "spmm_csr_backward"
    require_float(name, "x", x)
    require(x.dim() == 2 and x.shape[1] == cols, name, f"x must be [batch, {cols}]", list(x.shape))
    require(
        grad.dim() == 2 and grad.shape[1] == rows and grad.shape[0] == x.shape[0],
        name,
        f"grad must be [{x.shape[0]}, {rows}]",
        list(grad.shape),
    )
    require_like(name, "grad", grad, x, "x")
    require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
    require_like(name, "values", values, x, "x")
    require_topology(name, topology, values.shape[0], rows, cols)
    return x.new_empty(x.shape), x.new_empty(values.shape[0]), x.new_empty(rows if with_bias else 0)


# Convolutions


@op(
    "(Tensor x, Tensor values, Tensor? bias, Tensor topology, int[] weight_shape, int[] stride,"
    " int[] padding, int[] dilation) -> Tensor"
)
def conv2d_csr(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    topology: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """2-D convolution (zero padding, one group) with a sparse weight ``[O, C, kh, kw]``.

    Args:
        x: ``[batch, C, height, width]``.
        values: ``[kept]``, in the weight's row-major order.
        bias: ``[O]``.
        topology: Of the weight seen as ``[O, C * kh * kw]``.

    Returns:
        ``[batch, O, out_height, out_width]``, contiguous, of x's dtype; sums of 16-bit types are in float32.

    Cost: ``2 * batch * out_height * out_width * kept`` operations.
    """
    name = "conv2d_csr"
    require_float(name, "x", x)
    require(x.dim() == 4, name, "x must be [batch, channels, height, width]", list(x.shape))
    out = require_geometry(name, weight_shape, x.shape[2:], stride, padding, dilation)
    rows, cols = weight_shape[0], weight_shape[1] * weight_shape[2] * weight_shape[3]
    require(x.shape[1] == weight_shape[1], name, f"x must have {weight_shape[1]} channels", x.shape[1])
    require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
    require_like(name, "values", values, x, "x")
    require_bias(name, bias, rows, x)
    require_topology(name, topology, values.shape[0], rows, cols)
    return x.new_empty(x.shape[0], rows, *out)


@op(
    "(Tensor grad, Tensor values, Tensor topology, int[] weight_shape, int[] size, int[] stride,"
    " int[] padding, int[] dilation) -> Tensor"
)
def conv2d_csr_input_grad(
    grad: Tensor,
    values: Tensor,
    topology: Tensor,
    weight_shape: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The gradient of ``conv2d_csr``'s input of height and width ``size``: a transposed convolution.

    Args:
        grad: ``[batch, O, out_height, out_width]``.

    Returns:
        ``[batch, C, *size]``, contiguous, of grad's dtype.
    """
    name = "conv2d_csr_input_grad"
    require_float(name, "grad", grad)
    require(len(size) == 2, name, "size must have 2 entries", list(size))
    out = require_geometry(name, weight_shape, size, stride, padding, dilation)
    rows, cols = weight_shape[0], weight_shape[1] * weight_shape[2] * weight_shape[3]
    require(
        grad.dim() == 4 and list(grad.shape[1:]) == [rows, *out],
        name,
        f"grad must be [batch, {rows}, {out[0]}, {out[1]}]",
        list(grad.shape),
    )
    require(values.dim() == 1, name, "values must be [kept]", list(values.shape))
    require_like(name, "values", values, grad, "grad")
    require_topology(name, topology, values.shape[0], rows, cols)
    return grad.new_empty(grad.shape[0], weight_shape[1], *size)


@op(
    "(Tensor grad, Tensor x, Tensor topology, int nnz, int[] weight_shape, int[] stride,"
    " int[] padding, int[] dilation) -> Tensor"
)
def conv2d_csr_weight_grad(
    grad: Tensor,
    x: Tensor,
    topology: Tensor,
    nnz: int,
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The gradient of ``conv2d_csr``'s values.

    Args:
        grad: ``[batch, O, out_height, out_width]``.
        x: ``[batch, C, height, width]``, of grad's dtype.

    Returns:
        ``[nnz]``, of grad's dtype; sums of 16-bit types are in float32.
    """
    name = "conv2d_csr_weight_grad"
    require_float(name, "grad", grad)
    require(x.dim() == 4, name, "x must be [batch, channels, height, width]", list(x.shape))
    out = require_geometry(name, weight_shape, x.shape[2:], stride, padding, dilation)
    rows, cols = weight_shape[0], weight_shape[1] * weight_shape[2] * weight_shape[3]
    require(x.shape[1] == weight_shape[1], name, f"x must have {weight_shape[1]} channels", x.shape[1])
    require(
        list(grad.shape) == [x.shape[0], rows, *out],
        name,
        f"grad must be [{x.shape[0]}, {rows}, {out[0]}, {out[1]}]",
        list(grad.shape),
    )
    require_like(name, "x", x, grad, "grad")
    require_topology(name, topology, nnz, rows, cols)
    return grad.new_empty(nnz)
