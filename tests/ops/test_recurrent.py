import pytest
import torch
from recurrent_cases import MODES, random_recurrent

from snipkern.testing import tiers

TIERS = tiers()


def check(case, tier, tolerance):
    actual, expected = case.run(tier), case.expected()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = tensor.abs().max().item() if tensor.numel() else 1.0
        torch.testing.assert_close(
            actual[name].double(),
            tensor,
            rtol=0,
            atol=tolerance * max(scale, 1e-3),
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize("reverse", (False, True), ids=("forward", "reverse"))
@pytest.mark.parametrize("lengths", ((4, 4, 4), (5, 3, 3, 1)), ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tier", TIERS)
def test_equals_torchs_own_layer(tier, mode, lengths, reverse, generator):
    check(random_recurrent(generator, mode, lengths, reverse=reverse, dtype=torch.float64), tier, 1e-12)
