"""Tiles of the block products: how candidates are chosen, and how programs find theirs; compare interpreted_bsr.py.

test_triton_bsr.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set from the start.
"""

import itertools

import strict_products as strict_products
import torch
import triton
import triton.language as tl
from bsr_checks import CPU, Layer
from strict import Launch

from snipkern.ops.checks import FLOATS
from snipkern.triton_kernels import spmm_bsr, tuning
from snipkern.triton_kernels.bsr_index import find_run_tile

F16, F32, F64 = torch.float16, torch.float32, torch.float64


def test_any_candidate_and_order_of_programs_is_right(monkeypatch):
    layer = Layer.random((16, 16), (24, 40), 70, dtype=F16)
    all_tuned = (spmm_bsr.PRODUCT, spmm_bsr.TRANSPOSED_PRODUCT, spmm_bsr.VALUE_GRAD)
    for place, chosen in enumerate([[tuned.tiles[i] for tuned in all_tuned] for i in (1, 3)]):
        for tuned, tile in zip(all_tuned, chosen, strict=True):
            monkeypatch.setattr(tuned, "tiles", (tile,))
        layer.check(spmm_bsr)
        results = layer.results(spmm_bsr)
        monkeypatch.setattr(Launch, "seed", place + 7)
        assert all(torch.equal(*pair) for pair in zip(results, layer.results(spmm_bsr), strict=True))


def test_candidates_are_timed_once_for_each_dtype_block_and_bucket(monkeypatch):
    """With a clock that prefers the last candidate: on a GPU it is Triton's."""
    layer = Layer.random((16, 16), (16, 20), 33, dtype=F16)
    expected = layer.dense(lambda tensor: tensor)[0]
    tuned = tuning.Tuned(spmm_bsr.product_kernel, "BATCH", "ROWS", tuning.SAMPLE_TILES)
    monkeypatch.setattr(spmm_bsr, "PRODUCT", tuned)
    assert not tuning.choice_allowed(True)
    monkeypatch.setattr(tuning, "is_interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    capturing = False
    timed = []

    def clock(call, quantiles):
        call()
        timed.append(None)
        return [1.0 / len(timed)] * 3

    tuner = tuned.tuner(F16)
    tuner._do_bench = clock
    args = (layer.values, layer.bias, layer.topology.on(CPU), *layer.size, False)
    for _ in range(2):
        y = spmm_bsr.spmm_bsr(layer.x, *args)
        torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-2)
        assert len(timed) == 3 and tuner.best_config.kwargs["BATCH"] == 16
    capturing = True
    for samples in (33, 20):
        spmm_bsr.spmm_bsr(layer.x[:samples], *args)
        assert len(timed) == 3 and tuner.best_config.kwargs["BATCH"] == 16
    capturing = False
    spmm_bsr.spmm_bsr(layer.x[:20], *args)
    assert len(timed) == 5 and [key[:4] for key in tuner.cache] == [(16, 16, "ieee", 64), (16, 16, "ieee", 32)]


@triton.jit
def find_kernel(topology, block_rows, found, HEIGHT: tl.constexpr, TILE: tl.constexpr):
    slot = tl.program_id(0)
    block_row, place = find_run_tile(topology, slot, block_rows, HEIGHT, TILE)
    tl.store(found + 2 * slot, block_row)
    tl.store(found + 2 * slot + 1, place)


def test_every_tile_of_a_run_is_found_among_many_block_rows():
    """More than one round of the search needs; some runs are empty."""
    runs = torch.arange(300) % 4 * (torch.arange(300) % 3)
    runs[:200] = 0
    height, tile = 2, 4
    start = torch.cat([torch.zeros(1, dtype=torch.int64), runs.cumsum(0) * height]).int()
    slots = int(runs.sum()) // tile + 300
    found = torch.zeros(slots, 2, dtype=torch.int32)
    chosen = [0, 255, 256, *range(slots - 60, slots)]
    Launch.only = chosen
    try:
        find_kernel[(slots,)](start, 300, found, HEIGHT=height, TILE=tile)
    finally:
        Launch.only = None
    seen = {(row, place) for row, place in found[chosen].tolist() if place < runs[row]}
    wanted = {(row, place) for row in range(300) for place in range(0, int(runs[row]), tile)}
    assert seen <= wanted and len(seen) > 15
    assert {pair for pair in wanted if pair[0] > 285} <= seen


def test_every_block_has_candidates_that_fit():
    tuned = spmm_bsr.PRODUCT
    kinds = [(dtype, "ieee") for dtype in FLOATS] + [(F32, "tf32")]
    for (dtype, precision), side, size in itertools.product(kinds, (1, 16, 48, 128, 500), (1, 40, 4096)):
        tile = tuning.side_tile(side, dtype, precision)
        constants = {"ROWS": tile, "PRECISION": precision}
        candidates = tuned.fitting(dtype, constants, tuning.bucket(size), tuning.SHARED_MEMORY)
        assert candidates and (size < 4096 or len(candidates) > 1 or dtype == F64)
        for config in candidates:
            sums = config.kwargs["BATCH"] * tile / (32 * config.num_warps)
            assert 2 <= sums <= tuning.most_sums(dtype, precision), (dtype, side, size, config)
