"""Hardens Triton's interpreter, which lets programs read and write anywhere and runs them in order.

Import it after TRITON_INTERPRET=1 is set. Every launch then runs its programs in a random order, fails where one
touches memory outside the tensors that it was given, and fails where two plain stores go to one address.
"""

import random

import numpy as np
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


class Launch:
    """The launch that runs now, and how the next ones shall run."""

    seed = 0
    only = None  # programs to run instead of all
    programs = ()
    extents = ()
    stored = ()


def check_inside(pointers, mask):
    """Returns the addresses that are live; all bytes of each must belong to an argument."""
    size = np.uint64(np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize)
    address = np.asarray(pointers.data, dtype=np.uint64)
    address = address[np.broadcast_to(mask.data, address.shape).astype(bool)]
    inside = np.zeros(address.shape, bool)
    for first, end in Launch.extents:
        inside |= (address >= first) & (address + size <= end)
    assert inside.all(), f"{int((~inside).sum())} addresses are outside every argument"
    return address


def masked_load(self, pointers, mask, *rest):
    check_inside(pointers, mask)
    return stock_load(self, pointers, mask, *rest)


def masked_store(self, pointers, value, mask, *rest):
    Launch.stored.append(check_inside(pointers, mask))
    return stock_store(self, pointers, value, mask, *rest)


def atomic_rmw(self, operation, pointers, value, mask, *rest):
    check_inside(pointers, mask)
    return stock_atomic(self, operation, pointers, value, mask, *rest)


def set_grid_idx(self, x, y, z):
    self.grid_idx = (Launch.programs[x], y, z)


def call(self, *args, **kwargs):
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors)
    Launch.extents = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]
    Launch.stored = []
    programs = list(range(self.grid[0])) if Launch.only is None else list(Launch.only)
    random.Random(Launch.seed).shuffle(programs)
    Launch.programs, self.grid = programs, (len(programs),)
    stock_call(self, *args, **kwargs)
    stored = np.concatenate([np.empty(0, np.uint64), *Launch.stored])
    assert np.unique(stored).size == stored.size, "two stores to one address"


stock_load, stock_store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
stock_atomic, stock_call = InterpreterBuilder.create_atomic_rmw, GridExecutor.__call__
InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = masked_load, masked_store
InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.set_grid_idx = atomic_rmw, set_grid_idx
GridExecutor.__call__ = call
