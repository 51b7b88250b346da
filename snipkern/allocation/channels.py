"""Where the channels of an activation come from: outputs of pooled layers, united, joined or repeated.

Asked forwards, an origin tells which channels are alive; backwards, which outputs of which layers are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Channels",
    "Concatenation",
    "Constant",
    "Gated",
    "Outputs",
    "Outside",
    "Repetition",
    "Union",
    "Unknown",
    "alive",
    "concatenated",
    "gated",
    "layers_of",
    "repeated",
    "size",
    "united",
    "use_",
]

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Channels:
    """An origin."""


@dataclass(frozen=True)
class Unknown(Channels):
    """Nobody knows."""


@dataclass(frozen=True)
class Outside(Channels):
    """Nothing that the pool makes: alive."""

    size: int


@dataclass(frozen=True)
class Constant(Channels):
    """The same whatever the model is given, such as the first state of a recurrent layer: dead."""

    size: int


@dataclass(frozen=True)
class Outputs(Channels):
    """The outputs of a pooled layer."""

    size: int
    layer: str


@dataclass(frozen=True)
class Union(Channels):
    """Alive where any part is."""

    parts: tuple[Channels, ...]


@dataclass(frozen=True)
class Concatenation(Channels):
    """Parts side by side."""

    parts: tuple[Channels, ...]


@dataclass(frozen=True)
class Repetition(Channels):
    """Each channel so many times in a row."""

    part: Channels
    times: int


@dataclass(frozen=True)
class Gated(Channels):
    """Hidden units, each of which has a channel in every one of the gates that lie one after the other in a part.

    Attributes:
        part: The gates.
        gates: How many.
        needs: The one that must be alive for a unit to be; None: any.
    """

    part: Channels
    gates: int
    needs: int | None = None


def united(parts: Sequence[Channels]) -> Channels:
    """The union, in its simplest form: what is alive from outside stays so, whatever is added to it."""
    flat = dict.fromkeys(p for part in parts for p in (part.parts if isinstance(part, Union) else (part,)))
    for kind in (Outside, Unknown):
        for part in flat:
            if isinstance(part, kind):
                return part
    if len(flat) > 1:  # constants add nothing
        flat = {p: None for p in flat if not isinstance(p, Constant)} or dict.fromkeys([next(iter(flat))])
    return next(iter(flat)) if len(flat) == 1 else Union(tuple(flat))


def concatenated(parts: Sequence[Channels]) -> Channels:
    """The parts side by side."""
    if any(isinstance(part, Unknown) for part in parts):
        return Unknown()
    return Concatenation(
        tuple(p for part in parts for p in (part.parts if isinstance(part, Concatenation) else (part,)))
    )


def gated(part: Channels, gates: int, needs: int | None) -> Channels:
    """Units of these gates."""
    if isinstance(part, (Outside, Constant)):
        return type(part)(part.size // gates)
    return part if isinstance(part, Unknown) or gates == 1 else Gated(part, gates, needs)


def repeated(part: Channels, times: int) -> Channels:
    """Each channel so many times."""
    return part if times == 1 or isinstance(part, Unknown) else Repetition(part, times)


def alive(channels: Channels, outputs: Mapping[str, Flags]) -> Flags | None:
    """Which channels are alive, given which outputs of each layer are; layers that are missing are alive.

    Returns:
        One flag for each channel; None where that is unknown.
    """
    if isinstance(channels, Outside):
        return np.ones(channels.size, dtype=np.bool_)
    if isinstance(channels, Constant):
        return np.zeros(channels.size, dtype=np.bool_)
    if isinstance(channels, Gated):
        found = alive(channels.part, outputs)
        if found is None:
            return None
        found = found.reshape(channels.gates, -1)
        return np.logical_or.reduce(found) if channels.needs is None else found[channels.needs]
    if isinstance(channels, Outputs):
        found = outputs.get(channels.layer)
        return np.ones(channels.size, dtype=np.bool_) if found is None else found
    if isinstance(channels, Repetition):
        found = alive(channels.part, outputs)
        return None if found is None else found.repeat(channels.times)
    if isinstance(channels, (Union, Concatenation)):
        parts = [found for part in channels.parts if (found := alive(part, outputs)) is not None]
        if len(parts) < len(channels.parts):
            return None
        return np.concatenate(parts) if isinstance(channels, Concatenation) else np.logical_or.reduce(parts)
    return None


def size(channels: Channels) -> int:
    """How many channels; 0 if unknown."""
    if isinstance(channels, (Outside, Constant, Outputs)):
        return channels.size
    if isinstance(channels, Gated):
        return size(channels.part) // channels.gates
    if isinstance(channels, Repetition):
        return size(channels.part) * channels.times
    if isinstance(channels, Concatenation):
        return sum(map(size, channels.parts))
    return size(channels.parts[0]) if isinstance(channels, Union) else 0


def use_(channels: Channels, used: Flags | None, outputs: dict[str, Flags]) -> None:
    """Marks the outputs of layers that are used when these channels are; None: all of them."""
    if isinstance(channels, Outputs):
        flags = outputs.setdefault(channels.layer, np.zeros(channels.size, dtype=np.bool_))
        flags |= True if used is None else used
    elif isinstance(channels, Gated):
        use_(channels.part, None if used is None else np.tile(used, channels.gates), outputs)
    elif isinstance(channels, Repetition):
        use_(
            channels.part,
            None if used is None else np.logical_or.reduce(used.reshape(-1, channels.times), axis=1),
            outputs,
        )
    elif isinstance(channels, Union):
        for part in channels.parts:
            use_(part, used, outputs)
    elif isinstance(channels, Concatenation):
        first = 0
        for part in channels.parts:
            last = first + size(part)
            use_(part, None if used is None else used[first:last], outputs)
            first = last


def layers_of(channels: Channels) -> set[str]:
    """The layers whose outputs these are."""
    if isinstance(channels, Outputs):
        return {channels.layer}
    if isinstance(channels, (Repetition, Gated)):
        return layers_of(channels.part)
    if isinstance(channels, (Union, Concatenation)):
        return set[str]().union(*map(layers_of, channels.parts))
    return set()
