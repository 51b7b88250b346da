"""snipkern: prune a network before training, then compute only what is left."""

from snipkern import backends, ops
from snipkern.masks import Mask

__all__ = ["Mask", "backends", "ops"]
