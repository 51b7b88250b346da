"""Sparse modules and stateless sparse layers."""

from snipkern.nn import functional
from snipkern.nn.sparse import SparseConv2d, SparseLinear, SparseModule, SparseWeight

__all__ = ["SparseConv2d", "SparseLinear", "SparseModule", "SparseWeight", "functional"]
