"""A batch that tells inputs apart, for the tests of whole allocations."""

import pytest
import torch


@pytest.fixture
def batch(generator):
    scale = torch.rand(64, generator=generator) ** 4  # some inputs matter much more than others
    return [(torch.randn(32, 64, generator=generator) * scale, torch.randint(5, (32,), generator=generator))]
