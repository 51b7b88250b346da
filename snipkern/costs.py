"""Constants of the cost model. Written by ``python benchmarks/calibrate.py --write``: run that, don't edit.

Each row: microseconds a call, nanoseconds a weight, nanoseconds for each row's element in or out, nanoseconds for each
row's product, and the factor within which the measurements behind the row lie of what it predicts.
"""

# Whether the processor measured on has matrix tiles (AMX), which decide how fast dense 16-bit layers are.
AMX = True

COSTS: dict[str, tuple[float, float, float, float, float]] = {
    "dense float32 linear": (111.0, 2.37, 0.0, 0.0763, 1.24),
    "dense float32 conv": (637.0, 16.4, 7.14, 0.0411, 1.34),
    "csr avx512 float32 linear": (83.7, 5.99, 3.16, 0.193, 1.55),
    "csr avx512 float32 conv": (178.0, 42.8, 4.5, 0.144, 1.33),
    "csr avx2 float32 linear": (177.0, 11.0, 5.81, 0.137, 1.44),
    "csr avx2 float32 conv": (239.0, 31.0, 5.53, 0.288, 1.17),
    "csr scalar float32 linear": (121.0, 9.5, 6.46, 0.45, 1.21),
    "csr scalar float32 conv": (328.0, 41.9, 7.05, 0.507, 1.25),
    "csr avx2 bfloat16 conv": (113.0, 29.7, 4.96, 0.26, 1.32),
    "csr avx2 bfloat16 linear": (150.0, 6.35, 3.13, 0.218, 1.4),
    "csr avx2 float16 conv": (147.0, 55.6, 4.25, 0.182, 1.26),
    "csr avx2 float16 linear": (92.0, 31.2, 4.05, 0.159, 1.58),
    "csr avx512 bfloat16 conv": (155.0, 56.0, 5.08, 0.111, 1.28),
    "csr avx512 bfloat16 linear": (231.0, 9.71, 4.08, 0.0854, 1.22),
    "csr avx512 float16 conv": (241.0, 41.6, 3.93, 0.178, 1.18),
    "csr avx512 float16 linear": (316.0, 29.7, 3.67, 0.144, 1.29),
    "csr scalar bfloat16 conv": (179.0, 48.5, 5.71, 0.366, 1.25),
    "csr scalar bfloat16 linear": (105.0, 8.73, 4.35, 0.374, 1.42),
    "csr scalar float16 conv": (314.0, 79.3, 5.58, 0.351, 1.25),
    "csr scalar float16 linear": (95.3, 48.2, 5.83, 0.271, 1.13),
    "dense bfloat16 conv": (812.0, 19.2, 4.2, 0.00489, 1.62),
    "dense bfloat16 linear": (563.0, 2.38, 5.28, 0.0, 1.21),
    "dense float16 conv": (0.0, 2730.0, 0.0, 4.97, 2.21),
    "dense float16 linear": (829.0, 1.69, 2.9, 0.0638, 1.12),
    "guard avx2 bfloat16": (22.9, 1.01, 0.0, 0.0, 1.31),
    "guard avx2 float16": (17.8, 0.994, 0.0, 0.0, 1.29),
    "guard avx2 float32": (23.3, 1.67, 0.0, 0.0, 1.33),
    "guard avx512 bfloat16": (22.3, 0.765, 0.0, 0.0, 1.41),
    "guard avx512 float16": (24.9, 0.892, 0.0, 0.0, 1.37),
    "guard avx512 float32": (19.1, 1.39, 0.0, 0.0, 1.62),
    "guard scalar bfloat16": (22.5, 1.33, 0.0, 0.0, 1.18),
    "guard scalar float16": (22.7, 1.21, 0.0, 0.0, 1.17),
    "guard scalar float32": (28.3, 1.81, 0.0, 0.0, 1.31),
}
