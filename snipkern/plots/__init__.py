"""Pictures of masks, weights, scores and results, as matplotlib figures that share no global state.

Every function returns a ``matplotlib.figure.Figure`` built without pyplot: nothing to close, safe in threads and
without a display, saved with ``figure.savefig(path)``. matplotlib (``snipkern[plots]``) is imported on the first call.
"""

from snipkern.plots.bars import layer_densities, rank_correlations
from snipkern.plots.connections import mask_grid, retained_connections
from snipkern.plots.curves import accuracy_curves, training_curves
from snipkern.plots.histograms import saliency_histogram, weight_histogram

__all__ = [
    "accuracy_curves",
    "layer_densities",
    "mask_grid",
    "rank_correlations",
    "retained_connections",
    "saliency_histogram",
    "training_curves",
    "weight_histogram",
]
