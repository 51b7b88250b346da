"""Ranks of a torch process group that decide together, and fail together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from snipkern.selection.sources import Alone, Counts, Ranks

__all__ = ["Group", "ranks_of"]

T = TypeVar("T")
# Elements that are averaged at a time, in float64.
PIECE = 1 << 22


class Group:
    """All ranks of a process group.

    What is exchanged travels as pickled objects, some kilobytes each. Every exchange also tells whether a rank has
    failed: then all of them raise. A rank that died or hangs makes the others raise after the group's time-out. Either
    way this object is of no use afterwards.

    Args:
        group: A process group; None: the default one.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        #: Whether ranks have left the common path, so that nobody would answer.
        self.failed = False

    def exchanged(self, value: Any) -> list[Any]:
        """The values of all ranks, in order.

        Raises:
            ValueError: If another rank has failed with one.
            RuntimeError: If another rank has failed otherwise, or does not answer.
        """
        values, faults = self._exchange((value, None))
        for rank, fault in enumerate(faults):
            if fault is not None:
                self.failed = True
                kind, text = fault
                raise kind(f"prune: all ranks must succeed (got from rank {rank}: {text})")
        return values

    def _exchange(self, message: tuple[Any, Any]) -> tuple[list[Any], list[Any]]:
        found: list[Any] = [None] * self.size
        with self.collective():
            dist.all_gather_object(found, message, group=self.group)
        return [value for value, _ in found], [fault for _, fault in found]

    @contextlib.contextmanager
    def collective(self) -> Generator[None]:
        """For collectives of others. An exception leaves ranks where nobody can be told: they time out."""
        try:
            yield
        except BaseException:
            self.failed = True
            raise

    def together(self, action: Callable[[], T]) -> T:
        """What the action returns here. If it raises on one rank, all ranks raise."""
        try:
            result = action()
        except Exception as error:
            if not self.failed:
                kind = ValueError if isinstance(error, ValueError) else RuntimeError
                self.failed = True
                self._exchange(
                    (None, (kind, f"{type(error).__name__}: {error}" if kind is RuntimeError else str(error)))
                )
            raise
        self.exchanged(None)
        return result

    def same(self, value: T, requirement: str) -> T:
        """The value, which must be the same on all ranks.

        Raises:
            ValueError: On all ranks.
        """
        for rank, other in enumerate(found := self.exchanged(value)):
            if other != found[0]:
                self.failed = True
                raise ValueError(f"prune: {requirement} (got {found[0]!r} on rank 0, {other!r} on rank {rank})")
        return value

    def gathered(self, counts: Counts) -> Counts:
        return np.stack(self.exchanged(counts))

    def concatenated(self, keys: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.concatenate(self.exchanged(keys))

    @torch.no_grad()
    def averaged(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, the same bits on each: in place, unless the tensor is not contiguous.

        Sums are in float64, so that the mean of equal tensors is that tensor for any number of ranks.
        """
        tensor = tensor.contiguous()
        with self.collective():
            for piece in tensor.view(-1).split(PIECE):
                total = piece.to(torch.float64)
                dist.all_reduce(total, group=self.group)
                piece.copy_(total.div_(self.size))
        return tensor


def ranks_of(group: Any, sharded: bool = False) -> Ranks:
    """Who decides together.

    Args:
        group: A process group; None: the default one, if there is one; False: nobody else.
        sharded: Whether the model lies on several ranks.

    Raises:
        ValueError: For something that is not a process group, one that this process is not in, or False for a sharded
            model.
    """
    ready = dist.is_available() and dist.is_initialized()
    if group is False:
        if sharded:
            raise ValueError("prune: process_group must not be False for a sharded model")
        return Alone()
    if group is None and not ready:
        return Alone()
    outside = ready and group == dist.GroupMember.NON_GROUP_MEMBER  # what new_group returns there
    if outside:
        raise ValueError("prune: process_group must be one that this process is in (got another)")
    if group is not None and not (ready and isinstance(group, dist.ProcessGroup)):
        raise ValueError(f"prune: process_group must be a process group, None or False (got {group!r})")
    return Group(group) if dist.get_world_size(group) > 1 else Alone()
