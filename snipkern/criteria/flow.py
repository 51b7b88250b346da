"""The synaptic flow of a network: its linear part with absolute values, fed with ones, in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from snipkern.criteria.context import Context
from snipkern.masks import Mask
from snipkern.pool import Prunable
from snipkern.scoring.gradients import describe, first_of
from snipkern.scoring.stateless import called_with, named

__all__ = ["Flow", "Linearised", "seen_inputs"]

#: What is the identity in a linear network. Gates (sigmoid, softmax) are not: two flows would be multiplied.
ACTIVATIONS = frozenset(
    """relu relu_ relu6 gelu silu elu elu_ selu selu_ celu celu_ mish leaky_relu leaky_relu_ hardswish hardtanh
    hardtanh_ tanh tanh_ softplus threshold threshold_ prelu rrelu rrelu_ softsign tanhshrink
    local_response_norm""".split()
)
#: Powers of two to scale inputs and outputs by, one after the other, while the flow overflows or vanishes.
DOWN, UP = (-500, -960), (500, 960)
#: Flows below lose digits: their parts lie among float64's denormals.
LEAST = 2.0**-600


class Flow:
    """Flows through a model under masks.

    Args:
        model: Dense.
        pool: What is scored.
        args, kwargs: What the model is called with; floating point tensors become ones.
    """

    def __init__(
        self, model: nn.Module, pool: Sequence[Prunable], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.args, self.kwargs = tuple(args), dict(kwargs)
        self.state = {name: _absolute(tensor) for name, tensor in named(model)}
        self.shifts = {name for name in self.state if name.rpartition(".")[2].startswith("bias")}
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module._buffers.get("running_mean") is not None:
                self._as_scaling(f"{name}." if name else "", module)
        self.names = [entry.fqn for entry in pool]

    def _as_scaling(self, prefix: str, norm: Any) -> None:
        """A norm with running statistics as ``|scale| x + |shift|``."""
        mean, deviation = norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt()
        if norm.affine:
            shift = norm.bias.detach().double() - mean * norm.weight.detach().double() / deviation
            self.state[prefix + "bias"] = shift.abs()
            self.state[prefix + "running_mean"] = torch.zeros_like(mean)
        else:
            self.state[prefix + "running_mean"] = -mean.abs()
            self.shifts.add(prefix + "running_mean")

    def scores(self, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
        """``|w| * dR/d|w|`` of what masks keep, zero of the rest, up to a factor that all have in common; float64.

        Raises:
            ValueError: Where the flow is not finite at any scale.
        """
        weights = {name: self.state[name] * masks[name].to_dense(self.state[name].device) for name in self.names}
        flow, scores = first = self._at(weights, 0)
        for exponent in () if _is_precise(flow, scores) else UP if flow <= LEAST else DOWN:
            flow, scores = self._at(weights, exponent)
            if _is_precise(flow, scores):
                break
        else:
            flow, scores = first  # precise at once, or nothing flows
        if not _is_finite(flow, scores):
            raise ValueError("synflow: the flow through the network must fit into float64 (got one that is not finite)")
        return scores

    def _at(self, weights: Mapping[str, Tensor], exponent: int) -> tuple[float, dict[str, Tensor]]:
        """Flow and scores with inputs, shifts and outputs scaled by a power of two.

        The network is homogeneous in inputs and shifts together: what is between them and the outputs grows or shrinks
        as a whole, which shares the range of float64 between the forward and the backward pass.
        """
        scale = 2.0**exponent
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        shifts = {name: self.state[name] * scale for name in self.shifts}
        args, kwargs = tree_map(lambda value: _ones(value, scale), (self.args, self.kwargs))
        with _double(), Linearised():
            try:
                output = called_with(self.model, {**self.state, **shifts, **leaves}, args, kwargs)
            except Exception as error:  # of any kind: the model is anybody's
                given = [describe(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
                raise ValueError(
                    "synflow: the model must accept ones in float64 as its inputs; without input_shape they have the"
                    f" shape of the loader's first batch (got {type(error).__name__} for {', '.join(given)}: {error})"
                ) from error
            flow = outputs_of(output).sum() * scale
        found: Any = torch.autograd.grad(flow, list(leaves.values()), allow_unused=True)
        scores = {
            name: torch.zeros_like(weight) if gradient is None else (weight * gradient).abs()
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
        }
        return float(flow.detach()), scores


class Linearised(TorchFunctionMode):
    """Runs activations as the identity and norms over features as their gains and biases alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ACTIVATIONS:
            return args[0] if args else kwargs["input"]
        if name in NORMS:
            found = NORMS[name](*args, **kwargs)
            return func(*args, **kwargs) if found is None else found
        return func(*args, **kwargs)


def _over_features(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    return _affine(input, weight, bias)


def _root_mean_square(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return _affine(input, weight, None)


def _over_groups(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    return _affine(input, _per_channel(weight, input), _per_channel(bias, input))


def _over_the_batch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *settings: Any,
    **others: Any,
) -> Tensor | None:
    """With running statistics it is linear already: None."""
    if not (training or others.get("use_input_stats")) and running_mean is not None:
        return None
    return _affine(input, _per_channel(weight, input), _per_channel(bias, input))


def _over_each(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    *settings: Any,
    **others: Any,
) -> Tensor | None:
    return _over_the_batch(input, running_mean, running_var, weight, bias, use_input_stats)


NORMS: dict[str, Callable[..., Tensor | None]] = {
    "layer_norm": _over_features,
    "rms_norm": _root_mean_square,
    "group_norm": _over_groups,
    "batch_norm": _over_the_batch,
    "instance_norm": _over_each,
}


def seen_inputs(on: Context) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the loss calls the model with for the loader's first batch; of a single tensor, for the first input of it,
    if the model takes a batch of one.

    Raises:
        ValueError: Where the loss doesn't call the model.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    with on.evaluating():
        handle = on.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            (batch,) = first_of(on.loader, 1)
            on.loss_fn(on.model, batch)
        finally:
            handle.remove()
        if not calls:
            raise ValueError(
                "synflow: loss_fn must call the model, to see its input; else pass input_shape (got no call)"
            )
        args, kwargs = calls[0]
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if len(tensors) == 1 and len(args) == 1 and args[0] is tensors[0] and tensors[0].dim() > 1:
            first = (tensors[0][:1],)
            # A model may have the size of its batches written in: many equal inputs have many times the flow of one.
            with contextlib.suppress(Exception), torch.no_grad():
                on.model(*first, **kwargs)
                args = first
    return args, kwargs


def outputs_of(output: Any) -> Tensor:
    """What flows out: a tensor, the logits of a mapping, or else the first floating point tensor that is no loss."""
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    for value in _but_losses(output):
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                return leaf
    raise ValueError(f"synflow: the model must return floating point tensors (got {describe(output)})")


def _but_losses(output: Any) -> Iterator[Any]:
    if isinstance(output, Mapping):
        yield from (value for key, value in output.items() if key != "loss")
    else:
        yield output


def _absolute(tensor: Tensor) -> Tensor:
    return tensor.detach().double().abs() if tensor.is_floating_point() else tensor


def _ones(value: Any, scale: float) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.full_like(value.detach(), scale, dtype=torch.float64)
    return value


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _per_channel(vector: Tensor | None, x: Tensor) -> Tensor | None:
    return None if vector is None else vector.view(-1, *(1,) * (x.dim() - 2))


def _is_finite(flow: float, scores: Mapping[str, Tensor]) -> bool:
    return abs(flow) < float("inf") and all(bool(score.isfinite().all()) for score in scores.values())


def _is_precise(flow: float, scores: Mapping[str, Tensor]) -> bool:
    return flow > LEAST and _is_finite(flow, scores)


@contextlib.contextmanager
def _double() -> Generator[None]:
    """What a forward pass makes by itself is in float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
