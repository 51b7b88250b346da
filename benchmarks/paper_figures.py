"""What the SNIP paper reports: test errors in percent, to stand beside ours."""

from __future__ import annotations

__all__ = ["FIG_3", "TABLE_1", "TABLE_2", "TABLE_3"]

#: Network, method -> share kept -> error. Rows of other methods are those that the paper quotes from their authors:
#: magnitude is its LWC (Han et al. 2015), which prunes and trains in turns.
TABLE_1: dict[tuple[str, str], dict[float, float]] = {
    ("lenet-300-100", "dense"): {1.0: 1.7},
    ("lenet-300-100", "snip"): {0.05: 1.6, 0.02: 2.4},
    ("lenet-300-100", "magnitude-after"): {0.083: 1.6},
    ("lenet-300-100", "obd-after"): {0.08: 2.0},
    ("lenet-5", "dense"): {1.0: 0.9},
    ("lenet-5", "snip"): {0.02: 0.8, 0.01: 1.1},
    ("lenet-5", "magnitude-after"): {0.083: 0.8},
    ("lenet-5", "obd-after"): {0.08: 2.7},
}
#: Network -> share kept, error before and after.
TABLE_2: dict[str, tuple[float, float, float]] = {
    "alexnet-s": (0.1, 14.12, 14.99),
    "alexnet-b": (0.1, 13.92, 14.50),
    "vgg-c": (0.05, 6.82, 7.27),
    "vgg-d": (0.05, 6.76, 7.09),
    "vgg-like": (0.03, 8.26, 8.00),
    "wrn-16-8": (0.05, 6.21, 6.63),
    "wrn-16-10": (0.05, 5.91, 6.43),
    "wrn-22-8": (0.05, 6.14, 5.85),
    "lstm-s": (0.05, 1.88, 1.57),
    "lstm-b": (0.05, 1.15, 1.35),
    "gru-s": (0.05, 1.87, 2.41),
    "gru-b": (0.05, 1.71, 1.52),
}
#: At 90 %: network -> way to draw the first weights -> error.
TABLE_3: dict[str, dict[str, float]] = {
    "lenet-300-100": {"rn": 1.90, "tn": 1.96, "vs-x": 1.91, "vs-h": 1.88},
    "lenet-5": {"rn": 0.89, "tn": 0.87, "vs-x": 0.88, "vs-h": 0.85},
    "lstm-s": {"rn": 2.93, "tn": 3.03, "vs-x": 1.48, "vs-h": 1.47},
    "gru-s": {"rn": 47.6, "tn": 46.5, "vs-x": 1.80, "vs-h": 1.80},
}
#: LeNet-300-100 at 90 %: images that are scored -> error.
FIG_3: dict[int, float] = {1: 1.94, 10: 1.72, 100: 1.64, 1000: 1.56, 10_000: 1.40}
