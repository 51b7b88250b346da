"""Options of pruning that several calls take, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from snipkern.engine.choice import ENGINES
from snipkern.layout import Layout, one_layout, require_block
from snipkern.masks import Mask

MEMORY = ("plain", "stream")
PRESETS = ("paper",)

P = ParamSpec("P")
R = TypeVar("R")


def with_arguments_of(pattern: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Decorates a function that hands all its arguments on to another: it has that one's signature then, for people
    and for type checkers.
    """

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        own = inspect.signature(function).return_annotation
        vars(function)["__signature__"] = inspect.signature(pattern).replace(return_annotation=own)
        return function

    return decorate


def bound(pattern: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name, with defaults.

    Raises:
        TypeError: For arguments that the function doesn't take.
    """
    try:
        found = inspect.signature(pattern).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"prune: {error}") from None
    found.apply_defaults()
    return found.arguments


def keep_of(keep: float | None, sparsity: float | None) -> float:
    """The fraction or number to keep, of two ways to ask for it."""
    if (keep is None) == (sparsity is None):
        raise ValueError(f"prune: give either keep or sparsity (got keep={keep!r}, sparsity={sparsity!r})")
    if keep is not None:
        return keep
    assert sparsity is not None
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise ValueError(f"prune: sparsity must be a fraction in [0, 1) (got {sparsity!r})")
    return 1.0 - sparsity


def block_of(engine: str, block: tuple[int, int] | None) -> tuple[int, int] | None:
    """The block, after a check of it and of the engine."""
    one_of("engine", engine, ENGINES)
    if engine == "cover" and block is not None:
        raise ValueError(f"prune: engine='cover' is for single weights, without a block (got block={block!r})")
    if block is not None:
        return require_block("prune", block)
    if engine == "bsr":
        raise ValueError("prune: engine='bsr' needs block=(height, width) (got block=None)")
    return None


def layouts_of(
    engine: str, block: tuple[int, int] | None, layouts: Mapping[str, Layout], masks: Mapping[str, Mask]
) -> None:
    """A check of layouts that are given for some masks."""
    one_of("engine", engine, ENGINES)
    if engine == "cover" and layouts:
        raise ValueError("prune: engine='cover' is for single weights, without layouts (got some)")
    one_layout("sparsify_", block, next(iter(layouts.values()), None))
    for name in layouts:
        if name not in masks:
            raise ValueError(f"sparsify_: layouts must be of parameters that have a mask (got {name!r})")


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Checks a choice between names."""
    if value not in allowed:
        raise ValueError(f"prune: {name} must be one of {', '.join(allowed)} (got {value!r})")


def preset_of(preset: str | None, batches: int, criterion: str) -> bool:
    """Whether to do as the paper's code does, after a check of what goes with it."""
    if preset is None:
        return False
    one_of("preset", preset, PRESETS)
    if batches != 1:
        raise ValueError(f"prune: preset='paper' scores one batch (got batches={batches!r})")
    if criterion != "snip":
        raise ValueError(f"prune: preset='paper' is one of criterion='snip' (got criterion={criterion!r})")
    return True


def loader_of(loader: object, criterion: str, needs_data: bool) -> None:
    """Checks that there is data where it is needed."""
    if loader is None and needs_data:
        raise ValueError(f"prune: loader must be given for criterion={criterion!r} (got None)")


def reread_of(op: str, loader: object, each: str) -> None:
    """Checks a loader that is gone through several times: an iterator shows its batches once."""
    if isinstance(loader, Iterator):  # to ask iter() whether it is one would draw random numbers
        raise ValueError(
            f"{op}: loader must be iterable once for each {each}, such as a list (got {type(loader).__name__})"
        )


def sharded_of(sharded: bool, paper: bool, criterion: str, can_be: bool) -> None:
    """Checks what goes with a sharded model."""
    if sharded and paper:
        raise ValueError("prune: preset must be None for a sharded model; prune before fully_shard (got 'paper')")
    if sharded and not can_be:
        raise ValueError(
            f"prune: criterion={criterion!r} can't score a sharded model; prune before fully_shard (got a sharded one)"
        )


def memory_of(
    memory: str, batches: int, global_only: str | None, criterion: str, streams: bool, needs_data: bool
) -> None:
    """Checks how gradients are to be held; ``global_only`` is what else was asked for than the global selection."""
    one_of("memory", memory, MEMORY)
    if memory == "plain":
        return
    if not streams:
        raise ValueError(f"prune: memory='stream' goes with criterion='snip' (got criterion={criterion!r})")
    if not needs_data:
        return  # there are no gradients
    if batches != 1:
        # The mean gradient of several is complete only when all are summed up: it would have to be kept.
        raise ValueError(f"prune: memory='stream' scores one batch; make it larger instead (got batches={batches!r})")
    if global_only:
        raise ValueError(f"prune: memory='stream' goes with the plain global selection alone (got {global_only})")
