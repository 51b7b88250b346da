"""Gradients that don't fit beside their weights: made anew in each walk, looked at one by one and freed at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar, cast

import torch
from rich.progress import Progress
from torch import Tensor, nn

from snipkern.engine.workload import Call
from snipkern.parallel.shards import Cut, Looks
from snipkern.pool import Prunable
from snipkern.scoring.backward import clear_gradients, recomputes, require_no_hooks
from snipkern.scoring.gradients import LossFn, checked_loss, default_loss, first_of, noted_calls, preserved, redrawn
from snipkern.scoring.randomness import random_states, set_random_states
from snipkern.selection.sources import Ranks

__all__ = ["Stream"]

T = TypeVar("T")


class Stream:
    """The pool's weights and gradients of one batch, as a source: each walk is one forward and one backward pass.

    All walks see the same batch, random numbers and buffers, so that they show the same bits, for as long as the number
    of torch's threads stays; on other devices than the CPU they take torch's deterministic algorithms, where there are
    some, and torch warns where there are none. A gradient is looked at as soon as it is complete, and then freed.

    Args:
        model, loader, pool, loss_fn, redraw, seed, progress: As for :func:`snipkern.scoring.gradients.gradients`.
        ranks: Those with batches of their own; gradients are averaged over them.
        cut: Of a sharded model: what each rank looks at. None: every rank looks at everything.

    Raises:
        ValueError: For an empty loader, and for hooks of others that would see the gradients.

    Cost: a forward and a backward pass for each walk; memory for one gradient. A sharded model brings the gradients of
    one ``fully_shard`` group at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        pool: Sequence[Prunable],
        ranks: Ranks,
        cut: Cut | None = None,
        *,
        loss_fn: LossFn | None = None,
        redraw: bool = False,
        seed: int | None = None,
        progress: bool = False,
    ) -> None:
        self.model, self.pool, self.ranks, self.cut = model, pool, ranks, cut
        self.loss_fn = loss_fn or default_loss
        self.redraw, self.seed, self.progress = redraw, seed, progress
        self.parameters = [entry.parameter for entry in pool]
        self.names = [entry.fqn for entry in pool]
        self.sizes = [cut.size(p) if cut else p.numel() for p in self.parameters]
        self.calls: dict[str, Call] = {}
        require_no_hooks(model, "memory='stream'")
        # The random numbers that a redraw takes, and those that the loss takes after the batch was drawn.
        self.drawing = random_states(loader)
        with preserved(model, loader), redrawn(pool, redraw, seed):
            (self.batch,) = first_of(loader, 1)
            self.computing = random_states(loader)

    def walk(self, look: Callable[[int, Tensor, Tensor], T]) -> list[T]:
        return self.ranks.together(lambda: self._walk(look))

    def _walk(self, look: Callable[[int, Tensor, Tensor], T]) -> list[T]:
        looks = Looks(look)
        seen: set[int] = set()

        def show(i: int, gradient: Tensor) -> None:
            weight = self.parameters[i].detach()
            if self.cut:
                looks(i, *self.cut.part(weight, gradient))
            else:
                looks(i, weight, self.ranks.averaged(gradient.detach()))

        def complete(i: int, parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if i in seen:
                raise ValueError(
                    f"score: with memory='stream' every gradient must be complete at once; use memory='plain', or"
                    f" checkpoint with use_reentrant=False (got that of {self.names[i]!r} in parts)"
                )
            seen.add(i)
            self._in_step(i)
            assert gradient is not None
            show(i, gradient)

        with preserved(self.model, None), noted_calls(self.model, self.calls):
            set_random_states(self.drawing)
            drawn = redrawn(self.pool, self.redraw, self.seed)
            with drawn, self._hooks(complete), torch.enable_grad(), repeatable(self.parameters):
                set_random_states(self.computing)
                self._backward()
                self._in_step(-1)
                for i, parameter in enumerate(self.parameters):
                    if i not in seen:
                        show(i, torch.zeros_like(parameter))
        return looks.results()

    def _backward(self) -> None:
        clear_gradients(self.model)
        self.model.eval()
        loss = agreed_loss(lambda: self.loss_fn(self.model, self.batch), self.pool, self.ranks, self.cut)
        # As in torch.autograd.grad, so that the same kernels run.
        whole = self.cut is not None or recomputes(loss)
        torch.autograd.backward(loss, inputs=None if whole else self.parameters)

    def _in_step(self, i: int) -> None:
        self.ranks.same(i, "gradients must come in one order on all ranks with memory='stream'; use memory='plain'")

    @contextlib.contextmanager
    def _hooks(self, complete: Callable[[int, nn.Parameter], None]) -> Generator[None]:
        """Hands each complete gradient of the pool over, and frees those of other parameters."""
        number = {id(parameter): i for i, parameter in enumerate(self.parameters)}

        def hook(parameter: Tensor) -> None:
            i = number.get(id(parameter))
            if i is None:
                parameter.grad = None
                return
            complete(i, cast(nn.Parameter, parameter))
            if progress.tasks:
                progress.advance(progress.tasks[0].id)

        watched = [p for p in self.model.parameters() if p.requires_grad]
        handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter in watched]
        try:
            with Progress(transient=True, disable=not self.progress) as progress:
                progress.add_task("scoring", total=len(number))
                yield
        finally:
            for handle in handles:
                handle.remove()


@contextlib.contextmanager
def repeatable(parameters: Sequence[Tensor]) -> Generator[None]:
    """Passes of a model on a GPU give the same bits each time; on the CPU they do anyhow."""
    if all(parameter.device.type in ("cpu", "meta") for parameter in parameters):
        yield
        return
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filling, cudnn = settings.fill_uninitialized_memory, cast(Any, torch.backends.cudnn)
    # Not cudnn.flags: it sets the permission for TF32 as well, which torch refuses where the newer settings say it.
    tried, repeated = cudnn.benchmark, cudnn.deterministic
    try:
        torch.use_deterministic_algorithms(True, warn_only=was[1] or not was[0])
        settings.fill_uninitialized_memory = False  # finds mistakes, and costs a write
        # Trying algorithms out may come to another one in each pass.
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = tried, repeated
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        settings.fill_uninitialized_memory = filling


def agreed_loss(loss_of: Callable[[], Any], pool: Sequence[Prunable], ranks: Ranks, cut: Cut | None) -> Tensor:
    """The checked loss of one batch. The ranks of a sharded model meet before and after its forward pass, in which they
    wait for each other in ways of its own.
    """
    if cut is None:
        return checked_loss(loss_of(), pool)
    ranks.exchanged(None)
    with ranks.collective():
        loss = loss_of()
    return ranks.together(lambda: checked_loss(loss, pool))
