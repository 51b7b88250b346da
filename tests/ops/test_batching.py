"""Ops under ``torch.vmap``: the same numbers as a loop, whatever is mapped over, and never by torch's own loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from recurrent_op_cases import MODES, op_args, random_recurrent
from torch import Tensor

from snipkern.masks import Mask
from snipkern.ops import batching
from snipkern.ops.autograd import FORMULAS
from snipkern.ops.eager import differentiable
from snipkern.testing import random_mask, run_on, tiers
from snipkern.topology import BlockTopology, Topology

OPS = torch.ops.snipkern
CPU = torch.device("cpu")
# What layers call.
EAGER = ("spmm_csr", "spmm_bsr", "conv2d_csr", "conv2d_bsr", "recurrent_csr", "zero_pruned")
COUNT = 3


@pytest.fixture(autouse=True)
def no_fallback():
    """torch's own loop over what is mapped is an error."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def products(generator):
    """Arguments of the matrix products, by op; the first row is empty."""
    kept = random_mask((6, 8), 0.4, generator).to_dense()
    kept[0] = False
    mask = Mask.from_dense(kept)
    x, y, bias, values = (draw(generator, *shape) for shape in ((4, 8), (4, 6), (6,), (mask.count(),)))
    index = Topology(mask).on(CPU), 6, 8
    yield "spmm_csr", (x, values, bias, *index, False)
    yield "spmm_csr", (y, values, None, *index, True)
    yield "sddmm_csr", (y, x, index[0], mask.count(), 6, 8)
    for with_bias in (False, True):
        yield "spmm_csr_backward", (y, x, values, *index, with_bias)
    blocks = Mask.from_dense(torch.rand(3, 2, generator=generator).round().bool().kron(torch.ones(2, 4)).bool())
    values, size = draw(generator, blocks.count()), (6, 8, 2, 4)
    index = BlockTopology(blocks, (2, 4)).on(CPU)
    yield "spmm_bsr", (x, values, bias, index, *size, False)
    yield "spmm_bsr", (y, values, None, index, *size, True)
    yield "sddmm_bsr", (y, x, index, blocks.count(), *size)
    yield "spmm_bsr_backward", (y, x, values, index, *size, True)


def convolutions(generator):
    shape, window = [6, 2, 2, 2], ([1, 2], [1, 0], [1, 1])
    x, y, bias = (draw(generator, *size) for size in ((2, 2, 4, 5), (2, 6, 5, 2), (6,)))
    mask = random_mask(shape, 0.4, generator)
    blocks = torch.rand(3, 2, generator=generator).round().bool().kron(torch.ones(2, 4)).bool().view(shape)
    for kind, kept, topology, size in (
        ("csr", mask, Topology(mask), (shape,)),
        ("bsr", Mask.from_dense(blocks), BlockTopology(Mask.from_dense(blocks), (2, 4)), (shape, 2, 4)),
    ):
        values, index = draw(generator, kept.count()), topology.on(CPU)
        yield f"conv2d_{kind}", (x, values, bias, index, *size, *window)
        yield f"conv2d_{kind}_input_grad", (y, values, index, *size, [4, 5], *window)
        yield f"conv2d_{kind}_weight_grad", (y, x, index, kept.count(), *size, *window)


def recurrences(generator):
    for mode, reverse in itertools.product(MODES, (False, True)):
        options = {"projection": 4} if mode == "LSTM" and reverse else {}
        case = random_recurrent(
            generator, mode, inputs=3, hidden=5, bias=not reverse, reverse=reverse, dtype=torch.float64, **options
        )
        args = op_args(case)
        for save in (False, True):
            yield "recurrent_csr", (*args, save)
        output, h_n, c_n, saved = OPS.recurrent_csr(*args, True)
        grads = [torch.randn_like(tensor) for tensor in (output, h_n)] + [c_n if mode == "LSTM" else None]
        yield "recurrent_csr_backward", (*grads, *args[:12], output, saved, *args[12:], True)


def zeroes(generator):
    for shape in ((5, 13), (64, 2), (0, 3)):
        words = random_mask(shape, 0.5, generator).words
        yield "zero_pruned", (draw(generator, *shape), words)


def cases(generator):
    for made in (products, convolutions, recurrences, zeroes):
        yield from made(generator)


def floats(args):
    return [i for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.is_floating_point()]


def many(tensor, dim, count=COUNT):
    """Others of a tensor's shape, along a dimension."""
    return torch.stack([torch.randn_like(tensor) for _ in range(count)]).movedim(0, dim)


def of_tensors(op, args, places):
    """The op as a function of its arguments at these places, and what is looked at of its results."""

    def call(*tensors):
        given = list(args)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        found = op(*given)
        if isinstance(found, Tensor):
            return (found,)
        return found[:3] if op is OPS.recurrent_csr else found  # what is saved is the op's own business

    return call


def choices(name, args, generator):
    """Which arguments are mapped over, and where: each alone, all, and any."""
    places = floats(args)
    if name == "recurrent_csr_backward":  # output and saved come of the others
        places = places[:3] if args[2] is not None else places[:2]
    some = [place for place in places if torch.rand((), generator=generator) < 0.5]
    for chosen in {(place,) for place in places} | {tuple(places), tuple(some)} - {()}:
        yield {place: int(torch.randint(args[place].dim() + 1, (), generator=generator)) for place in chosen}


def close(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_every_differentiable_op_is_here(generator):
    assert {name for name, _ in cases(generator)} == set(FORMULAS)
    assert set(batching.SAMPLES) <= set(FORMULAS)


@pytest.mark.parametrize("tier", tiers())
def test_mapped_is_looped(tier, generator):
    with run_on(tier):
        for name, args in cases(generator):
            for dims in choices(name, args, generator):
                call = of_tensors(getattr(OPS, name), args, list(dims))
                tensors = [many(args[place], dim) for place, dim in dims.items()]
                got = torch.vmap(call, in_dims=tuple(dims.values()))(*tensors)
                each = [
                    call(*(t.select(dim, i) for t, dim in zip(tensors, dims.values(), strict=True)))
                    for i in range(COUNT)
                ]
                close(got, [torch.stack(parts) for parts in zip(*each, strict=True)])


def test_mapped_twice(generator):
    for name, args in cases(generator):
        first, *others = floats(args)[: 3 if name == "recurrent_csr_backward" else None]
        second = others[0] if others else first
        places = [first, second] if others else [first]
        call = of_tensors(getattr(OPS, name), args, places)
        outer, inner = many(args[first], 0), many(args[second], 0, 2)
        if others:
            got = torch.vmap(lambda a, call=call, inner=inner: torch.vmap(lambda b: call(a, b))(inner))(outer)  # noqa: B023
            each = [[call(a, b) for b in inner] for a in outer]
        else:
            both = many(outer, 1, 2)
            got = torch.vmap(torch.vmap(call))(both)
            each = [[call(b) for b in a] for a in both]
        for place, result in enumerate(got):
            close([result], [torch.stack([torch.stack([b[place] for b in a]) for a in each])])


def test_derivatives_of_what_is_mapped(generator):
    """Of any order, since they are those of the ops that the rule calls."""
    for name, args in cases(generator):
        if name == "recurrent_csr_backward" or (name == "recurrent_csr" and not args[-1]):
            continue
        for dims in choices(name, args, generator):
            call = of_tensors(getattr(OPS, name), args, list(dims))
            tensors = [many(args[place], dim).requires_grad_() for place, dim in dims.items()]
            got = torch.vmap(call, in_dims=tuple(dims.values()))(*tensors)
            each = [
                call(*(t.select(dim, i) for t, dim in zip(tensors, dims.values(), strict=True))) for i in range(COUNT)
            ]
            want = [torch.stack(parts) for parts in zip(*each, strict=True)]
            weights = [torch.randn_like(result) for result in want]
            first, second = [], []
            for results in (got, want):
                loss = sum((w * r.square()).sum() for w, r in zip(weights, results, strict=True))
                found = torch.autograd.grad(loss, tensors, create_graph=True)
                first.append(found)
                slope = sum(part.square().sum() for part in found)
                second.append(torch.autograd.grad(slope, tensors) if slope.requires_grad else ())
            close(*first)
            close(*second)


@pytest.mark.parametrize("eager", [False, True])
def test_batched_gradients(generator, eager):
    for name, args in cases(generator):
        if (name == "recurrent_csr" and not args[-1]) or (eager and name not in EAGER):
            continue
        places = floats(args)
        leaves = [args[place].detach().clone().requires_grad_() for place in places]
        given = list(args)
        for place, leaf in zip(places, leaves, strict=True):
            given[place] = leaf
        found = (differentiable(name) if eager else getattr(OPS, name))(*given)
        results = [found] if isinstance(found, Tensor) else [r for r in found if r.requires_grad and r.numel()]
        if not results[0].numel():
            continue
        batched = [many(result, 0) for result in results]
        got = torch.autograd.grad(results, leaves, batched, is_grads_batched=True, retain_graph=True, allow_unused=True)
        each = [
            torch.autograd.grad(results, leaves, [b[i] for b in batched], retain_graph=True, allow_unused=True)
            for i in range(COUNT)
        ]
        for place, result in enumerate(got):
            if result is None:
                assert each[0][place] is None
            else:
                close([result], [torch.stack([row[place] for row in each])])
