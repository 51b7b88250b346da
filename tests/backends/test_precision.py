"""CUDA kernels round to TF32 only where torch's own products may."""

from types import SimpleNamespace

import pytest
import torch

from snipkern import backends
from snipkern.backends import precision
from snipkern.nn.functional import sparse_linear
from snipkern.testing import random_mask
from snipkern.topology import Topology


@pytest.fixture
def told(monkeypatch):
    """What an extension would have been told."""
    told = []
    monkeypatch.setattr(backends, "_cuda", SimpleNamespace(module=SimpleNamespace(allow_tf32=told.append)))
    return told


@pytest.fixture
def setting():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    yield matmul
    matmul.allow_tf32 = before


def test_the_extension_follows_torchs_setting(told, setting):
    for allowed in (True, False, True):
        setting.allow_tf32 = allowed
        precision.follow_torch(backends._cuda.module)
    assert told == [True, False, True]
    precision.follow_torch(None)
    assert len(told) == 3


def test_only_products_on_a_gpu_ask(told, setting, generator):
    setting.allow_tf32 = False
    topology = Topology(random_mask((4, 3), 0.5, generator))
    sparse_linear(torch.ones(2, 3), torch.ones(topology.nnz), None, topology)
    assert told == []
    backends.follow_torch(SimpleNamespace(is_cuda=True))
    assert told == [False]
