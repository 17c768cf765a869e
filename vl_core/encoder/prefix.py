"""What is kept of the positions up to the last picture, and what a sequence needs to go on from there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..states.layout import TokenLayout
from .forward import KeyValues

Features = list[Tensor]  # of a picture: its embeddings (n, D), then the deepstack features of each level


@dataclass(frozen=True, eq=False)
class Prefix:
    """What the positions after the pictures need of those before.

    Attributes:
        pairs: keys and values ``(P, heads, size)`` per block that ran.
        states: hidden states ``(P, D)`` by index.
    """

    pairs: KeyValues
    states: dict[int, Tensor]

    def serves(self, wanted: Sequence[int]) -> bool:
        return len(self.pairs) >= wanted[-1] and all(layer in self.states for layer in wanted)

    def tensors(self) -> list[Tensor]:
        return [*itertools.chain.from_iterable(self.pairs), *self.states.values()]


@dataclass(eq=False)
class Answered:
    """States ``(L, D)`` of a layer, and whether somebody vetted them."""

    states: Tensor
    vetted: bool = False


def vetted(answers: Sequence[Answered], vet: Callable[[Sequence[Tensor]], None]) -> list[Tensor]:
    """The states, once ``vet``, which may raise, was called with those that it does not know."""
    new = [one for one in answers if not one.vetted]
    if new:
        vet([one.states for one in new])
    for one in new:
        one.vetted = True
    return [one.states for one in answers]


def fill(places: KeyValues, pairs: KeyValues) -> None:
    """Copy keys and values into buffers."""
    for place, pair in zip(places, pairs, strict=True):
        for buffer, part in zip(place, pair, strict=True):
            buffer.copy_(part)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after the other; the only one itself."""
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def filled_rows(rows: Sequence[Sequence[Tensor]], width: int) -> Tensor:
    """The parts ``(n,)`` of each row one after the other, zeros up to ``width``: ``(R * width,)``."""
    whole = [torch.cat(list(parts)) for parts in rows]
    return torch.cat([functional.pad(one, (0, width - len(one))) for one in whole])


def lengthened(layout: TokenLayout, by: int) -> TokenLayout:
    """The layout with so many more positions after it."""
    roles, ids = (functional.pad(part, (0, by)) for part in (layout.roles, layout.token_ids))
    return replace(layout, roles=roles, token_ids=ids)
