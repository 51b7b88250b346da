"""What a criterion may look at: weights, gradients, batches. All of it is left, or put back, as it was."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor, nn

from snipkern.allocation import Allocation, Graph, allocate
from snipkern.engine.workload import Call
from snipkern.masks import Mask
from snipkern.parallel.shards import is_sharded
from snipkern.pool import Prunable
from snipkern.scoring.gradients import (
    Differentiate,
    LossFn,
    first_of,
    gradients,
    noted_calls,
    preserved,
    require_batches,
)
from snipkern.scoring.left import narrowed
from snipkern.selection.sources import Ranks

if TYPE_CHECKING:
    from snipkern.criteria.base import Scores

__all__ = ["Context"]


class Replayed(Iterable[Any]):
    """What an iterator yields, as often as one likes: taken when it is asked for first, and kept."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source, self._taken = source, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        for i in itertools.count():
            if i == len(self._taken):
                try:
                    self._taken.append(next(self._source))
                except StopIteration:
                    return
            yield self._taken[i]


@dataclass(eq=False)
class Context:
    """What a criterion may look at, on one rank.

    Attributes:
        model: Without DDP's wrapper.
        pool: The parameters to score.
        loader: Yields batches, the same from the beginning each time where an iterator was given; or None.
        loss: ``loss_fn(model, batch)`` -> scalar mean loss, as given or the default.
        batches: How many batches to look at.
        kept: Number of weights to keep.
        shares: How they are to be shared out.
        ranks: Who prunes together, each with batches of its own.
        progress: Whether to show a progress bar.
        graph: What feeds each layer, once :attr:`loss_fn` was called.
        calls: Module name -> how it was called first by :attr:`loss_fn`.
        drawing: For scoring at freshly drawn weights; see :func:`snipkern.scoring.gradients.gradients`.
        differentiate: Of a sharded model: makes its gradients.
        seeds: How many were drawn.
    """

    model: nn.Module
    pool: list[Prunable]
    loader: Any
    loss: LossFn
    batches: int
    kept: int
    shares: Allocation
    ranks: Ranks
    progress: bool = False
    graph: Graph = field(default_factory=Graph)
    calls: dict[str, Call] = field(default_factory=dict[str, Call])
    drawing: Mapping[str, Any] = field(default_factory=dict[str, Any])
    differentiate: Differentiate | None = None
    seeds: int = 0
    looked: bool = False

    def __post_init__(self) -> None:
        require_batches(self.batches)
        if isinstance(self.loader, Iterator):
            self.loader = Replayed(self.loader)

    @property
    def loss_fn(self) -> LossFn:
        """``loss_fn(model, batch)`` -> scalar mean loss. Its first call is watched."""
        return self._loss

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        if self.looked:
            return self.loss(model, batch)
        with noted_calls(model, self.calls):
            found = self.loss(model, batch)
        self.looked = torch.is_grad_enabled()  # without gradients it isn't watched
        return found

    @property
    def left(self) -> int:
        """Weights of the pool that are not pruned yet."""
        return sum(entry.left for entry in self.pool)

    def weights(self) -> dict[str, Tensor]:
        """The pool's weights by name, detached; they share memory with the model: only read them.

        Where a sparse module holds what is left of a weight, that is what is here, 1-D.
        """
        return {entry.fqn: entry.parameter.detach() for entry in self.pool}

    def gradients(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Gradient of the mean loss over all batches and ranks, in eval mode, by name.

        Args:
            weights: Where to take it, by parameter name; what is left out stays as it is. None: the model's own.

        Raises:
            ValueError: Without a loader, for batches or losses that aren't understood, for a loss that is not finite.

        Cost: a forward and a backward pass for each batch; memory for one gradient of each pooled weight.
        """
        return {name: gradient for name, (_, gradient) in self.pairs(weights).items()}

    def pairs(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights and :meth:`gradients`, by name; with ``preset="paper"`` those of a fresh draw."""
        with self._replaced(weights):
            found = gradients(
                self.model,
                self._data(),
                self.pool,
                loss_fn=self.loss_fn,
                batches=self.batches,
                progress=self.progress,
                differentiate=self.differentiate,
                **self.drawing,
            ).pairs
        if self.ranks.size == 1 or self.differentiate:  # shards are averaged when they are looked at
            return found
        self.ranks.exchanged(None)
        return {name: (weight, self.ranks.averaged(gradient)) for name, (weight, gradient) in found.items()}

    @contextlib.contextmanager
    def evaluating(self, weights: Mapping[str, Tensor] | None = None) -> Generator[None]:
        """Eval mode with autograd on; modes, buffers, gradients, random states and weights are put back afterwards.

        Args:
            weights: By parameter name, to take the places of the model's own meanwhile.

        Raises:
            ValueError: For weights of another name or shape, or of a sharded parameter.
        """
        with preserved(self.model, self.loader), self._replaced(weights), torch.enable_grad():
            self.model.eval()
            yield

    @contextlib.contextmanager
    def _replaced(self, weights: Mapping[str, Tensor] | None) -> Generator[None]:
        found = dict(self.model.named_parameters(remove_duplicate=False))
        found.update({entry.fqn: entry.parameter for entry in self.pool})
        changes: list[tuple[nn.Parameter, Tensor]] = []
        for name, value in (weights or {}).items():
            parameter = found.get(name)
            if parameter is None or value.shape != parameter.shape or is_sharded(parameter):
                want = "a parameter's" if parameter is None else f"those of shape {list(parameter.shape)}, not sharded,"
                raise ValueError(f"score: weights to score at must be {want} (got {name!r}, {list(value.shape)})")
            changes.append((parameter, value.detach().to(parameter)))
        before = [(parameter, parameter.data) for parameter, _ in changes]
        try:
            for parameter, value in changes:
                parameter.data = value
            yield
        finally:
            for parameter, data in before:
                parameter.data = data

    def given(self) -> Iterator[Any]:
        """The loader's first batches, as many as :attr:`batches`, with a progress bar if one is wanted.

        Raises:
            ValueError: Without a loader, or with fewer batches.
        """
        found = first_of(self._data(), self.batches)
        yield from track(found, "scoring", total=self.batches, transient=True, disable=not self.progress)

    def _data(self) -> Any:
        if self.loader is None:
            raise ValueError("score: loader must be an iterable of batches for this criterion (got None)")
        return self.loader

    def averaged(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, the same bits on each. All ranks call it as often, for tensors of one shape."""
        if self.ranks.size == 1:
            return tensor
        self.ranks.exchanged(None)  # has another one failed before?
        return self.ranks.averaged(tensor.clone())

    def seed(self) -> int:
        """A seed by torch's random numbers, of the first rank's on all ranks; another one at each call."""
        self.seeds += 1
        return self.ranks.exchanged(int(torch.randint(2**62, ())))[0]

    def choose(self, scores: Scores, keep: int) -> dict[str, Mask]:
        """What these scores would keep, shared out as asked for: for criteria that go in rounds.

        Args:
            keep: Number of weights.
        """
        if self.differentiate:
            raise ValueError("score: a sharded model can't be scored in rounds (got one)")
        masks = allocate(scores.pairs, self.pool, keep, self.shares, self.graph, formula=scores.formula).masks
        return {entry.fqn: narrowed(entry, masks[entry.fqn]) for entry in self.pool}

    def look(self) -> None:
        """Sees what feeds each layer and how it is called, if the criterion has not called the loss."""
        if self.looked or self.loader is None:
            return
        with self.evaluating():
            (batch,) = first_of(self.loader, 1)
            if not self.differentiate:
                self.loss_fn(self.model, batch)
                return
            with self.ranks.collective():
                self.loss_fn(self.model, batch)
        for module in self.model.modules():
            reshard: Callable[[], object] | None = getattr(module, "reshard", None)
            if reshard is not None:  # without a backward pass, fully_shard leaves whole parameters
                reshard()
