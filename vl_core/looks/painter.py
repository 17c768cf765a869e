"""What a look is learned on: an image model, its VAE and its text encoder, as far as learning needs them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from ..states.families import Family
from ..states.layout import TokenLayout


class Painter(Protocol):
    """An image model that a look can be learned on.

    Attributes:
        name: of the model. ``family``: whose text states it reads.
        multiple: sides of its pictures are multiples of it, in pixels.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family: ...

    @property
    def multiple(self) -> int: ...

    def text(self, prompt: str) -> tuple[Tensor, TokenLayout]:
        """The text encoder's states ``(L, S·D)`` of a prompt, and their layout."""
        ...

    def latents(self, picture: Tensor) -> Tensor:
        """What the model paints where it paints this picture: float32 ``(C, h, w)``.

        Args:
            picture: uint8 ``(H, W, 3)``, sides in multiples of ``multiple``.
        """
        ...

    def levels(self, latents: Tensor) -> Tensor:
        """Noise levels σ of the model's own sampling schedule for a picture of these latents ``(C, h, w)``.

        Returns:
            float32 ``(n,)`` on the CPU, finely spaced, falling from 1; x_σ = (1 − σ)·x₀ + σ·noise.
        """
        ...

    def velocity(self, noisy: Tensor, levels: Tensor, captions: Sequence[Tensor]) -> Tensor:
        """Where the model leads from noise to picture, x₀ − noise as it believes it: float32 ``(B, C, h, w)``.

        Gradients reach the captions, and nothing else.

        Args:
            noisy: float32 ``(B, C, h, w)``, x_σ. ``levels``: float32 ``(B,)``.
            captions: float32 states ``(L_i, S·D)``, of any lengths.
        """
        ...

    def learning(self) -> AbstractContextManager[None]:
        """While it is entered, :meth:`velocity` may be called with gradients; after it all is as it was."""
        ...
