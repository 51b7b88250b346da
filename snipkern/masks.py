"""Masks: which weights of a parameter are kept, one bit each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Mask"]

WORD_BITS = 64
COUNTED = 1 << 15  # words


class Mask:
    """Which elements of a tensor are kept: an immutable, bit-packed set of flat indices.

    Element ``i`` of the row-major flattened tensor is bit ``i % 64`` of word ``i // 64``; bits past the last element
    are zero. A mask costs 1/32 of a float32 weight and lives on the CPU.

    Args:
        words: int64 CPU tensor ``[ceil(numel / 64)]``; taken over, not copied.
        shape: Shape of the masked tensor.

    Raises:
        ValueError: If the words do not fit the shape.
    """

    __slots__ = ("_count", "shape", "words")

    words: Tensor
    shape: torch.Size

    def __init__(self, words: Tensor, shape: Sequence[int]) -> None:
        shape = torch.Size(shape)
        numel = shape.numel()
        expected = -(-numel // WORD_BITS)
        if words.dtype != torch.int64 or words.dim() != 1 or words.device.type != "cpu":
            raise ValueError(
                f"Mask: words must be a 1-D int64 CPU tensor (got {words.dim()}-D {words.dtype} on {words.device})"
            )
        if words.numel() != expected:
            raise ValueError(f"Mask: shape {tuple(shape)} needs {expected} words (got {words.numel()})")
        spare = expected * WORD_BITS - numel
        if spare and int(words[-1].numpy().view(np.uint64)) >> (WORD_BITS - spare):
            raise ValueError(f"Mask: bits beyond element {numel} must be zero (got a set bit)")
        self.words = words.contiguous()
        self.shape = shape
        bits = self.words.numpy().view(np.uint64)
        # Some words at a time: their counts then stay in the cache, and need no memory of the mask's order.
        pieces = (bits[at : at + COUNTED] for at in range(0, bits.size, COUNTED))
        self._count = sum(int(np.bitwise_count(piece).sum(dtype=np.int64)) for piece in pieces)

    @classmethod
    def from_dense(cls, kept: Tensor) -> Mask:
        """Packs a bool tensor of any shape, layout and device: True is kept."""
        if kept.dtype != torch.bool:
            raise ValueError(f"Mask.from_dense: kept must be a bool tensor (got {kept.dtype})")
        flat = kept.detach().reshape(-1).cpu().numpy()
        packed = np.zeros(-(-flat.size // WORD_BITS) * (WORD_BITS // 8), dtype=np.uint8)
        bits = np.packbits(flat, bitorder="little")
        packed[: bits.size] = bits
        return cls(torch.from_numpy(packed.view("<i8").astype(np.int64)), kept.shape)

    @classmethod
    def full(cls, shape: Sequence[int]) -> Mask:
        """A mask that keeps everything."""
        return cls.from_dense(torch.ones(tuple(shape), dtype=torch.bool))

    def to_dense(self, device: torch.device | str | None = None) -> Tensor:
        """The mask as a bool tensor of its shape."""
        packed = self.words.numpy().astype("<i8", copy=False).view(np.uint8)
        flat = np.unpackbits(packed, count=self.shape.numel(), bitorder="little")
        return torch.from_numpy(flat.view(np.bool_)).view(self.shape).to(device or "cpu")

    def count(self) -> int:
        """Number of kept elements."""
        return self._count

    @property
    def numel(self) -> int:
        """Number of elements, kept or not."""
        return self.shape.numel()

    @property
    def density(self) -> float:
        """Kept share, in [0, 1]; 1 for an empty tensor."""
        return self._count / self.numel if self.numel else 1.0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.shape == other.shape and torch.equal(self.words, other.words)

    def __hash__(self) -> int:
        return hash((self.shape, self.words.numpy().tobytes()))

    def __deepcopy__(self, memo: dict[int, object]) -> Mask:
        return self

    def __reduce__(self) -> tuple[type[Mask], tuple[Tensor, tuple[int, ...]]]:
        return Mask, (self.words, tuple(self.shape))

    def __repr__(self) -> str:
        return f"Mask({tuple(self.shape)}, kept={self._count}, density={self.density:.2%})"
