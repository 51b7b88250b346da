"""Marks every test here ``gpu``, leaves them out or skips them without a CUDA device, and makes the op tests' cases
importable."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "ops"), str(HERE.parents[1] / "examples")]

import where  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Hundreds of skips would tell no more than one does, unless somebody asks for these tests."""
    reason = where.why_not()
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    asked = config.option.markexpr or config.option.keyword or any("gpu" in str(name) for name in config.args)
    if reason and not asked:
        left_out = set(here[1:])
        config.hook.pytest_deselected(items=here[1:])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _full_float32():
    """Products of float32 in float32: torch's convolutions would take fewer bits, and the reference is made of them."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
