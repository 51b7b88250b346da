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


# Files that take most of a minute or more, the longest first. Those that compile with all cores stand apart: beside each
# other they would wait for turns.
LONG = (
    "test_drivers.py",
    "test_triton_saliency.py",
    "test_distributed.py",
    "test_cubins.py",
    "test_train_gpt.py",
    "test_bsr_on_host.py",
    "test_packaging.py",
    "test_gpt_checkpoint.py",
    "test_triton_bsr.py",
    "test_gpu_stand_ins.py",
    "test_throughput.py",
)


def pytest_collection_modifyitems(items):
    """Long files first, then others with slow tests: none of several processes shall begin one when others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item):
        return LONG.index(item.path.name) if item.path.name in LONG else len(LONG) + (item.path not in slow)

    items.sort(key=place)


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
