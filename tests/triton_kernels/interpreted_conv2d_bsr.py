"""The launchers of the block convolutions on CPU tensors, in Triton's interpreter, against dense float64 convolutions.

test_triton_bsr.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import pytest
import strict as strict
import strict_products as strict_products
import torch
from bsr_checks import CPU, Convolution, Layer

from snipkern.ops import reference
from snipkern.triton_kernels import conv2d_bsr, spmm_bsr

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
CONVOLUTIONS = {
    # block, weight, size, stride, padding, dilation, dtype
    "padded": ((16, 16), (20, 4, 3, 3), (4, 7), (1, 1), (1, 1), (1, 1), F32),
    "pointwise": ((32, 32), (33, 40, 1, 1), (4, 6), (1, 1), (0, 0), (1, 1), F16),
    "strided": ((16, 16), (9, 6, 2, 3), (8, 7), (2, 1), (1, 2), (1, 2), BF16),
    "odd blocks": ((5, 3), (7, 2, 2, 3), (5, 4), (2, 2), (1, 0), (1, 1), F64),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(case):
    block, weight, size, stride, padding, dilation, dtype = case
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    Convolution.random(block, weight, size, **window, dtype=dtype).check(conv2d_bsr)


def test_convolutions_in_pieces(monkeypatch):
    """Columns of some channels or images at a time, and images in several launches."""
    case = Convolution.random((16, 16), (16, 5, 3, 3), (3, 5))
    for room, pixels in ((3 * 9 * 15 * 4, 2**30), (5 * 9 * 15 * 4 * 2, 30)):
        monkeypatch.setattr(conv2d_bsr, "COLUMNS_BYTES", room)
        monkeypatch.setattr(conv2d_bsr, "MOST_PIXELS", pixels)
        case.check(conv2d_bsr)


def test_convolutions_of_nothing_and_in_shares(monkeypatch):
    monkeypatch.setattr(spmm_bsr, "LEAST_SHARE", 32)
    Convolution.random((16, 16), (16, 2, 3, 3), (4, 5), batch=0).check(conv2d_bsr)
    Convolution.random((16, 16), (16, 2, 3, 3), (4, 5), density=0.0).check(conv2d_bsr)
    Convolution.random((16, 16), (5, 2, 1, 1), (6, 8), padding=(0, 0), batch=2).check(conv2d_bsr)


def test_convolutions_refuse_orders():
    layer = Layer.random((16, 16), (20, 20), 3, ordered=True)
    x = torch.zeros(1, 20, 3, 3)
    args = (x, layer.values, None, layer.topology.on(CPU), [20, 20, 1, 1], 16, 16, [1, 1], [0, 0], [1, 1])
    text = r"^conv2d_bsr: rows and columns of the topology must be in the weight's order \(got another order\)$"
    for function in (reference.conv2d_bsr, conv2d_bsr.conv2d_bsr):
        with pytest.raises(ValueError, match=text):
            function(*args)
