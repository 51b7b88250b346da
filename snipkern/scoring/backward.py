"""Backward passes through a whole model, for losses whose gradients torch can't give for chosen parameters alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["accumulated", "recomputes", "require_no_hooks"]


def recomputes(loss: Tensor) -> bool:
    """Whether reentrant checkpoints lie under a loss.

    Their parameters are no part of the graph before it runs backward: torch, asked for the gradients of some, finds no
    way to them and gives none, without an error.
    """
    waiting, seen = [loss.grad_fn], set[object]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "CheckpointFunction" in node.name():
            return True
        waiting += [following for following, _ in node.next_functions]
    return False


def accumulated(loss: Tensor, model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """The gradients that a backward pass leaves in ``.grad``, which is None for all parameters afterwards."""
    require_no_hooks(model, "a loss under reentrant checkpoints or a sharded model")
    clear_gradients(model)
    loss.backward()
    found = [parameter.grad for parameter in parameters]
    clear_gradients(model)
    return found


def clear_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def require_no_hooks(model: nn.Module, needed_by: str) -> None:
    """That no hook of others (an optimiser's step, say) runs when gradients have accumulated.

    Raises:
        ValueError: It names the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter._post_accumulate_grad_hooks:
            raise ValueError(
                f"score: {needed_by} needs parameters without post-accumulate-grad hooks, which it would run; remove"
                f" them first (got one on {name!r})"
            )
