"""Triton kernels and their launchers, installed as ``snipkern.triton_kernels``; importing this needs no Triton.

Not yet run on a GPU. A module with a dictionary ``OPS`` has launchers, the functions that serve these ops on CUDA
tensors; :mod:`snipkern.backends` finds them where there is a CUDA device. A module of kernels alone is called
``*_kernels``.
"""
