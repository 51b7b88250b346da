"""bfloat16 in Triton's interpreter, which computes on its raw bits (3.8, 3.9) and rounds towards zero.

Importing this file mends it, as on a GPU: an operation's operands are exact in float32, and its result is rounded to
nearest, ties to even. strict.py imports it. Products of matrices (tl.dot) are not mended here.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

COMPARISONS = {np.greater, np.less, np.equal, np.not_equal, np.greater_equal, np.less_equal}


def widened(bits):
    """float32 of bfloat16 bits."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(values):
    """bfloat16 bits of float32 values."""
    values = np.asarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), nearest)


def is_bf16(handle):
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def wide(handle):
    return TensorHandle(widened(handle.data), tl.float32) if is_bf16(handle) else handle


def narrow(handle):
    return TensorHandle(rounded(handle.data), tl.bfloat16)


def binary_op(self, left, right, operation):
    bf16 = is_bf16(left) and is_bf16(right)
    result = (
        stock_binary(self, wide(left), wide(right), operation) if bf16 else stock_binary(self, left, right, operation)
    )
    if operation in COMPARISONS:
        # The stock handle still names the operands' type, in which a scalar would be spread over a block.
        return TensorHandle(result.data, tl.int1)
    return narrow(result) if bf16 else result


def unary_op(self, value, operation):
    return narrow(stock_unary(self, wide(value), operation)) if is_bf16(value) else stock_unary(self, value, operation)


def ternary_op(self, first, second, third, operation):
    if operation is np.where or not is_bf16(third):
        return stock_ternary(self, first, second, third, operation)
    return narrow(stock_ternary(self, wide(first), wide(second), wide(third), operation))


def create_fma(self, x, y, z):
    # float32's rounding first, as the GPU's instruction has it, differs in the rarest of cases only.
    return narrow(stock_fma(self, wide(x), wide(y), wide(z))) if is_bf16(z) else stock_fma(self, x, y, z)


def create_rsqrt(self, value):
    return narrow(stock_rsqrt(self, wide(value))) if is_bf16(value) else stock_rsqrt(self, value)


def cast_impl(self, value, to):
    into = to.scalar
    if into == tl.bfloat16 and not is_bf16(value):
        return TensorHandle(rounded(value.data.astype(np.float32)), tl.bfloat16)
    if is_bf16(value) and into != tl.bfloat16:
        return wide(value) if into == tl.float32 else stock_cast(self, wide(value), to)
    return stock_cast(self, value, to)


def create_fp_to_fp(self, value, to, rounding):
    if tl.bfloat16 in (value.dtype.scalar, to.scalar):
        return self.cast_impl(value, to)
    return stock_fp_to_fp(self, value, to, rounding)


def one_by_one(stock, generic):
    """The interpreter's short cuts for sums and maxima work on bits; its general way calls the functions above."""

    def apply_impl(self, input):
        return generic(self, input) if any(is_bf16(part.handle) for part in input) else stock(self, input)

    return apply_impl


stock_binary, stock_unary, stock_ternary = (
    InterpreterBuilder.binary_op,
    InterpreterBuilder.unary_op,
    InterpreterBuilder.ternary_op,
)
stock_cast, stock_fp_to_fp = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp
stock_fma, stock_rsqrt = InterpreterBuilder.create_fma, InterpreterBuilder.create_rsqrt
for function in (binary_op, unary_op, ternary_op, cast_impl, create_fp_to_fp, create_fma, create_rsqrt):
    setattr(InterpreterBuilder, function.__name__, function)
ReduceOps.apply_impl = one_by_one(ReduceOps.apply_impl, ReduceOps.generic_reduce)
ScanOps.apply_impl = one_by_one(ScanOps.apply_impl, ScanOps.generic_scan)
assert interpreter._get_np_dtype(tl.bfloat16) == np.uint16
