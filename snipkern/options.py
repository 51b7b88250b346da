"""Options of pruning that several calls take, checked."""

from __future__ import annotations

from snipkern.engine import ENGINES
from snipkern.topology_block import require_block


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
