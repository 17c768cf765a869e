"""What the published arithmetic stands on: everything in float64 on the CPU, back in the dtype that came in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...states.tensors import EPSILON, as_batch, check_embeddings, check_shape, paired_batches

TOKENS, WIDTH = -2, -1


def wide(states: Tensor) -> Tensor:
    """float64 on the CPU, where MPS has none."""
    return states.detach().to("cpu").double()


def single(states: Tensor, name: str = "vl") -> Tensor:
    """``(L, D)`` or ``(B, L, D)`` as float64 ``(B, L, D)``.

    Raises:
        ValueError: for another shape, no tokens, or values that are not finite.
    """
    check_embeddings(states, name)
    if not states.shape[TOKENS]:
        raise ValueError(f"{name}: expected at least 1 token, got none.")
    return as_batch(wide(states))


def pair(text: Tensor, vl: Tensor, name: str = "vl") -> tuple[Tensor, Tensor]:
    """Both as float64 ``(B, L, D)``; errors are those of :func:`paired_batches`."""
    check_shape(text, "text")
    check_shape(vl, name)
    return paired_batches(wide(text), wide(vl), name)


def shorter(text: Tensor, vl: Tensor, name: str = "vl") -> tuple[Tensor, Tensor]:
    """:func:`pair`, both cut to the shorter."""
    y, x = pair(text, vl, name)
    length = min(y.shape[TOKENS], x.shape[TOKENS])
    return y[:, :length], x[:, :length]


def give(values: Tensor, like: Tensor) -> Tensor:
    """float64 ``(B, L, D)`` with the dtype, device and number of axes of ``like``, held at the dtype's largest.

    float64 is held at float32's, so that every later stage takes it.
    """
    limit = min(torch.finfo(like.dtype).max, torch.finfo(torch.float32).max)
    held = values.clamp(-limit, limit).to(like.dtype).to(like.device)
    return held[0] if like.ndim == 2 else held


def std(x: Tensor, *axes: int) -> Tensor:
    """Unbiased, axes kept; 0 where there is a single value, for which the published code gives NaN.

    Measured from the first value, so that equal values give exactly 0.
    """
    first = x
    for axis in axes:
        first = first.narrow(axis, 0, 1)
    if math.prod(x.shape[axis] for axis in axes) < 2:
        return torch.zeros_like(first)
    return (x - first).std(axes, keepdim=True)


def floored(spread: Tensor) -> Tensor:
    return spread.clamp_min(EPSILON)


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}.")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected 0 (text) to 1 (VL), got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is finite and above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value}.")
