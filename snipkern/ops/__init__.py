"""The ops, ``torch.ops.snipkern.*``: schema.py is their contract, reference.py their specification.

Importing this package defines them with the reference as their kernel on every device; :mod:`snipkern.backends` then
loads the compiled kernels over it.
"""

import torch

from snipkern.ops import autograd, batching, reference, schema

for _name, (_schema, _fake) in schema.OPS.items():
    _qualified = f"{schema.NAMESPACE}::{_name}"
    torch.library.define(_qualified, _schema)
    torch.library.impl(_qualified, "CompositeExplicitAutograd", getattr(reference, _name))
    torch.library.register_fake(_qualified, _fake)
autograd.register()
batching.register()

__all__ = ["reference", "schema"]
