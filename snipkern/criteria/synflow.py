"""Synaptic flow: data-free, in many rounds, so that no layer dies before its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from rich.progress import track
from torch import Tensor

from snipkern.criteria.base import Criterion, Scores
from snipkern.criteria.context import Context
from snipkern.criteria.flow import Flow, seen_inputs
from snipkern.criteria.rounds import counts, nested, require_rounds
from snipkern.masks import Mask

__all__ = ["SynFlow"]


@dataclass(frozen=True)
class SynFlow(Criterion):
    """``|w * dR/dw|`` of the synaptic flow ``R = 1^T (|W_L| ... |W_1|) 1``, pruned in rounds at an exponential pace.

    The flow is the sum of the outputs for an input of ones, in the network whose weights, biases and gains are replaced
    by their absolute values and which is made linear: activations (ReLU, GELU, tanh, ...) become the identity, which
    ReLU is on such a network; a BatchNorm in eval mode is the scaling and shift that it is, with absolute values; norms
    over features (LayerNorm, GroupNorm, RMSNorm, InstanceNorm), which would make the flow independent of all weights
    before them, keep their gains and biases only. Gates (sigmoid, softmax) and recurrent cells stay as they are.

    Computed in float64, where products of many layers neither overflow nor vanish; where even those do, inputs and
    outputs are scaled by a power of two, which all scores have in common. Scores are divided by the largest one.

    Args:
        rounds: How many; one alone prunes whole layers at high sparsities, which the rounds are there against.
        input_shape: Of one input, without the batch: ``(3, 32, 32)``. None: as the loader's first batch has it. The
            model is then called as ``loss_fn`` (or the default) calls it, mappings included, with ones in place of all
            floating point tensors; integers, such as token ids, stay as they are. A model that takes batches of one
            size alone is given ones of the whole batch's shape.

    Source: Tanaka, Kunin, Yamins, Ganguli: Pruning neural networks without any data by iteratively conserving synaptic
    flow, NeurIPS 2020, equation 1 and algorithm 1.

    Cost: one forward and backward pass for one input (or batch) in float64 for each round; a float64 copy of the model,
    gradients and a float32 score for each pooled weight.
    """

    name: ClassVar[str] = "synflow"
    needs_data: ClassVar[bool] = False
    rounds: int = 100
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_rounds(self.name, self.rounds)
        shape: Any = self.input_shape
        if shape is None:
            return
        sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
        if not sizes or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ValueError(f"synflow: input_shape must be positive sizes without the batch's (got {shape!r})")
        object.__setattr__(self, "input_shape", sizes)

    def scores(self, on: Context) -> Scores:
        if self.input_shape is not None:
            args: tuple[Any, ...] = (torch.ones(1, *self.input_shape, device=on.pool[0].parameter.device),)
            kwargs: dict[str, Any] = {}
            on.look()
        elif on.loader is None:
            raise ValueError("synflow: input_shape must be given where there is no loader to see it from (got None)")
        else:
            args, kwargs = seen_inputs(on)
        flow = Flow(on.model, on.pool, args, kwargs)
        masks = {entry.fqn: Mask.full(entry.parameter.shape) for entry in on.pool}
        found = Scores({})
        left = counts(on.left, on.kept, self.rounds)
        for i, keep in enumerate(track(left, "synaptic flow", transient=True, disable=not on.progress)):
            with on.evaluating():
                scores = flow.scores(masks)
            found = nested(_normalised({name: on.averaged(score) for name, score in scores.items()}, i == 0), masks)
            if i + 1 < len(left):
                masks = on.choose(found, keep)
        return found


def _normalised(scores: Mapping[str, Tensor], first: bool) -> dict[str, Tensor]:
    """Divided by the largest of all."""
    largest = max(float(score.max()) for score in scores.values() if score.numel())
    if largest == 0 and first:
        raise ValueError(
            "synflow: something must flow from the inputs to the outputs (got none; is a layer all zeros?)"
        )
    return {name: (score / largest if largest else score).float() for name, score in scores.items()}
