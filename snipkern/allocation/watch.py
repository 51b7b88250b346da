"""Which layer's outputs feed which layer's inputs, seen while the model runs.

Functions that torch tensors go through are watched during one forward pass (``TorchFunctionMode``), whatever Python
does around them: no symbolic tracing, no assumption about modules. A tensor made by a pooled layer carries where its
channels come from; activations, norms and pooling keep them, additions unite them, concatenations join them, flattening
repeats them, recurrent layers make hidden units of them. After anything else the origin is *unknown*. Tensors that no
pooled layer made come from outside and are alive everywhere.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from snipkern.allocation import recurrent
from snipkern.allocation.channels import Channels, Outputs, Outside, Unknown, united
from snipkern.allocation.following import Given, Origin, follow, passed_on, tensors
from snipkern.allocation.functions import CALL, CELLS, LAYERS, LOOKUPS, RECURRENT
from snipkern.allocation.graph import Graph
from snipkern.nn.recurrent import SparseRecurrent
from snipkern.nn.sparse import SparseWeight
from snipkern.parallel.shards import is_sharded
from snipkern.pool import Prunable
from snipkern.scoring.gradients import LossFn, default_loss

__all__ = ["Watch", "watching"]


class Watch(TorchFunctionMode):
    """Notes the graph of what runs inside it.

    Args:
        pool: What is pooled.

    Attributes:
        graph: What was seen.
        scattered: Whether a layer computed with a part of its weight on each rank (tensor parallelism): tensors change
            hands there in ways that nobody sees, and the graph says nothing.
        failed: What went wrong while watching, if anything did; then the graph is empty.
    """

    def __init__(self, pool: Sequence[Prunable]) -> None:
        super().__init__()
        self.graph = Graph()
        self.scattered = False
        self.failed: str | None = None
        self._pool = pool
        self._names = {id(entry.parameter): entry.fqn for entry in pool}
        self._sharded = any(is_sharded(entry.parameter) for entry in pool)
        # Of what comes from pooled layers, and None of what else has a gradient.
        self._origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # Of recurrent layers' last outputs, those of each layer and direction.
        self._states: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._made: list[Channels] = []
        # Sparse modules are watched from outside: what they call is their own business.
        self._in_layer = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.failed or self._in_layer:
            return func(*args, **kwargs)
        given: list[Given] = []
        with self._giving_up():
            # With shapes as they are before the call: some functions change them in place.
            given = [(t, self._known(t), tuple(t.shape)) for t in tensors((*args, *kwargs.values()))]
        out = func(*args, **kwargs)
        with self._giving_up():
            if not self.failed:
                self._note(getattr(func, "__name__", ""), args, kwargs, given, out)
        return out

    @contextlib.contextmanager
    def _giving_up(self) -> Generator[None]:
        """Whatever a model does, to look at it must not stop it: then nothing is known of it."""
        try:
            yield
        except Exception as error:
            self.failed = repr(error)  # an error itself would hold on to tensors
            self.graph.forget()

    def _note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[Given], out: Any) -> None:
        """Where the results of a function come from."""
        results = tensors(out if isinstance(out, (tuple, list)) else (out,))
        if name == "__setitem__":  # returns nothing: what it changes is its first argument
            results = [given[0][0]]
        if not results:
            return
        # Back from packed sequences, whose examples change places, or from one without a batch.
        if (name == "index_select" or (name == "squeeze" and args[1:] == (1,))) and args[0] in self._states:
            self._states[results[0]] = self._states[args[0]]
        found = self._recurrent(name, args, given, results) if name in RECURRENT or name in CELLS else None
        self._come(results, found or [self._origin(name, args, kwargs, given, results)] * len(results))

    def _come(self, results: Sequence[Tensor], origins: Sequence[Origin | None]) -> None:
        """Notes where results come from."""
        for result, origin in zip(results, origins, strict=True):
            outside = origin is None or isinstance(origin.channels, Outside)
            if outside and result.grad_fn is None:
                self._origins.pop(result, None)
            elif result.is_floating_point() or result.is_complex():
                self._origins[result] = None if outside else origin

    def _known(self, tensor: Tensor) -> Origin | None:
        """Where a tensor comes from.

        What has a gradient, and no function that was seen gave it one (but a ``torch.autograd.Function`` did, say, or a
        view that was written to), may come from anything before.
        """
        if tensor.grad_fn is not None and tensor not in self._origins:
            same = passed_on(tensor, self._origins) if self._sharded else None
            if same is None:
                self.graph.used += self._made
                self._made.clear()  # they stay used
            self._origins[tensor] = None if same is None else self._origins[same]
        return self._origins.get(tensor)

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
        if any(name in table for table in (LAYERS, LOOKUPS, RECURRENT, CELLS)):  # not pooled: dense
            self.graph.used += known
            return None
        origin = self._of_state(name, args) or follow(name, args, kwargs, given, results) or Origin(Unknown(), 0)
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
        self.graph.feed(pooled, channels)
        self.graph.groups[pooled] = groups
        outputs = Outputs(shape[0], pooled)
        self._made.append(outputs)
        return Origin(outputs, dim)

    def _recurrent(
        self, name: str, args: Sequence[Any], given: list[Given], results: list[Tensor]
    ) -> list[Origin | None] | None:
        """Of what a recurrent layer or cell returned; None: nothing of it is pooled."""
        known = [origin.channels for _, origin, _ in given if origin is not None]
        return self._ran(recurrent.called(name, args), known, results, cell=name in CELLS)

    def _ran(
        self, call: recurrent.Call, known: list[Channels], results: Sequence[Tensor], cell: bool
    ) -> list[Origin | None] | None:
        heard: list[Channels] = []

        def layer(pooled: str, channels: Channels) -> None:
            self.graph.feed(pooled, channels)
            heard.append(channels)

        found = recurrent.run(call, self._name, self._origins, layer)
        if found is None:
            return None
        outputs, states, units = found
        self._made += [*outputs, *states, *units]
        for step in itertools.chain.from_iterable(call.layers):
            names = [None if weight is None else self._name(weight) for weight in (step.ih, step.hh, step.hr)]
            if names[1] is not None:
                self.graph.own[names[1]] = {other for other in names if other is not None}
            if None in names[: 2 if step.hr is None else 3]:  # a dense weight reads everything
                self.graph.used += [*known, *states, *units]
        if any(isinstance(channels, (Unknown, Outside)) for channels in heard):
            self.graph.used += known
        if cell:
            return [
                Origin(channels[0], result.dim() - 1)
                for channels, result in zip((states, units), results, strict=False)
            ]
        last = [outputs, states, units][: len(results)]
        if not all(isinstance(channels, Outside) for channels in states):
            self._states[results[1]] = states
        return [Origin(united(channels), result.dim() - 1) for channels, result in zip(last, results, strict=True)]

    def _of_state(self, name: str, args: Sequence[Any]) -> Origin | None:
        """One layer's last outputs, taken by number from those of all."""
        if name != "__getitem__" or not isinstance(args[1], int) or args[0] not in self._states:
            return None
        states = self._states[args[0]]
        return Origin(states[args[1]], args[0].dim() - 2)

    @contextlib.contextmanager
    def sparse_modules(self, model: nn.Module) -> Generator[None]:
        """Watches the sparse modules of a model, pooled or not."""
        modules = [module for module in model.modules() if isinstance(module, (SparseWeight, SparseRecurrent))]
        handles = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in modules]
        handles += [m.register_forward_hook(self._leave, with_kwargs=True, prepend=True) for m in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._in_layer += 1
        with self._giving_up():
            for tensor in tensors((*args, *kwargs.values())):
                self._known(tensor)

    def _leave(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        with self._giving_up():
            if not self.failed:
                x = args[0] if args else kwargs["input"]
                if isinstance(module, SparseRecurrent):
                    hx = args[1] if len(args) > 1 else kwargs.get("hx")
                    self._note_sparse_recurrent(recurrent.called_sparse(module, x, hx), output)
                else:
                    self._note_sparse(module, x, output)
        self._in_layer -= 1  # what was called here was not watched either

    def _note_sparse(self, module: nn.Module, x: Tensor, output: Tensor) -> None:
        """Where the result of a sparse module comes from."""
        assert isinstance(module, SparseWeight)
        pooled = self._names.get(id(module.weight_values))
        if pooled is not None:
            self._origins[output] = self._layer(pooled, x, module.mask.shape, 1)
            return
        origin = self._origins.get(x)
        if origin is not None:
            self.graph.used.append(origin.channels)
        self._origins[output] = None

    def _note_sparse_recurrent(self, call: recurrent.Call, output: Any) -> None:
        """The same of a recurrent one."""
        given = [tensor for tensor in (call.x, call.state, call.cell) if tensor is not None]
        known = [origin.channels for origin in map(self._origins.get, given) if origin is not None]
        y, last = output
        results = tensors([y.data if isinstance(y, PackedSequence) else y, last])
        origins = self._ran(call, known, results, cell=False)
        if origins is None:
            self.graph.used += known
        self._come(results, origins or [None] * len(results))


def watching(model: nn.Module, pool: Sequence[Prunable], loss_fn: LossFn | None) -> tuple[Graph, LossFn]:
    """The same loss function, but watched in its first call, and the graph that it will have found then.

    Compiled models are not watched: nothing is traced in them. Of tensor parallel ones only the order of layers
    is seen. Calls without gradients are not watched.
    """
    loss = loss_fn or default_loss
    watch = Watch(pool)
    done = False
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        return watch.graph, loss

    def watched(model: nn.Module, batch: Any) -> Tensor:
        nonlocal done
        if done or not torch.is_grad_enabled():
            return loss(model, batch)
        done = True
        with watch, watch.sparse_modules(model):
            found = loss(model, batch)
        if watch.scattered:
            watch.graph.forget_channels()
        return found

    return watch.graph, watched
