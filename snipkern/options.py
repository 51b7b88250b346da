"""Options of pruning that several calls take, checked."""

from __future__ import annotations

from snipkern.engine import ENGINES
from snipkern.scoring import MEMORY
from snipkern.topology import require_block


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
    if block is not None:
        return require_block("prune", block)
    if engine == "bsr":
        raise ValueError("prune: engine='bsr' needs block=(height, width) (got block=None)")
    return None


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Checks a choice between names."""
    if value not in allowed:
        raise ValueError(f"prune: {name} must be one of {', '.join(allowed)} (got {value!r})")


def memory_of(memory: str, batches: int, block: tuple[int, int] | None) -> None:
    """Checks how gradients are to be held, with what it does not go with."""
    one_of("memory", memory, MEMORY)
    if memory == "stream" and batches != 1:
        # The mean gradient of several is complete only when all are summed up: it would have to be kept.
        raise ValueError(f"prune: memory='stream' scores one batch; make it larger instead (got batches={batches!r})")
    if memory == "stream" and block is not None:
        raise ValueError(f"prune: block must be None with memory='stream' (got {block!r})")


def sharded_of(sharded: bool, block: tuple[int, int] | None, paper: bool) -> None:
    """Checks what can't be done with a sharded model."""
    if sharded and block is not None:
        raise ValueError(f"prune: block must be None for a sharded model; prune before fully_shard (got {block!r})")
    if sharded and paper:
        raise ValueError("prune: preset must be None for a sharded model; prune before fully_shard (got 'paper')")
