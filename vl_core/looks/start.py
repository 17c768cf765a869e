"""Where learning begins: what the words for the look do to the text encoder's states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..encoder.answers import append_words
from ..stages.append import template_tail
from ..stages.description import slot_positions
from ..states.layout import TokenLayout
from ..states.stacks import split_padding
from ..states.tensors import check_embeddings
from .painter import Painter
from .units import directions, scaled, sizes_of


@dataclass(frozen=True)
class Words:
    """What is told of the pictures of one look.

    Attributes:
        shows: per picture, what it shows; the less it leaves out, the less of it the look holds.
        look: how all of them look: the words that learning begins with.

    Raises:
        ValueError: without words for the look.
    """

    shows: tuple[str, ...]
    look: str

    def __post_init__(self) -> None:
        if not self.look.strip():
            raise ValueError("look: expected words for how the pictures look, got none. Say even a little: “a photo”.")


@dataclass(frozen=True, eq=False)
class Told:
    """A text as learning needs it: ``head`` float32 ``(L, S·D)`` before the tail, ``tail`` float32 ``(T, S·D)``."""

    head: Tensor
    tail: Tensor

    def to(self, device: torch.device) -> Told:
        return Told(self.head.to(device), self.tail.to(device))


@dataclass(frozen=True, eq=False)
class Start:
    """Where a look begins.

    Attributes:
        told: per picture the text of what it shows.
        tokens, sizes, tail: as in :class:`Look`.
    """

    told: tuple[Told, ...]
    tokens: Tensor
    sizes: Tensor
    tail: Tensor

    def to(self, device: torch.device) -> Start:
        return Start(
            tuple(text.to(device) for text in self.told), self.tokens.to(device), self.sizes.to(device),
            self.tail.to(device),
        )

    def with_tokens(self, count: int) -> Start:
        """So many tokens: evenly chosen from the words' own, each several times where there are fewer."""
        chosen = torch.linspace(0, len(self.tokens) - 1, count).round().long()
        return replace(self, tokens=self.tokens[chosen], sizes=self.sizes[chosen])


def begin(painter: Painter, words: Words) -> Start:
    """The look as words alone have it: tokens that they add after what is shown, and how they change the tail.

    Over several pictures both are means; of the tokens the mean direction.

    Raises:
        ValueError: if the text encoder's template or states are not the family's, or the words have no tokens.
    """
    layers = len(painter.family.layers)
    told, added, changes = [], [], []
    for shows in words.shows:
        own, own_layout = _read(painter, shows)
        whole, whole_layout = _read(painter, append_words(shows, words.look))
        span = slot_positions([own_layout, whole_layout])[0].to(whole.device)
        at, after = (template_tail(one, (painter.family.tail_tokens,))[0] for one in (own_layout, whole_layout))
        told.append(Told(own[:at], own[at:]))
        added.append(whole[span])
        changes.append(scaled(whole[after:] - own[at:], 1 / sizes_of(own[at:], layers)))
    count = min(map(len, added))  # where words meet, a tokenizer may join two tokens: the last ones are the look's
    each = torch.stack([tokens[-count:] for tokens in added])
    return Start(
        tuple(told), directions(directions(each, layers).mean(0), layers), sizes_of(each, layers).mean(0),
        torch.stack(changes).mean(0),
    )


def tell(painter: Painter, prompt: str) -> Told:
    """A prompt, read.

    Raises:
        ValueError: if the text encoder's template or states are not the family's.
    """
    states, layout = _read(painter, prompt)
    at = template_tail(layout, (painter.family.tail_tokens,))[0]
    return Told(states[:at], states[at:])


def _read(painter: Painter, prompt: str) -> tuple[Tensor, TokenLayout]:
    """A prompt's states float32 ``(L, S·D)`` without padding, detached, and their layout."""
    states, layout = painter.text(prompt)
    states = states[0] if states.ndim == 3 else states
    check_embeddings(states, "text")
    if states.shape[-1] != painter.family.width:
        raise ValueError(
            f"text: expected states of width {painter.family.width} for {painter.family.name}, got {states.shape[-1]}."
        )
    own, own_layout, _ = split_padding(states.detach().float(), layout)
    return own, own_layout or layout


def check_shows(shows: Sequence[str], pictures: int) -> None:
    """Raise ValueError unless there is a text per picture."""
    if len(shows) != pictures:
        raise ValueError(f"shows: expected {pictures} texts, one per picture, got {len(shows)}.")
