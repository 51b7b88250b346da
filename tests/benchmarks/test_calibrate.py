"""The calibration: its fit, its sample plan, and the data file that the cost model reads."""

from __future__ import annotations

import dataclasses
import json
import runpy

import calibrate
import numpy as np
import torch
from marks import compiled

from snipkern import backends
from snipkern.engine import choice as engine
from snipkern.engine import costs
from snipkern.engine.choice import Cost, Work
from snipkern.topology import BlockTopology


def test_recovers_the_constants_it_was_made_from():
    truth = Cost(120.0, 3.0, 0.5, 0.0625)
    works = [Work(rows, 30, weights, weights) for rows in (8, 512) for weights in (10, 1000, 100000)]
    works += [Work(rows, 4000, 500, 500) for rows in (1, 64, 4096)]
    found = calibrate.fit([calibrate.Sample("dense float32 linear", "any", w, truth.microseconds(w)) for w in works])
    assert np.allclose(dataclasses.astuple(found.cost), dataclasses.astuple(truth))
    assert abs(found.worst_error) < 1e-6


def test_spread_covers_nine_of_ten():
    works = [Work(1, 1, 1000 * n, 0) for n in range(1, 21)]
    samples = [calibrate.Sample("guard", "any", w, w.weights * (1.5 if n == 7 else 1.0)) for n, w in enumerate(works)]
    found = calibrate.fit(samples)
    assert 1.0 < found.cost.spread < 1.1 and abs(found.worst_error) > 0.25


def test_never_gives_negative_costs():
    samples = [calibrate.Sample("dense", str(n), Work(n, n, n, n), 10.0 - n) for n in (1, 2, 3)]
    assert min(dataclasses.astuple(calibrate.fit(samples).cost)) >= 0


def test_every_row_of_the_table_is_sampled():
    rows = set()
    for part in calibrate.parts(backends.ISA_TIERS[::-1], quick=False):
        for layer in part.layers:
            layer = dataclasses.replace(layer, dtype=calibrate.DTYPES[part.dtype])
            rows |= {
                engine.row(kind, layer, part.tier) for kind in (("dense",) if part.dense else ()) + ("guard", "csr")
            }
            if layer.kind in engine.BLOCK_KINDS:
                rows |= {engine.row("bsr", dataclasses.replace(layer, block=b), part.tier) for b in part.blocks}
    assert rows == set(costs.COSTS)


def test_masks_of_whole_blocks():
    work, mask = calibrate.masked(calibrate.linear(10, 7, 3), 0.5, (4, 3), torch.Generator().manual_seed(1))
    assert work.kept == mask.count() and work.block == (4, 3) and 0 < work.kept < 70
    BlockTopology(mask, (4, 3))  # refuses parts of blocks


@compiled
def test_quick_run_writes_the_table_and_keeps_other_rows(capsys, restore_threads, tmp_path):
    target = tmp_path / "costs.py"
    target.write_text('"""Text."""\n\n# Comment.\nAMX = None\n\nCOSTS = {}\n')
    torch.set_num_threads(1)
    calibrate.main(["--quick", "--tiers", "scalar", "--json", str(tmp_path / "fit.json"), "--write", str(target)])
    written = runpy.run_path(str(target))
    assert target.read_text().startswith('"""Text."""\n\n# Comment.\nAMX = ')
    assert isinstance(written["AMX"], bool)
    assert written["COSTS"].keys() == costs.COSTS.keys()
    assert written["COSTS"]["csr avx512 float32 linear"] == costs.COSTS["csr avx512 float32 linear"]
    assert written["COSTS"]["csr scalar float32 linear"] != costs.COSTS["csr scalar float32 linear"]
    assert all(len(row) == 5 and min(row) >= 0 and row[-1] >= 1 for row in written["COSTS"].values())
    assert '"dense float32 conv": (' in capsys.readouterr().out
    content = json.loads((tmp_path / "fit.json").read_text())
    assert content["machine"]["threads"] == 1 and len(content["samples"]) > 20
    assert torch.get_num_threads() == 1
