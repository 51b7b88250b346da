"""One small call of every op, on the CPU."""

import torch

from snipkern import Mask
from snipkern.ops.schema_saliency import INFINITY_KEY
from snipkern.topology import BlockTopology, Topology

ROWS, COLS, BATCH, BLOCK = 12, 18, 5, (4, 6)
WEIGHT = [4, 2, 3, 3]  # of a convolution; 4 x 18 as a matrix
WINDOW = [1, 1], [1, 0], [1, 1]  # stride, padding, dilation
SIZE, OUT = [6, 7], [6, 5]
CPU = torch.device("cpu")

#: Operands that stay on the CPU wherever the others are: {op: their place}.
STAYING = {"saliency_sample_many": 2, "recurrent_csr": 1, "recurrent_csr_backward": 4}


def block_mask(rows, cols):
    grid = torch.zeros(rows // BLOCK[0], cols // BLOCK[1], dtype=torch.bool)
    grid.view(-1)[::2] = True
    return Mask.from_dense(grid.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1))


def calls(dtype):
    """Arguments of each op, with floating tensors of this dtype: {op: arguments}."""

    def new(*sizes):
        return torch.randn(sizes).to(dtype)

    mask, conv_mask = block_mask(ROWS, COLS), block_mask(4, 18)
    nnz, conv_nnz = mask.count(), conv_mask.count()
    csr, conv_csr = (Topology(kept).on(CPU) for kept in (mask, conv_mask))
    bsr, conv_bsr = (BlockTopology(kept, BLOCK).on(CPU) for kept in (mask, conv_mask))
    x, grad, values = new(BATCH, COLS), new(BATCH, ROWS), new(nnz)
    image, out, taps = new(BATCH, 2, *SIZE), new(BATCH, 4, *OUT), new(conv_nnz)
    size = ROWS, COLS
    weight, gradient, words = new(ROWS, COLS), new(ROWS, COLS), torch.arange(4)
    pairs = [weight, new(7), new(2, 3, 4)], [gradient, new(7), new(2, 3, 4)]
    scales = torch.rand(ROWS), torch.rand(COLS)
    weighing = 0, *scales
    square = Mask.from_dense(torch.rand(ROWS, ROWS // 4) < 0.5)  # of an LSTM's state
    states, sequences = (new(3, ROWS // 4), new(3, ROWS // 4)), torch.tensor([3, 2])
    recurrent = new(square.count()), Topology(square).on(CPU), None, None, new(ROWS), new(ROWS)
    layer = x, sequences, *states, values, csr, *recurrent
    saved = new(2 * 5 * (ROWS // 4) * 16).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return {
        "spmm_csr": (x, values, new(ROWS), csr, *size, False),
        "sddmm_csr": (grad, x, csr, nnz, *size),
        "spmm_csr_backward": (grad, x, values, csr, *size, True),
        "conv2d_csr": (image, taps, new(4), conv_csr, WEIGHT, *WINDOW),
        "conv2d_csr_input_grad": (out, taps, conv_csr, WEIGHT, SIZE, *WINDOW),
        "conv2d_csr_weight_grad": (out, image, conv_csr, conv_nnz, WEIGHT, *WINDOW),
        "recurrent_csr": (*layer, 0, False, True),
        "recurrent_csr_backward": (new(5, ROWS // 4), *states, *layer, new(5, ROWS // 4), saved, 0, False, True),
        "spmm_bsr": (x, values, new(ROWS), bsr, *size, *BLOCK, False),
        "sddmm_bsr": (grad, x, bsr, nnz, *size, *BLOCK),
        "spmm_bsr_backward": (grad, x, values, bsr, *size, *BLOCK, True),
        "conv2d_bsr": (image, taps, new(4), conv_bsr, WEIGHT, *BLOCK, *WINDOW),
        "conv2d_bsr_input_grad": (out, taps, conv_bsr, WEIGHT, *BLOCK, SIZE, *WINDOW),
        "conv2d_bsr_weight_grad": (out, image, conv_bsr, conv_nnz, WEIGHT, *BLOCK, *WINDOW),
        "saliency_sample": (weight, gradient, torch.tensor([0, 7]), 8, *weighing),
        "saliency_partition": (weight, gradient, 0, INFINITY_KEY, 1000, *weighing),
        "saliency_histogram": (weight, gradient, 0, INFINITY_KEY, 20, *weighing),
        "saliency_mask": (weight, gradient, 10**9, 0, *weighing),
        "saliency_resolve_": (words, torch.arange(3, dtype=torch.int32), torch.arange(3), 1, 1),
        "saliency_sample_many": (*pairs, torch.tensor([0, 200]), 8, 0),
        "saliency_partition_many": (*pairs, 0, INFINITY_KEY, 1000, 0),
        "saliency_histogram_many": (*pairs, 0, INFINITY_KEY, 20, 0),
        "saliency_mask_many": (*pairs, 10**9, 0, 0),
        "saliency_block_sums": (weight, gradient, *BLOCK, torch.randperm(ROWS), torch.randperm(COLS), *weighing),
        "saliency_sweep": (weight, gradient, scales[1], 0),
        "zero_pruned": (weight, words),
        "zero_pruned_": (weight, words),
    }
