import os
import random

import pytest
import torch
from nets import make_cnn, make_mlp
from torch import nn

SEED = int(os.environ.get("SNIPKERN_TEST_SEED", random.SystemRandom().randrange(2**32)))


def pytest_report_header():
    return f"random shapes and data: SNIPKERN_TEST_SEED={SEED}"


@pytest.fixture
def generator():
    """Fresh random numbers in every session; the header says how to get the same ones again."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def mlp() -> nn.Sequential:
    return make_mlp()


@pytest.fixture
def cnn() -> nn.Sequential:
    return make_cnn()


@pytest.fixture
def vectors() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four batches for the MLP."""
    return [(torch.randn(16, 20), torch.randint(0, 5, (16,))) for _ in range(4)]


@pytest.fixture
def images() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches for the CNN."""
    return [(torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))) for _ in range(2)]
