"""Sparse modules and stateless sparse layers."""

from snipkern.nn import functional
from snipkern.nn.recurrent import SparseGRU, SparseLSTM, SparseRecurrent, SparseRNN
from snipkern.nn.sparse import SparseConv2d, SparseLinear, SparseModule, SparseWeight

__all__ = [
    "SparseConv2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLinear",
    "SparseModule",
    "SparseRNN",
    "SparseRecurrent",
    "SparseWeight",
    "functional",
]
