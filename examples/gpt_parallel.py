"""One process or several under torchrun: replicas (DDP) or shards (FSDP2) of a model, with gloo or, on GPUs, NCCL."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Parallel", "ParallelError"]


class ParallelError(Exception):
    """The processes are not what was asked for; the message says why."""


class Parallel:
    """This process among those that train together.

    Attributes:
        rank, world: Its number, and how many there are; 0 and 1 without torchrun.
        fsdp: Whether models are sharded over the ranks; replicated otherwise.
        device: Where this process computes; of several on CUDA, each has a device of its own.
    """

    def __init__(self, fsdp: bool = False, device: str = "cpu") -> None:
        self.started = "WORLD_SIZE" in os.environ
        if fsdp and not self.started:
            raise ParallelError("--fsdp shards over processes: start it with torchrun --nproc-per-node N")
        self.device = torch.device(device)
        if self.started and self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        if self.started:
            # Masks and names are compared on the CPU, gradients averaged where they are.
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if self.started else (0, 1)
        self.fsdp = fsdp

    def close(self) -> None:
        """Leaves the group of processes."""
        if self.started:
            dist.destroy_process_group()

    def __str__(self) -> str:
        if self.world == 1 and not self.fsdp:
            return "one process"
        count = "1 process" if self.world == 1 else f"{self.world} processes"
        return f"{count}, {'sharded (FSDP2)' if self.fsdp else 'replicated (DDP)'}"

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def shard_(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        """Shards a model over the ranks: each block on its own, so that one at a time is gathered, then the rest."""
        for parameter in model.parameters():
            if not parameter.numel():  # of a layer that keeps nothing: fully_shard can't reduce empty gradients
                parameter.requires_grad_(False)
        mesh = dist.device_mesh.init_device_mesh(self.device.type, (self.world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in training: a replica that averages gradients, or the model itself."""
        return DistributedDataParallel(model) if self.world > 1 and not self.fsdp else model

    @contextlib.contextmanager
    def reducing(self, wrapped: nn.Module, reduce: bool) -> Generator[None]:
        """Averages gradients over the ranks in the backward passes within, or leaves that for a later one."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(reduce)
        waiting = isinstance(wrapped, DistributedDataParallel) and not reduce
        with wrapped.no_sync() if waiting else contextlib.nullcontext():
            yield

    def mean(self, value: Tensor) -> float:
        """Mean over the ranks of a scalar."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return float(value) / self.world

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.started:
            dist.all_reduce(torch.zeros(()))
