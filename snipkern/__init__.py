"""snipkern: prune a network before training, then compute only what is left.

>>> import snipkern as sk
>>> pruned = sk.prune_(model, loader, keep=0.05)   # score, select, convert; in place
>>> print(pruned)                                  # per layer: shape, kept, density, engine and why
"""

from snipkern import backends, criteria, distributed, nn, ops, penalties, structured
from snipkern.checkpoint import dense_state_dict, load_
from snipkern.collapse import CollapseWarning
from snipkern.comparing import Comparison, compare
from snipkern.layout import Layout
from snipkern.masks import Mask
from snipkern.nn.convert import masks, to_dense_
from snipkern.penalties import nonzero_masks
from snipkern.prune import Plan, Pruned, plan, prune_, sparsify_
from snipkern.schedule import Gradual, Snapshot, Stage, prune_retrain
from snipkern.scoring.score import score
from snipkern.selection.files import safetensor_pairs
from snipkern.selection.select import select

__version__ = "0.1.0"

__all__ = [
    "CollapseWarning",
    "Comparison",
    "Gradual",
    "Layout",
    "Mask",
    "Plan",
    "Pruned",
    "Snapshot",
    "Stage",
    "backends",
    "compare",
    "criteria",
    "dense_state_dict",
    "distributed",
    "load_",
    "masks",
    "nn",
    "nonzero_masks",
    "ops",
    "penalties",
    "plan",
    "prune_",
    "prune_retrain",
    "safetensor_pairs",
    "score",
    "select",
    "sparsify_",
    "structured",
    "to_dense_",
]
