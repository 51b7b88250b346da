"""Sharded parameters (DTensors of FSDP2 or tensor parallelism) as the part of each that this rank looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snipkern.masks import WORD_BITS, Mask
from snipkern.selection.sources import Ranks

__all__ = ["Cut", "Gathered", "Looks", "Shards", "assembled", "full", "is_sharded", "like", "local", "require_reducing"]

T = TypeVar("T")


def is_sharded(tensor: object) -> bool:
    """Whether this is a DTensor, without importing torch.distributed to ask."""
    return hasattr(tensor, "device_mesh")


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank; a collective for a DTensor."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor that every rank has, cut up as the pattern is; nothing is sent."""
    if not is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    at: Any = pattern
    return distribute_tensor(tensor, at.device_mesh, at.placements, src_data_rank=None)


def require_reducing(model: nn.Module) -> None:
    """That a backward pass through a model of ``fully_shard`` reduces its gradients, and nothing but them.

    Raises:
        ValueError: For gradient accumulation that is under way or left on; it would make wrong masks silently.
    """
    for name, module in model.named_modules():
        state: Any = module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None  # pyright: ignore
        found = getattr(state, "_fsdp_param_group", None) if state else None
        groups: list[Any] = getattr(state, "_fsdp_param_groups", None) or ([found] if found else [])
        for group in groups:
            waiting = not (getattr(group, "reduce_grads", True) and getattr(group, "all_reduce_grads", True))
            for parameter in getattr(group, "fsdp_params", ()):
                whole = getattr(parameter, "_unsharded_param", None)
                kept = getattr(parameter, "unsharded_accumulated_grad", None), getattr(whole, "grad", None)
                waiting |= any(gradient is not None for gradient in kept)
            if waiting:
                raise ValueError(
                    "prune: fully_shard must reduce gradients in every backward pass, with none accumulated; call"
                    " set_requires_gradient_sync(True), and prune before accumulating (got otherwise in"
                    f" {name or 'the model'!r})"
                )


class Cut:
    """How selection cuts parameters up between ranks: each rank has one range of a parameter's flat elements.

    Those of ``fully_shard`` on all ranks, cut along their first dimension, are looked at where they are. Others are
    brought together one at a time, on every rank, of which each looks at an equal share.
    """

    def __init__(self, ranks: Ranks, group_ranks: list[int]) -> None:
        self.ranks, self.group_ranks = ranks, group_ranks

    def in_place(self, tensor: Tensor) -> bool:
        """Whether this rank's shard is its range."""
        if not is_sharded(tensor):
            return False
        at: Any = tensor
        mesh, placements = at.device_mesh, at.placements
        if mesh.ndim != 1 or mesh.mesh.tolist() != self.group_ranks:
            return False
        return type(placements[0]).__name__ == "Shard" and placements[0].dim == 0

    def bounds(self, numel: int) -> tuple[int, int]:
        share = -(-numel // self.ranks.size)
        first = min(numel, share * self.ranks.rank)
        return first, min(numel, first + share)

    def size(self, parameter: Tensor) -> int:
        """Elements that this rank looks at."""
        if self.in_place(parameter):
            return local(parameter).numel()
        first, last = self.bounds(parameter.numel())
        return last - first

    def part(self, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's elements of both, after collectives where they aren't here."""
        if self.in_place(weight) and self.in_place(gradient):
            return local(weight), local(gradient)
        first, last = self.bounds(weight.numel())
        weight, gradient = self.whole(weight, gradient)
        return weight.reshape(-1)[first:last], gradient.reshape(-1)[first:last]

    def whole(self, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """All of both, on every rank; a collective."""
        # Only a mesh of all ranks has seen all batches.
        averaged = is_sharded(gradient) and gradient.device_mesh.size() == self.ranks.size  # pyright: ignore[reportAttributeAccessIssue]
        with self.ranks.collective():
            weight, gradient = full(weight), full(gradient)
            # A copy: the next walk must see the same numbers.
            return weight, gradient if averaged else self.ranks.averaged(gradient.clone())


class Looks(Generic[T]):
    """The results of one walk. After an error no more is looked at, but the walk goes on: other ranks need it to."""

    def __init__(self, look: Callable[[int, Tensor, Tensor], T]) -> None:
        self.look = look
        self.found: dict[int, T] = {}
        self.error: Exception | None = None

    def __call__(self, i: int, weight: Tensor, gradient: Tensor) -> None:
        if self.error is None:
            try:
                self.found[i] = self.look(i, weight, gradient)
            except Exception as error:
                self.error = error

    def results(self) -> list[T]:
        """In order of parameters.

        Raises:
            Exception: The first one of the looks.
        """
        if self.error is not None:
            raise self.error
        return [self.found[i] for i in range(len(self.found))]


class Shards:
    """Weights and gradients of which each rank has a part, as a source."""

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor]], cut: Cut) -> None:
        self.pairs, self.cut = pairs, cut
        self.names = list(pairs)
        self.sizes = [cut.size(weight) for weight, _ in pairs.values()]

    def walk(self, look: Callable[[int, Tensor, Tensor], T]) -> list[T]:
        looks = Looks(look)
        for i, name in enumerate(self.names):
            looks(i, *self.cut.part(*self.pairs[name]))
        return looks.results()


class Gathered(Mapping[str, tuple[Tensor, Tensor]]):
    """Weights and gradients of which each rank has a part, whole at each look-up, gathered anew.

    All ranks look up the same names in the same order. One that fails in between makes the others raise.

    Cost: memory for the parameters that are looked at, and a transfer of the whole parameter for each look-up.
    """

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor]], cut: Cut) -> None:
        self.pairs, self.cut = pairs, cut

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        weight, gradient = self.pairs[name]
        self.cut.ranks.same(name, "all ranks must look at the same parameters")
        return self.cut.whole(weight, gradient)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def assembled(ranks: Ranks, words: Tensor, numel: int, shape: torch.Size) -> Mask:
    """The mask of a parameter from the words of every rank's range, on all ranks."""
    parts: list[tuple[NDArray[np.uint64], int]] = ranks.exchanged((words.cpu().numpy().view(np.uint64), numel))
    if len(parts) == 1:
        return Mask(words.cpu(), shape)
    # One word more than needed, for the upper part of a last one that has none.
    whole = np.zeros(-(-shape.numel() // WORD_BITS) + 1, dtype=np.uint64)
    start = 0
    for bits, count in parts:
        word, lead = divmod(start, WORD_BITS)
        whole[word : word + bits.size] |= bits << np.uint64(lead)
        if lead and bits.size:
            whole[word + 1 : word + 1 + bits.size] |= bits >> np.uint64(WORD_BITS - lead)
        start += count
    return Mask(torch.from_numpy(whole[:-1].view(np.int64)), shape)
