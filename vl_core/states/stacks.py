"""Layers that lie side by side in the width, and padding: taken apart before a stage and put together after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .families import Family
from .layout import TokenLayout, pad_layout
from .vl_states import VLStates

Info = TypeVar("Info")


def stack_layers(seen: VLStates, family: Family) -> tuple[Tensor, TokenLayout]:
    """The family's layers of a reading side by side: ``(L, S·D)``, S layers of width D in the family's order.

    A single layer is that layer bit for bit. The layout of a stack names no layer.

    Raises:
        ValueError: if a layer was not captured or the model does not have it.
    """
    captured = [seen.at(layer) for layer in family.layers]
    if not family.stacked:
        return captured[0]
    return torch.cat([states for states, _ in captured], -1), captured[0][1].with_layer(None)


def split_layers(states: Tensor, family: Family) -> tuple[Tensor, ...]:
    """The layers of a stack ``(…, L, S·D)``, S views ``(…, L, D)``.

    Raises:
        ValueError: if the width does not divide by the number of layers.
    """
    if states.shape[-1] % len(family.layers):
        raise ValueError(
            f"states: expected a width of {len(family.layers)} equal parts ({family.describe_layers()} of "
            f"{family.name}), got {states.shape[-1]}. Encode with family = {family.group}."
        )
    return states.chunk(len(family.layers), -1)


def by_layer(
    states: Tensor, family: Family, stage: Callable[[Tensor, int], tuple[Tensor, Info]]
) -> tuple[Tensor, list[Info]]:
    """Run a stage on each layer of a stack for itself, so that its scale and its attention sinks are that layer's own.

    Args:
        states: ``(…, L, S·D)``.
        stage: takes a layer's states ``(…, L, D)`` and its place in the stack; gives new states and what was done.

    Returns:
        the new layers side by side, and what was done in each.
    """
    done = [stage(part, index) for index, part in enumerate(split_layers(states, family))]
    return (done[0][0] if len(done) == 1 else torch.cat([part for part, _ in done], -1)), [info for _, info in done]


@dataclass(frozen=True, eq=False)
class Padding:
    """What fills a text up: its states ``(…, P, D)``, and the length of words and padding together."""

    states: Tensor
    length: int


def split_padding(
    text: Tensor, layout: TokenLayout | None, words: int | None = None
) -> tuple[Tensor, TokenLayout | None, Padding | None]:
    """A text without its padding, and the padding; a text that has none comes back as it is, with None.

    Args:
        text: ``(L, D)`` or ``(B, L, D)``.
        layout: what its tokens are, where known.
        words: how many tokens are no padding, where the layout is unknown: the sum of its attention mask.
    """
    if layout is not None:
        words = int((~layout.padding()).sum())
    length = text.shape[-2]
    if words is None or words >= length:
        return text, layout, None
    kept = layout and layout.select(torch.arange(length) < words)
    return text[..., :words, :], kept, Padding(text[..., words:, :], length)


def restore_padding(
    text: Tensor, layout: TokenLayout | None, padding: Padding | None
) -> tuple[Tensor, TokenLayout | None]:
    """A text with its padding behind it again, bit for bit.

    Tokens that were appended take the places of as many padding tokens, the first ones, as the words of a longer prompt
    would: the length stays as it was until there is no padding left, and then grows.
    """
    if padding is None:
        return text, layout
    taken = min(padding.states.shape[-2], max(0, text.shape[-2] + padding.states.shape[-2] - padding.length))
    left = padding.states[..., taken:, :]
    return torch.cat([text, left], -2), layout and pad_layout(layout, left.shape[-2])


def steer_layers(
    text: Tensor,
    layout: TokenLayout | None,
    family: Family,
    act: Callable[[Tensor, TokenLayout | None, int], tuple[Tensor, TokenLayout | None, str]],
    *,
    words: int | None = None,
) -> tuple[Tensor, TokenLayout | None, list[str]]:
    """Change a family's text one layer at a time, its padding left out.

    Where the layout is unknown, ``words`` is looked at for families that pad.

    Args:
        text: ``(L, S·D)`` or ``(B, L, S·D)`` with its padding.
        layout: what its tokens are, where known; words: see :func:`split_padding`.
        act: takes a layer's states without padding, their layout and the layer's place in the stack; gives new states,
            their layout and a report. All layers have to come out equally long.

    Returns:
        the new text, its layout and the reports.

    Raises:
        ValueError: see :func:`split_layers`.
    """
    own, own_layout, padding = split_padding(text, layout, words if family.padded_to else None)
    layouts: list[TokenLayout | None] = []

    def stage(part: Tensor, index: int) -> tuple[Tensor, str]:
        states, found, line = act(part, own_layout, index)
        layouts.append(found)
        return states, line

    states, lines = by_layer(own, family, stage)
    return *restore_padding(states, layouts[0], padding), lines
