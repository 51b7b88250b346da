import os
import random

import pytest
import torch

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
