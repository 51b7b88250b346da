import os
import random

import pytest
import torch
from nets import make_cnn, make_mlp
from torch import nn

# In the environment, so that all processes of a run share it.
SEED = int(os.environ.setdefault("SNIPKERN_TEST_SEED", str(random.SystemRandom().randrange(2**32))))


def pytest_report_header():
    return f"random shapes and data: SNIPKERN_TEST_SEED={SEED}"


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that none of several processes begins the longest file when others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def generator():
    """Fresh random numbers in every session; the header says how to get the same ones again."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def one_thread():
    """For many steps of tiny models, where waking a second thread is most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
