"""The padding behind a caption that is learned, where an image model reads padding as it reads words."""

from __future__ import annotations

import torch
from torch import Tensor

from ..states.layout import TokenLayout
from ..states.stacks import Padding, restore_padding, split_padding


class Paddings:
    """What stands behind each text that was read, to put it behind the captions that are made of them.

    Padding comes after the words, so the text encoder gives it states that depend on them.
    """

    def __init__(self, tail_tokens: int) -> None:
        self.tail_tokens = tail_tokens
        self._read: list[tuple[Tensor, Padding]] = []

    def remember(self, states: Tensor, layout: TokenLayout) -> None:
        """Keep the padding of a text ``(L, S·D)``, if it has any."""
        own, _, padding = split_padding(states, layout)
        if padding is not None:
            self._read.append((own[: len(own) - self.tail_tokens].float(), padding))

    def behind(self, caption: Tensor) -> Tensor:
        """A caption ``(L, S·D)`` with the padding of the longest text that it begins with; gradients pass."""
        if not self._read:
            return caption
        begun = [
            (head, padding) for head, padding in self._read
            if len(head) < len(caption) and torch.equal(head.to(caption.device), caption[: len(head)].detach().float())
        ]
        _, padding = max(begun or self._read, key=lambda one: len(one[0]))
        states = padding.states.to(caption.device, caption.dtype)
        return restore_padding(caption, None, Padding(states, padding.length))[0]
