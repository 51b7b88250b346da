"""Products of matrices in Triton's interpreter as on a GPU, and hints that must be true of all elements.

Importing this file after strict.py mends ``tl.dot``, which multiplies the raw bits of bfloat16 and knows no tf32: the
tensor cores ignore the lower 13 bits of float32 operands. ``tl.max_contiguous`` fails unless each group of so many
elements is consecutive and, as the kernels always say with it, begins at a multiple.
"""

import functools

import numpy as np
import triton.language as tl
from strict_bf16 import wide
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

TF32_MASK = np.uint32(0xFFFFE000)


def truncated(handle):
    """float32 with the 10 bits of fraction that tf32 has."""
    bits = np.ascontiguousarray(handle.data, dtype=np.float32).view(np.uint32)
    return TensorHandle((bits & TF32_MASK).view(np.float32), handle.dtype)


def create_dot(self, left, right, total, precision, *rest):
    left, right = wide(left), wide(right)
    if precision == tl.core.ir.INPUT_PRECISION.TF32 and left.data.dtype == np.float32:
        left, right = truncated(left), truncated(right)
    return stock_dot(self, left, right, total, precision, *rest)


def max_contiguous(stock, value, lengths):
    length = int(np.ravel(getattr(lengths, "value", lengths))[-1])
    groups = np.asarray(value.handle.data).reshape(-1, length)
    consecutive = groups == groups[:, :1] + np.arange(length)
    assert consecutive.all() and not (groups[:, 0] % length).any(), "tl.max_contiguous tells what is not true"
    return stock(value, lengths)


def patch_language(function):
    scope = stock_patch(function)
    scope.set_attr(tl, "max_contiguous", functools.partial(max_contiguous, tl.max_contiguous))
    return scope


stock_dot, stock_patch = InterpreterBuilder.create_dot, interpreter._patch_lang
InterpreterBuilder.create_dot, interpreter._patch_lang = create_dot, patch_language
