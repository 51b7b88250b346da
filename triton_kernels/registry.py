"""Which modules serve ops on CUDA devices; importing this one imports none of them."""

from __future__ import annotations

#: Each has ``OPS``: op -> launcher. :mod:`snipkern.backends` registers those that no compiled extension serves.
MODULES = ("saliency", "spmm_bsr", "conv2d_bsr", "zero_pruned")
