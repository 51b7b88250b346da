"""Hardens Triton's interpreter, which lets programs read and write anywhere and runs them in order.

Import it after TRITON_INTERPRET=1 is set. Every launch then

- runs its programs in a random order, by ``Launch.seed``;
- fails where an address lies outside the tensor that its pointer belongs to, even if another tensor lies there;
- fails where a hint (tl.multiple_of) is not true;
- fails after its programs on races: two plain stores to one address, a plain store and an atomic, a load of what
  another program has written, or of what the same program has written before.

bfloat16 is computed as on a GPU; see strict_bf16.py.

A pointer carries the number of its tensor in its upper bits. Pointers that a kernel loads from a table of numbers get
theirs from :func:`address_of`; the tensors must be alive when the kernel runs.
"""

import functools
import random
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import strict_bf16 as strict_bf16
import torch
import triton.language as tl
from torch.multiprocessing.reductions import StorageWeakRef
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

SHIFT = 47  # bits of a user's address on x86-64 and aarch64
ADDRESS = np.uint64((1 << SHIFT) - 1)
ARGUMENTS = 256  # numbers kept for the arguments of a launch
NUMBERS = 1 << (63 - SHIFT)  # numbers in all: table entries are signed
EVERYWHERE = TensorHandle(np.array([True]), tl.int1)


@dataclass
class Accesses:
    """Addresses that programs touched: for each call an array, the program's number and the call's."""

    addresses: list = field(default_factory=list)
    programs: list = field(default_factory=list)
    calls: list = field(default_factory=list)

    def add(self, address):
        if address.size:
            self.addresses.append(address)
            self.programs.append(np.full(address.size, Launch.program))
            self.calls.append(np.full(address.size, Launch.call))

    def joined(self):
        empty = [np.empty(0, np.int64)]
        address = np.concatenate([np.empty(0, np.uint64), *self.addresses])
        return address, np.concatenate(empty + self.programs), np.concatenate(empty + self.calls)


class Launch:
    """The launch that runs now, and how the next ones shall run."""

    seed = 0
    only = None  # programs of a one-dimensional grid to run instead of all
    order = ()  # what runs at each place of the grid
    program = call = 0
    count = 0  # launches so far
    starts = np.zeros(NUMBERS, np.uint64)
    ends = np.zeros(NUMBERS, np.uint64)
    storages: ClassVar = {}  # of tensors that are known by their addresses in tables
    listed = ARGUMENTS
    loads = stores = atomics = None
    patched: ClassVar = set()  # of Triton's modules, those whose functions are the interpreter's for this launch


def numbered(number, tensor):
    """The tensor's address under a number."""
    start = tensor.data_ptr()
    Launch.starts[number], Launch.ends[number] = start, start + tensor.numel() * tensor.element_size()
    return start | number << SHIFT


def address_of(tensor):
    """What a table says instead of ``tensor.data_ptr()``."""
    Launch.listed = ARGUMENTS + (Launch.listed + 1 - ARGUMENTS) % (NUMBERS - ARGUMENTS)
    Launch.storages[Launch.listed] = StorageWeakRef(tensor.untyped_storage())
    return numbered(Launch.listed, tensor)


def checked(pointers, mask):
    """The live addresses and the real pointers to all; every byte must belong to the pointer's own tensor."""
    size = np.uint64(np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize)
    tagged = np.asarray(pointers.data, dtype=np.uint64)
    live = tagged[np.broadcast_to(mask.data, tagged.shape).astype(bool)]
    number = (live >> np.uint64(SHIFT)).astype(np.int64)
    address = live & ADDRESS
    outside = (number >= NUMBERS) | (address % size != 0)
    number = np.where(outside, 0, number)
    outside |= (address < Launch.starts[number]) | (address + size > Launch.ends[number])
    assert not outside.any(), f"{int(outside.sum())} addresses are outside their tensor, or not aligned"
    for one in np.unique(number[number >= ARGUMENTS]).tolist():
        assert not Launch.storages[one].expired(), "a table names a tensor whose memory is given back"
    Launch.call += 1
    return address, TensorHandle(tagged & ADDRESS, pointers.dtype)


def masked_load(self, pointers, mask, *rest):
    address, real = checked(pointers, mask)
    Launch.loads.add(address)
    return stock_load(self, real, mask, *rest)


def masked_store(self, pointers, value, mask, *rest):
    address, real = checked(pointers, mask)
    Launch.stores.add(address)
    return stock_store(self, real, value, mask, *rest)


def atomic_rmw(self, operation, pointers, value, mask, *rest):
    address, real = checked(pointers, mask)
    Launch.atomics.add(address)
    return stock_atomic(self, operation, real, value, mask, *rest)


def atomic_cas(self, pointers, *rest):
    address, real = checked(pointers, EVERYWHERE)
    Launch.atomics.add(address)
    return stock_cas(self, real, *rest)


def check_races():
    """Whether the launch's result could depend on the order of programs or threads."""
    stored, writers, writes = Launch.stores.joined()
    order = np.argsort(stored, kind="stable")
    stored, writers, writes = stored[order], writers[order], writes[order]
    assert not (stored[1:] == stored[:-1]).any(), "two stores to one address"
    changed, _, _ = Launch.atomics.joined()
    assert not np.isin(changed, stored).any(), "a store and an atomic to one address"
    loaded, readers, reads = Launch.loads.joined()
    assert not np.isin(loaded, changed).any(), "a load of what an atomic changes"
    if stored.size and loaded.size:
        place = np.minimum(np.searchsorted(stored, loaded), stored.size - 1)
        same = stored[place] == loaded
        assert not (same & (writers[place] != readers)).any(), "a load of what another program stores"
        assert not (same & (writes[place] < reads)).any(), "a load of what the program itself has stored"


def set_grid_idx(self, x, y, z):
    _, height, depth = self.grid_dim
    place = (x * height + y) * depth + z
    if place == 0:
        programs = list(range(self.grid_dim[0] * height * depth)) if Launch.only is None else list(Launch.only)
        random.Random(f"{Launch.seed} {Launch.count}").shuffle(programs)
        Launch.order = programs
    Launch.program = Launch.order[place]
    self.grid_idx = (Launch.program // (height * depth), Launch.program // depth % height, Launch.program % depth)


def converted(argument):
    """A tensor argument's pointer carries its number."""
    result = stock_converted(argument)
    if hasattr(argument, "data_ptr"):
        assert argument.is_contiguous()
        Launch.arguments += 1
        assert Launch.arguments < ARGUMENTS
        result.handle.data[:] = numbered(Launch.arguments, argument)
    return result


def call(self, *args, **kwargs):
    assert not any(isinstance(value, torch.Tensor) for value in kwargs.values()), "tensors are passed by place"
    Launch.count += 1
    Launch.arguments = 0
    Launch.program = Launch.call = 0
    Launch.loads, Launch.stores, Launch.atomics = Accesses(), Accesses(), Accesses()
    Launch.patched.clear()
    if Launch.only is not None:
        self.grid = (len(Launch.only),)
    stock_call(self, *args, **kwargs)
    check_races()


def multiple_of(stock, value, multiples):
    """The hint, if it is true: of the first element of a block, and of a scalar."""
    result = stock(value, multiples)
    if hasattr(value, "handle"):
        first = np.asarray(value.handle.data).reshape(-1)[0]
        multiple = np.ravel(getattr(multiples, "value", multiples))[-1]
        assert int(first) % int(getattr(multiple, "value", multiple)) == 0, "tl.multiple_of tells what is not true"
    return result


def numpy_dtype(dtype):
    """From a dictionary that stock Triton makes anew at each call."""
    name = dtype.scalar.name
    if name not in numpy_dtypes:
        numpy_dtypes[name] = stock_numpy_dtype(dtype)
    return numpy_dtypes[name]


def patch_language(function):
    """Once a launch for each of Triton's modules: stock Triton does it for every call of every helper, to no effect."""
    modules = {module for module in function.__globals__.values() if module is tl or module is tl.core}
    if modules <= Launch.patched:
        return None
    Launch.patched |= modules
    scope = stock_patch(function)
    scope.set_attr(tl, "multiple_of", functools.partial(multiple_of, tl.multiple_of))
    return scope


stock_load, stock_store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
stock_atomic, stock_call = InterpreterBuilder.create_atomic_rmw, GridExecutor.__call__
stock_cas = InterpreterBuilder.create_atomic_cas
stock_converted, stock_patch = interpreter._implicit_cvt, interpreter._patch_lang
stock_numpy_dtype, numpy_dtypes = interpreter._get_np_dtype, {}
InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = masked_load, masked_store
InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.set_grid_idx = atomic_rmw, set_grid_idx
InterpreterBuilder.create_atomic_cas = atomic_cas
GridExecutor.__call__ = call
interpreter._implicit_cvt, interpreter._patch_lang = converted, patch_language
interpreter._get_np_dtype = numpy_dtype
