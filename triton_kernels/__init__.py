"""Triton kernels and their launchers, installed as ``snipkern.triton_kernels``; importing this needs no Triton.

Not yet run on a GPU. A module of launchers has a dictionary ``OPS``: the function that serves each op on CUDA tensors.
"""

#: The modules of launchers, which :mod:`snipkern.backends` loads where there is a CUDA device.
LAUNCHERS = ("saliency",)
