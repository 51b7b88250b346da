"""Selection from safetensors files: the masks of tensors in memory, without their memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import snipkern as sk

safetensors = pytest.importorskip("safetensors.torch")

SHAPES = {"b.weight": (30, 7), "a.weight": (4, 3, 5, 5), "c": (11,)}


def tensors(dtype, shapes=SHAPES):
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def pairs(tmp_path):
    weights, gradients = tensors(torch.float32), tensors(torch.bfloat16)
    safetensors.save_file({**weights, "bias": torch.zeros(3)}, tmp_path / "weights.safetensors")
    safetensors.save_file(gradients, tmp_path / "gradients.safetensors")
    return {name: (weights[name], gradients[name]) for name in sorted(SHAPES)}


def test_masks_of_mapped_files(pairs, tmp_path):
    found = sk.safetensor_pairs(tmp_path / "weights.safetensors", str(tmp_path / "gradients.safetensors"))
    assert isinstance(found, Mapping) and list(found) == sorted(SHAPES) and len(found) == 3
    assert sk.select(found, 0.1) == sk.select(pairs, 0.1)


def test_checkpoints_in_several_files(pairs, tmp_path):
    (tmp_path / "gradients").mkdir()
    index = {}
    for i, name in enumerate(sorted(SHAPES)):
        file = f"model-{i}.safetensors"
        index[name] = file
        safetensors.save_file({name: pairs[name][0]}, tmp_path / file)
        safetensors.save_file({name: pairs[name][1]}, tmp_path / "gradients" / f"{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    expected = sk.select(pairs, 20)
    by_index = tmp_path / "model.safetensors.index.json"
    by_list = [tmp_path / index[name] for name in index]
    for weights in (by_index, by_list):
        assert sk.select(sk.safetensor_pairs(weights, tmp_path / "gradients"), 20) == expected


def test_errors_name_the_culprit(pairs, tmp_path):
    weights, gradients = tmp_path / "weights.safetensors", tmp_path / "gradients.safetensors"
    with pytest.raises(ValueError, match=r"every gradient must have a weight \(got 'bias' without one\)"):
        sk.safetensor_pairs(gradients, weights)
    with pytest.raises(ValueError, match=r"a name must be in one file alone \(got 'a.weight' in .*gradients"):
        sk.safetensor_pairs([weights, gradients], gradients)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing"):
        sk.safetensor_pairs(tmp_path / "missing.safetensors", gradients)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold \*.safetensors files \(got none in .*empty"):
        sk.safetensor_pairs(weights, tmp_path / "empty")


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="needs the safetensors package; pip install safetensors"):
        sk.safetensor_pairs(tmp_path, tmp_path)


MEASURE = """
import sys, torch, snipkern
torch.set_num_threads(1)

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

snipkern.select({"w": (torch.randn(1000, 300), torch.randn(1000, 300))}, 0.1)  # whatever a first call loads
before = anonymous()
masks = snipkern.select(snipkern.safetensor_pairs(*sys.argv[1:]), 0.05)
print(anonymous() - before, sum(mask.count() for mask in masks.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc, which is Linux's")
def test_files_are_not_loaded(tmp_path):
    files = [tmp_path / "w.safetensors", tmp_path / "g.safetensors"]
    for file in files:
        safetensors.save_file(tensors(torch.float32, {str(i): (1 << 10, 1 << 10) for i in range(12)}), file)
    size = sum(file.stat().st_size for file in files)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, files)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    used, kept = map(int, done.stdout.split())
    assert kept == round(0.05 * (12 << 20))
    assert used < 0.15 * size
