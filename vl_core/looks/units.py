"""Tokens as directions and sizes, one size per layer that lies side by side in the width."""

from __future__ import annotations

import torch
from torch import Tensor

from ..states.tensors import EPSILON


def sizes_of(tokens: Tensor, layers: int) -> Tensor:
    """Root mean square of each token's layers: ``(…, S·D)`` -> ``(…, S)``, at least ``EPSILON``."""
    return tokens.unflatten(-1, (layers, -1)).square().mean(-1).sqrt().clamp_min(EPSILON)


def scaled(tokens: Tensor, sizes: Tensor) -> Tensor:
    """Each token's layers ``(…, S·D)`` times sizes ``(…, S)``."""
    return (tokens.unflatten(-1, (sizes.shape[-1], -1)) * sizes.unsqueeze(-1)).flatten(-2)


def directions(tokens: Tensor, layers: int) -> Tensor:
    """Tokens ``(…, S·D)`` on the sphere: every layer of root mean square 1."""
    return scaled(tokens, 1 / sizes_of(tokens, layers))


def with_look(head: Tensor, tail: Tensor, tokens: Tensor, sizes: Tensor, change: Tensor) -> Tensor:
    """A caption that a look follows, as an image model reads it.

    [head][tokens on the sphere · sizes][tail + change · the tail's own sizes].

    Args:
        head: ``(L, S·D)``, all before the template's tail; ``tail``: ``(T, S·D)``.
        tokens: ``(K, S·D)``, of any size; ``sizes``: ``(K, S)``; ``change``: ``(T, S·D)``.

    Returns:
        ``(L + K + T, S·D)``; gradients reach tokens and change.
    """
    layers = sizes.shape[-1]
    moved = tail + scaled(change, sizes_of(tail, layers))
    return torch.cat([head, scaled(directions(tokens, layers), sizes), moved])
