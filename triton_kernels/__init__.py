"""Triton kernels for CUDA devices. Not yet run on a GPU.

Importing this package imports nothing: :mod:`snipkern.backends` imports the modules where they can serve.
"""
