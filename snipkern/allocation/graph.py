"""Which layer's outputs feed which layer's inputs, seen while the model runs.

Functions that torch tensors go through are watched during one forward pass (``TorchFunctionMode``), whatever Python
does around them: no symbolic tracing, no assumption about modules. A tensor made by a pooled layer carries where its
channels come from; activations, norms and pooling keep them, additions unite them, concatenations join them, flattening
repeats them. After anything else the origin is *unknown*. Tensors that no pooled layer made come from outside and are
alive everywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from snipkern.allocation.channels import Channels, Outputs, Outside, Unknown, concatenated
from snipkern.allocation.functions import CALL, KEEPING, LAYERS, LOOKUPS, REDUCING, RESHAPING, UNITING
from snipkern.allocation.origins import Given, Origin, reduced, reshaped, tensors, united_of
from snipkern.nn.sparse import SparseWeight
from snipkern.parallel.shards import is_sharded
from snipkern.pool import Prunable
from snipkern.scoring.gradients import LossFn, default_loss

__all__ = ["Graph", "Watch", "watching"]


@dataclass
class Graph:
    """What feeds each pooled layer.

    Attributes:
        inputs: Parameter name -> channels of its input, of each call; in the order of first calls.
        groups: Parameter name -> groups of its convolution.
        used: Channels that something outside the pool may read: losses, unknown functions.
    """

    inputs: dict[str, list[Channels]] = field(default_factory=dict[str, list[Channels]])
    groups: dict[str, int] = field(default_factory=dict[str, int])
    used: list[Channels] = field(default_factory=list[Channels])

    def forget_channels(self) -> None:
        """Leaves nothing but the order of layers."""
        for calls in self.inputs.values():
            calls.clear()
        self.used.clear()

    def order(self, names: Sequence[str]) -> list[str]:
        """The names in forward order; those that were not seen come last."""
        place = {name: i for i, name in enumerate(self.inputs)}
        return sorted(names, key=lambda name: place.get(name, len(place)))


class Watch(TorchFunctionMode):
    """Notes the graph of what runs inside it.

    Args:
        pool: What is pooled.

    Attributes:
        graph: What was seen.
        scattered: Whether a layer computed with a part of its weight on each rank (tensor parallelism): tensors change
            hands there in ways that nobody sees, and the graph says nothing.
    """

    def __init__(self, pool: Sequence[Prunable]) -> None:
        super().__init__()
        self.graph = Graph()
        self.scattered = False
        self._pool = pool
        self._names = {id(entry.parameter): entry.fqn for entry in pool}
        self._sharded = any(is_sharded(entry.parameter) for entry in pool)
        # Of what comes from pooled layers, and None of what else has a gradient.
        self._origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._made: list[Channels] = []
        # Sparse modules are watched from outside: what they call is their own business.
        self._in_layer = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._in_layer:
            return func(*args, **kwargs)
        # With shapes as they are before the call: some functions change them in place.
        given = [(t, self._known(t), tuple(t.shape)) for t in tensors((*args, *kwargs.values()))]
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        results = tensors(out if isinstance(out, (tuple, list)) else (out,))
        if name == "__setitem__":  # returns nothing: what it changes is its first argument
            results = [given[0][0]]
        if results:
            origin = self._origin(name, args, kwargs, given, results)
            outside = origin is None or isinstance(origin.channels, Outside)
            for result in results:
                if outside and result.grad_fn is None:
                    self._origins.pop(result, None)
                else:
                    self._origins[result] = None if outside else origin
        return out

    def _known(self, tensor: Tensor) -> Origin | None:
        """Where a tensor comes from.

        What has a gradient, and no function that was seen gave it one (but a ``torch.autograd.Function`` did, say, or a
        view that was written to), may come from anything before.
        """
        if tensor.grad_fn is not None and tensor not in self._origins:
            same = self._passed_on(tensor)
            if same is None:
                self.graph.used += self._made
                self._made.clear()  # they stay used
            self._origins[tensor] = None if same is None else self._origins[same]
        return self._origins.get(tensor)

    def _passed_on(self, tensor: Tensor) -> Tensor | None:
        """What ``fully_shard`` hands to a module as this tensor, by an identity function of its own; else None."""
        function = tensor.grad_fn
        if not self._sharded or function is None or "RegisterPostBackwardFunction" not in function.name():
            return None
        before = [made for made, _ in function.next_functions]
        for known in self._origins:
            same = known.data_ptr() == tensor.data_ptr() and known.shape == tensor.shape
            if same and any(known.grad_fn is made for made in before):
                return known
        return None

    def _origin(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Given], results: list[Tensor]
    ) -> Origin | None:
        """Of what a function returned; None: from outside."""
        known = [origin.channels for _, origin, _ in given if origin is not None]
        if name in LAYERS:
            call: dict[str, Any] = {**dict(zip(CALL, args, strict=False)), **kwargs}
            self.scattered |= is_sharded(call["weight"])
            pooled = self._name(call["weight"])
            if pooled is not None:
                groups = int(call.get("groups", 1)) if name != "linear" else 1
                return self._layer(pooled, call["input"], call["weight"].shape, groups)
        if not known:
            return None
        if name in LAYERS or name in LOOKUPS:  # not pooled: dense
            self.graph.used += known
            return None
        origin = self._follow(name, args, kwargs, given, results) or Origin(Unknown(), 0)
        if isinstance(origin.channels, (Unknown, Outside)):
            self.graph.used += known  # by whom can't be told any more
        return origin

    def _name(self, weight: Tensor) -> str | None:
        """Of a weight that a layer computes with; None for one that is not pooled."""
        if id(weight) in self._names:
            return self._names[id(weight)]
        if not self._sharded:
            return None
        # fully_shard puts whole parameters in the shards' places while a module computes.
        return next((entry.fqn for entry in self._pool if entry.module._parameters[entry.name] is weight), None)

    def _layer(self, pooled: str, x: Tensor, shape: Sequence[int], groups: int) -> Origin:
        """Of what a pooled layer with a weight of this shape makes."""
        dim = x.dim() - (len(shape) - 1)
        origin = self._origins.get(x)
        channels: Channels = Outside(x.shape[dim])
        if origin is not None:
            channels = origin.channels if origin.dim == dim else Unknown()
            if origin.dim != dim:
                self.graph.used.append(origin.channels)
        self.graph.inputs.setdefault(pooled, []).append(channels)
        self.graph.groups[pooled] = groups
        outputs = Outputs(shape[0], pooled)
        self._made.append(outputs)
        return Origin(outputs, dim)

    @contextlib.contextmanager
    def sparse_modules(self, model: nn.Module) -> Generator[None]:
        """Watches the sparse modules of a model, pooled or not."""
        handles: list[RemovableHandle] = []
        for module in model.modules():
            if isinstance(module, SparseWeight):
                handles.append(module.register_forward_pre_hook(self._enter))
                handles.append(module.register_forward_hook(self._leave, prepend=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if args:
            self._known(args[0])
            self._in_layer += 1

    def _leave(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not args:  # called by keyword: not followed
            return
        self._in_layer -= 1
        assert isinstance(module, SparseWeight)
        pooled = self._names.get(id(module.weight_values))
        if pooled is not None:
            self._origins[output] = self._layer(pooled, args[0], module.mask.shape, 1)
            return
        origin = self._origins.get(args[0])
        if origin is not None:
            self.graph.used.append(origin.channels)
        self._origins[output] = None

    def _follow(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Given], results: list[Tensor]
    ) -> Origin | None:
        """Where the result of a function of known tensors comes from; None: nobody knows."""
        if len(results) != 1:
            return None
        out = results[0]
        if name in UNITING:
            return united_of(given, out)
        if name == "cat" or name == "concat":
            return self._joined(args, kwargs, out)
        _, origin, shape = given[0]
        if sum(other is not None for _, other, _ in given) > 1:
            return None  # such as a power with a computed exponent
        if origin is None or isinstance(origin.channels, Unknown):
            return None
        if name in KEEPING:
            same = out.dim() == len(shape) and out.shape[origin.dim] == shape[origin.dim]
            return origin if same else None
        if name in RESHAPING:
            return reshaped(origin, shape, tuple(out.shape))
        if name == "permute":
            dims = args[1:] or tuple(kwargs.values())
            dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
            return Origin(origin.channels, [d % len(shape) for d in dims].index(origin.dim))
        if name in ("transpose", "swapaxes", "transpose_"):
            a, b = (d % len(shape) for d in (*args[1:], *kwargs.values()))
            return Origin(origin.channels, {a: b, b: a}.get(origin.dim, origin.dim))
        if name in REDUCING:
            return reduced(origin, len(shape), args, kwargs, out)
        return None

    def _joined(self, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> Origin | None:
        parts = args[0] if args else kwargs["tensors"]
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
        origins = [self._origins.get(part) for part in parts]
        if any(origin is not None and origin.dim != dim for origin in origins):
            return None
        return Origin(
            concatenated(
                [Outside(part.shape[dim]) if o is None else o.channels for part, o in zip(parts, origins, strict=True)]
            ),
            dim,
        )


def watching(model: nn.Module, pool: Sequence[Prunable], loss_fn: LossFn | None) -> tuple[Graph, LossFn]:
    """The same loss function, but watched in its first call, and the graph that it will have found then.

    Compiled models are not watched: nothing is traced in them. Of tensor parallel ones only the order of layers
    is seen.
    """
    loss = loss_fn or default_loss
    watch = Watch(pool)
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        return watch.graph, loss

    def watched(model: nn.Module, batch: Any) -> Tensor:
        if watch.graph.inputs:
            return loss(model, batch)
        with watch, watch.sparse_modules(model):
            found = loss(model, batch)
        if watch.scattered:
            watch.graph.forget_channels()
        return found

    return watch.graph, watched
