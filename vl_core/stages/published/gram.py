"""Published: the text's states moved, step by step, towards the Gram matrix of the VL's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numbers import TOKENS, WIDTH, check_positive, check_share, give, pair, single

STEPS, RATE = 100, 0.1
FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam's (arXiv 1412.6980)


def gram_matrix(vl: Tensor) -> Tensor:
    """``xᵀx / L`` ``(D, D)`` or ``(B, D, D)``, in the dtype that came in."""
    x = single(vl)
    return give(x.transpose(1, 2) @ x / x.shape[TOKENS], vl)


def gram_style_transfer(
    text: Tensor, vl: Tensor | Sequence[Tensor], alpha: float = 0.3, steps: int = STEPS, rate: float = RATE
) -> Tensor:
    """The states f that Adam finds from the text's y on ``(1 − α)·mse(f, y) + α·mse(fᵀf/L, xᵀx/L_vl)``.

    The gradient is written out, 2(1 − α)(f − y)/(L·D) + 4α·f(fᵀf/L − S)/(L·D²), and neither D × D matrix is formed:
    f·S = (f·xᵀ)x / L_vl.

    Args:
        text: ``(L, D)`` or ``(B, L, D)``.
        vl: likewise, of any length; of several (layers of one reading, say) the mean of their Gram matrices counts.
        alpha: 0 to 1. steps: of Adam, each of about ``rate`` in every value.

    Returns:
        the text's shape, dtype and device.

    Raises:
        ValueError: for states that cannot be paired, no VL, a bad alpha, rate or number of steps.
    """
    check_share("alpha", alpha)
    check_positive("rate", rate)
    if steps < 0:
        raise ValueError(f"steps: expected 0 or more, got {steps}.")
    sides = [vl] if isinstance(vl, Tensor) else list(vl)
    if not sides:
        raise ValueError("vl: expected states of at least one layer, got none.")
    pairs = [pair(text, side) for side in sides]
    y = pairs[0][0]
    # rows whose Gram matrix wᵀw is the mean of all
    style = torch.cat([x / (x.shape[TOKENS] * len(pairs)) ** 0.5 for _, x in pairs], TOKENS)
    return give(_descend(y, style, alpha, steps, rate), text)


def _descend(y: Tensor, style: Tensor, alpha: float, steps: int, rate: float) -> Tensor:
    length, width = y.shape[TOKENS], y.shape[WIDTH]
    moved, mean, square = y.clone(), torch.zeros_like(y), torch.zeros_like(y)
    for step in range(1, steps + 1):
        excess = (moved @ moved.transpose(1, 2)) @ moved / length - (moved @ style.transpose(1, 2)) @ style
        slope = 2 * (1 - alpha) * (moved - y) / (length * width) + 4 * alpha * excess / (length * width**2)
        mean = FIRST * mean + (1 - FIRST) * slope
        square = SECOND * square + (1 - SECOND) * slope.square()
        size = (square / (1 - SECOND**step)).sqrt() + TINY
        moved = moved - rate * mean / (1 - FIRST**step) / size
    return moved
