"""An index whose lists do not begin at 0 or end at the kept weights: compiled kernels on the CPU refuse to follow it."""

import re

import bsr_cases
import conv_cases
import csr_cases
import pytest
import torch
from recurrent_op_cases import op_args, random_recurrent

from snipkern.layout import index_sizes
from snipkern.testing import run_on, tiers
from snipkern.topology.csr import index_words

OPS = torch.ops.snipkern
COMPILED = [tier for tier in tiers() if tier != "reference"]
COUNTS = "topology must count its kept weights from 0 to {}, by rows and by columns (got {} to {} and {} to {})"


def changed(index, place, by):
    """The same index with one of its words changed."""
    wrong = index.clone()
    wrong[place] += by
    return wrong


def single_places(rows, cols, kept):
    """Where the lists of an index of single weights begin and end: by rows, then by columns."""
    columns = rows + 1 + index_words(kept, cols)
    return [0, rows, columns, columns + cols]


def calls(generator):
    """Ops of single weights as ``name, function of an index, the index, rows, columns, kept``."""
    spmm = csr_cases.random_spmm(generator, shape=(6, 9), density=0.5)
    backward = csr_cases.random_backward(generator, shape=(6, 9), density=0.5)
    sddmm = csr_cases.random_sddmm(generator, shape=(6, 9), density=0.5)
    for op, case in (("spmm_csr", spmm), ("spmm_csr_backward", backward), ("sddmm_csr", sddmm)):
        args = case.args()
        place = 2 if op == "sddmm_csr" else 3
        yield op, args, place, case.mask
    conv = conv_cases.random_case(generator, density=0.5)
    for op, args in conv.args().items():
        yield op, args, 3 if op == "conv2d_csr" else 2, conv.mask
    layer = random_recurrent(generator, projection=3)
    args = op_args(layer)
    for place, name in ((5, "ih"), (7, "hh"), (9, "hr")):
        yield "recurrent_csr", [*args, True], place, layer.masks[name]
    output, h_n, c_n, saved = OPS.recurrent_csr(*args, True)
    back = [torch.ones_like(output), torch.ones_like(h_n), torch.ones_like(c_n), *args[:12], output, saved, *args[12:]]
    for place, name in ((5, "ih"), (7, "hh"), (9, "hr")):
        yield "recurrent_csr_backward", [*back, True], place + 3, layer.masks[name]


@pytest.mark.skipif(not COMPILED, reason="no compiled kernels")
def test_single_weights(generator):
    tier = COMPILED[-1]
    with run_on(tier):
        for op, args, place, mask in calls(generator):
            args, kept, rows = list(args), mask.count(), mask.shape[0]
            cols = mask.shape[1:].numel()
            getattr(OPS, op)(*args)  # as it is, it serves
            index = args[place]
            for word, at in enumerate(single_places(rows, cols, kept)):
                for by in (1, -1, 1 << 20):
                    args[place] = changed(index, at, by)
                    counts = [0, kept, 0, kept]
                    counts[word] += by
                    text = f"{op}: {COUNTS.format(kept, *counts)}"
                    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}"):
                        getattr(OPS, op)(*args)


def block_calls(generator):
    case = bsr_cases.random_case(generator, (2, 3), shape=(7, 10), density=0.5)
    yield "spmm_bsr", case.spmm_args(), 3, case.mask
    yield "sddmm_bsr", case.sddmm_args(), 2, case.mask
    yield "spmm_bsr_backward", case.backward_args(), 3, case.mask
    conv = conv_cases.random_case(generator, density=0.5, block=(2, 3))
    for op, args in conv.args().items():
        yield op, args, 3 if op == "conv2d_bsr" else 2, conv.mask


@pytest.mark.skipif(not COMPILED, reason="no compiled kernels")
def test_blocks(generator):
    tier = COMPILED[-1]
    with run_on(tier):
        for op, args, place, mask in block_calls(generator):
            args, rows, cols = list(args), mask.shape[0], mask.shape[1:].numel()
            getattr(OPS, op)(*args)
            index = args[place]
            blocks, _ = index_sizes(index.numel(), rows, cols, (2, 3))
            down, across = -(-rows // 2), -(-cols // 3)
            columns = 2 * (down + 1) + blocks
            for at, got in (
                (0, "(got 0 to {0} and 0 to {0}, kept weights from {1})"),
                (down + 1, "(got {1} to {0} and 0 to {0}, kept weights from 0)"),
                (columns, "(got 0 to {0} and {1} to {0}, kept weights from 0)"),
                (columns + across, "(got 0 to {0} and 0 to {2}, kept weights from 0)"),
            ):
                for by in (1, -1, 1 << 20):
                    args[place] = changed(index, at, by)
                    text = (
                        f"{op}: topology must count its blocks from 0 to {blocks}, by rows and by columns, and kept"
                        f" weights from 0 {got.format(blocks, by, blocks + by)}"
                    )
                    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}"):
                        getattr(OPS, op)(*args)
            for at in (down, 2 * down + 1):  # the numbers of kept weights and of blocks
                args[place] = changed(index, at, 1)
                with pytest.raises(RuntimeError, match=f"^{op}: topology must be"):
                    getattr(OPS, op)(*args)


@pytest.mark.skipif(not COMPILED, reason="no compiled kernels")
def test_negative_sizes():
    with (
        run_on(COMPILED[-1]),
        pytest.raises(RuntimeError, match="sddmm_csr: topology must be the int32 index of a 2 x 2"),
    ):
        OPS.sddmm_csr(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(5, dtype=torch.int32), -1, 2, 2)
