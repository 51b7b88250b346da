"""What weights are multiplied with: sums of squares of the inputs that each of them sees while the model runs.

A weight is looked at as ``[parts, rows / parts, everything else]``: rows of one part see the same inputs. Parts are a
convolution's groups, and queries, keys and values of an attention's input projection; most weights have one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from snipkern.criteria.recurrent_inputs import recurrent_squares
from snipkern.criteria.squares import squares
from snipkern.nn.sparse_module import SparseModule
from snipkern.pool import Prunable

__all__ = ["Inputs", "spread"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# A parameter and the sums of squares, float64 [parts, everything else].
Seen = tuple[Tensor, Tensor]


class Inputs:
    """Sums of squares for the weights of a pool, over every call inside :meth:`watched`.

    Linear layers, convolutions, recurrent layers and cells, and attention are understood.
    """

    def __init__(self, model: nn.Module, pool: Sequence[Prunable]) -> None:
        self.model, self.pool = model, pool
        self.names = {id(entry.parameter): entry.fqn for entry in pool}
        self.sums: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """Hooks on all modules, compiled ones run as they were written."""
        handles = [module.register_forward_hook(self._hook, with_kwargs=True) for module in self.model.modules()]
        compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in self.model.modules())
        eager: Any = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
        try:
            with eager:
                yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _hook(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        for parameter, found in seen_by(module, args, kwargs, output):
            name = self.names.get(id(parameter))
            if name is not None:
                self.sums[name] = self.sums[name] + found if name in self.sums else found

    def checked(self, name: str) -> dict[str, Tensor]:
        """The sums of every weight, in the order of the pool.

        Raises:
            ValueError: For a weight whose inputs were not seen, or are not finite.
        """
        for entry in self.pool:
            found = self.sums.get(entry.fqn)
            kind = type(entry.module).__name__
            if found is None:
                raise ValueError(
                    f"{name}: the inputs of every pooled weight must be seen; leave this one out with filter_fn (got"
                    f" none for {entry.fqn!r}, of a {kind} that was not called or whose inputs nobody shows)"
                )
            if not bool(found.isfinite().all()):
                raise ValueError(f"{name}: inputs must be finite (got others for {entry.fqn!r})")
        return {entry.fqn: self.sums[entry.fqn] for entry in self.pool}


def spread(sums: Tensor, shape: torch.Size) -> Tensor:
    """Something of every part, for every weight; costs no memory for a single part."""
    parts = sums.shape[0]
    return sums[:, None].expand(parts, shape[0] // parts, *shape[1:]).reshape(shape)


def seen_by(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Iterator[Seen]:
    """What a call shows of the inputs of a module's weights."""
    if isinstance(module, nn.Linear):
        yield _parameter(module, "weight"), squares(_first(args, kwargs))[None]
    elif isinstance(module, CONVOLUTIONS):
        yield _parameter(module, "weight"), patch_squares(module, _first(args, kwargs))
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        for name, found in recurrent_squares(module, _first(args, kwargs), hx, output):
            yield _parameter(module, name), found[None]
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(module, args, kwargs)


def _parameter(module: nn.Module, name: str) -> Tensor:
    """What a module holds of a weight, by the dense module's name."""
    return module.values_of(name) if isinstance(module, SparseModule) else cast(Tensor, getattr(module, name))


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["input"]


def patch_squares(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Sums over samples and output positions, for each input channel and tap: ``[groups, channels, *kernel]``.

    No patches are made: samples are summed up first, then windows of that one sum.
    """
    dims = len(module.kernel_size)
    if x.dim() == dims + 1:
        x = x[None]
    total = torch.linalg.vector_norm(x, dim=0, dtype=torch.float64).square_()
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    total = F.pad(total[None], _padding(module), mode=mode)[0]
    for d, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=1
    ):
        # Each window goes to the end; what is at one place in all of them belongs to one tap.
        windows = total.unfold(d, dilation * (size - 1) + 1, stride)[..., ::dilation]
        total = windows.sum(d).movedim(-1, d)
    return total.view(module.groups, -1, *module.kernel_size)


def _padding(module: _ConvNd) -> list[int]:
    """As ``F.pad`` takes it: the last dimension first."""
    sides: list[int] = []
    for d, (size, dilation) in reversed(list(enumerate(zip(module.kernel_size, module.dilation, strict=True)))):
        if module.padding == "same":
            both = dilation * (size - 1)
            sides += [both // 2, both - both // 2]
        else:
            sides += [0, 0] if isinstance(module.padding, str) else [int(module.padding[d])] * 2
    return sides


def _attention(module: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Seen]:
    given = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs).arguments
    three = [squares(given[name]) for name in ("query", "key", "value")]
    if module.in_proj_weight is not None:  # pyright: ignore[reportUnnecessaryComparison]
        yield module.in_proj_weight, torch.stack(three)
    else:
        projections = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        yield from ((projection, found[None]) for projection, found in zip(projections, three, strict=True))
    # What the output projection sees is what comes out when it changes nothing.
    out = module.out_proj
    before = out.weight.data, None if out.bias is None else out.bias.data  # pyright: ignore[reportUnnecessaryComparison]
    try:
        out.weight.data = torch.eye(out.in_features, dtype=out.weight.dtype, device=out.weight.device)
        if before[1] is not None:
            out.bias.data = torch.zeros_like(before[1])
        attended, _ = module.forward(*args, **kwargs)
    finally:
        out.weight.data = before[0]
        if before[1] is not None:
            out.bias.data = before[1]
    yield out.weight, squares(attended)[None]
