"""Training steps of a GPT: schedule, weight decay, accumulation, clipping; what they cost in time and memory."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from gpt_parallel import Parallel
from gpt_text import Windows
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import snipkern as sk
from snipkern.topology import BaseTopology

__all__ = ["Learner", "Recipe", "TrainingError", "bytes_held", "parameter_groups", "rate"]

BETAS = (0.9, 0.95)
# The learning rate ends at this share of its peak.
FINAL_SHARE = 0.1
WARM_UP_TIMES = 3


class TrainingError(Exception):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the same for all that are compared.

    Attributes:
        steps, warm_up: Length of the training, and of the linear rise of the learning rate.
        lr: Its peak; it then falls along a cosine to a tenth.
        weight_decay: Of matrices, kept weights of sparse ones included; not of norms and embeddings.
        clip: Largest norm of the gradient.
        accumulate: Parts that each rank cuts its share of a batch into, to hold fewer activations.
        validation_batches: How many are held out to validate with.
    """

    steps: int
    warm_up: int
    lr: float
    weight_decay: float
    clip: float
    accumulate: int
    validation_batches: int


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step, counted from 0."""
    if step < recipe.warm_up:
        return recipe.lr * (step + 1) / recipe.warm_up
    progress = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.lr * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights of linear layers, which decay, and everything else.

    By module, not by dimension: the kept weights of a sparse layer are one-dimensional and decay as its weight did.
    """
    decayed = {module.weight_values if isinstance(module, sk.nn.SparseLinear) else module.weight
               for module in model.modules() if isinstance(module, nn.Linear)}  # fmt: skip
    rest = [parameter for parameter in model.parameters() if parameter not in decayed]
    matrices = [parameter for parameter in model.parameters() if parameter in decayed]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


@dataclass
class Learner:
    """A model in training, with its optimiser and its record.

    Attributes:
        name: Of this learner among those that are compared.
        model: Dense or pruned; under FSDP already sharded.
        bf16: Compute in bfloat16 where autocast does.
        losses, seconds: Of every step: mean training loss over all ranks, and time with data, optimiser and reductions.
        validation: Step -> mean loss on the held-out text.
    """

    name: str
    model: nn.Module
    recipe: Recipe
    windows: Windows
    parallel: Parallel
    bf16: bool = False
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = parameter_groups(self.model, self.recipe.weight_decay)
        # The fused step is torch's fastest, for dense and kept weights alike; it takes no shards on the CPU.
        fused = None if self.parallel.fsdp else True
        self.optimizer = torch.optim.AdamW(groups, lr=self.recipe.lr, betas=BETAS, fused=fused)
        self.wrapped = self.parallel.wrap(self.model)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross entropy of the next bytes."""
        device = self.parallel.device
        tokens, targets = (t.pin_memory() if device.type == "cuda" else t for t in batch)
        tokens, targets = (t.to(device, non_blocking=True) for t in (tokens, targets))
        with torch.autocast(device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            logits = self.wrapped(tokens)
        return F.cross_entropy(logits.float(), targets)

    def step(self, number: int) -> None:
        """One timed training step.

        Raises:
            TrainingError: If the loss is not finite.
        """
        start = time.perf_counter()
        self.wrapped.train()
        parts = self.recipe.accumulate
        total = torch.zeros((), device=self.parallel.device)
        for part in range(parts):
            mine = self.parallel.rank * parts + part
            batch = self.windows.training(number, mine, self.parallel.world * parts)
            with self.parallel.reducing(self.wrapped, part == parts - 1):
                loss = self.loss(batch) / parts
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.recipe, number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        mean = self.parallel.mean(total)
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(mean)
        if not math.isfinite(mean):
            raise TrainingError(f"step {number + 1}: the loss of {self.name} must stay finite (got {mean}): lower --lr")

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Notes the mean loss on the held-out batches."""
        self.wrapped.eval()
        batches = self.windows.held_out(self.recipe.validation_batches, self.parallel.rank, self.parallel.world)
        found = torch.stack([self.loss(batch).double() for batch in batches])
        self.validation[step] = self.parallel.mean(found.mean())

    def milliseconds(self) -> float:
        """Median time of a step, after the first few."""
        return 1000 * statistics.median(self.seconds[WARM_UP_TIMES:] or self.seconds)

    def tokens_per_second(self) -> float:
        """Over all ranks, by the median step."""
        return 1000 * self.windows.batch * self.windows.context / self.milliseconds()


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def index_bytes(topology: BaseTopology) -> int:
    """Bytes of the index arrays and packed masks that sparse kernels walk: the price of not storing zeros."""
    return sum(tensor.nbytes for tensor in topology.held(torch.device("cpu")))


def bytes_held(learner: Learner) -> dict[str, int]:
    """Bytes that this rank holds through a step for the model, counted on the tensors; activations come on top."""
    parameters = [local(parameter) for parameter in learner.model.parameters()]
    state = [value for entry in learner.optimizer.state.values() for value in entry.values()]
    layers = [module for module in learner.model.modules() if isinstance(module, sk.nn.SparseLinear)]
    size = sum(parameter.nbytes for parameter in parameters)
    return {
        "parameters": size,
        # A step frees its gradients when it is done; each parameter has one of its own size until then.
        "gradients": size,
        "optimizer": sum(local(value).nbytes for value in state if isinstance(value, Tensor)),
        "index": sum(index_bytes(layer.topology) for layer in layers),
    }
