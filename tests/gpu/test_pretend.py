"""The pretended device refuses what a GPU would, and waits where one would."""

import pretend
import pytest
import torch
from where import DEVICE, ON

pytestmark = pytest.mark.skipif(ON != "pretend", reason="about the pretended device")


def test_operands_on_two_devices_are_refused():
    x = torch.arange(6.0).to(DEVICE)
    assert x.device == DEVICE and torch.equal(x.cpu(), torch.arange(6.0))
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(6)
    with pytest.raises(RuntimeError):
        x.numpy()
    assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3, 4, 5, 6]  # one number comes along with the call


WAITING = {
    "item": lambda x: x.sum().item(),
    "list": lambda x: x.tolist(),
    "truth": lambda x: bool(x.any()),
    "to the CPU": lambda x: x.cpu(),
    "from the CPU": lambda x: torch.ones(3).to(x.device),
    "copy": lambda x: x.copy_(torch.ones(6)),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 2],
    "repeats": lambda x: x.repeat_interleave(x.long()),
}


@pytest.mark.parametrize("wait", WAITING.values(), ids=WAITING)
def test_waiting_is_refused_where_it_must_not_be(wait):
    x = torch.arange(6.0).to(DEVICE)
    wait(x)
    with pretend.no_sync(), pytest.raises(pretend.Synchronizes):
        wait(x)
    wait(x)


def test_a_backward_pass_is_watched_as_well():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    x = torch.ones(2, 3).to(DEVICE).requires_grad_()
    weight = torch.ones(4, 3).to(DEVICE).requires_grad_()
    with pretend.no_sync():
        y = torch.nn.functional.linear(x, weight)
        y.sum().backward()
        with pytest.raises(pretend.Synchronizes):
            Reads.apply(x).sum().backward()
    assert y.tolist() == [[3.0] * 4] * 2 and x.grad.tolist() == [[4.0] * 3] * 2
