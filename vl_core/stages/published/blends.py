"""Published: the ways VL states are mixed into the text's.

The text comes first in every function; the published code changes the order from one to the next. States are
``(L, D)`` or ``(B, L, D)`` of any float dtype, a batch of one VL serves every text, and the result has the text's
dtype, device and number of axes. All raise ValueError for widths or batches that differ, no tokens, values that are not
finite, and an alpha that is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...states.tensors import check_choice
from .numbers import (
    TOKENS,
    WIDTH,
    check_finite,
    check_share,
    floored,
    give,
    pair,
    shorter,
    single,
    std,
)

Curve = Literal["linear", "ease_in", "ease_out"]
Schedule = Literal["linear_decay", "cosine_decay", "step"]

IMPORTANT = 0.8  # how much of alpha an important token loses
TINY = 1e-8  # added to the range of weights
SAME_ANGLE = 1e-6  # below, two tokens are mixed along the line
# Dimensions that the published scripts take from the text: ten of too wide a spread, ten of too narrow a one.
OUTLIER_DIMENSIONS = (
    2341, 1573, 2083, 1065, 1323, 1761, 1142, 1320, 1331, 1459,
    329, 2492, 473, 1672, 779, 411, 1783, 1834, 1815, 236,
)  # fmt: skip


def interpolate_sequence(vl: Tensor, length: int) -> Tensor:
    """Stretched to ``length`` tokens: linear at half-pixel centres, never averaged."""
    if length < 1:
        raise ValueError(f"length: expected at least 1 token, got {length}.")
    return give(_stretched(single(vl), length), vl)


def blend_embeddings(text: Tensor, vl: Tensor, alpha: float) -> Tensor:
    """``αx + (1 − α)y``, both cut to the shorter ("linear"); at 0 the whole text, at 1 the whole VL, uncut."""
    check_share("alpha", alpha)
    y, x = pair(text, vl)
    if alpha in (0, 1):
        return text.clone() if alpha == 0 else give(x, text)
    y, x = shorter(text, vl)
    return give(alpha * x + (1 - alpha) * y, text)


def blend_interpolate(text: Tensor, vl: Tensor, alpha: float) -> Tensor:
    """``αx + (1 − α)y``, x stretched over the text; at 0 the text bit for bit."""
    check_share("alpha", alpha)
    y, x = pair(text, vl)
    if alpha == 0:
        return text.clone()
    return give(alpha * _stretched(x, y.shape[TOKENS]) + (1 - alpha) * y, text)


def blend_style_only(text: Tensor, vl: Tensor, alpha: float = 0.3, dims: tuple[int, int] | None = None) -> Tensor:
    """``αx + (1 − α)y`` in the dimensions [start, end) only, None for the upper third; cut to the shorter."""
    check_finite("alpha", alpha)
    y, x = shorter(text, vl)
    width = y.shape[WIDTH]
    start, end = (2 * width // 3, width) if dims is None else dims
    if not 0 <= start <= end:
        raise ValueError(f"dims: expected a start from 0 and an end that is not before it, got {start} and {end}.")
    mixed = y.clone()
    mixed[..., start:end] = alpha * x[..., start:end] + (1 - alpha) * y[..., start:end]
    return give(mixed, text)


def blend_per_token(text: Tensor, vl: Tensor, alphas: Tensor | Sequence[float]) -> Tensor:
    """``αx + (1 − α)y`` with an alpha for each token, cut to the shorter; alphas may go on beyond it."""
    y, x = shorter(text, vl)
    a = _per_token("alphas", alphas, y.shape[TOKENS])
    return give(a * x + (1 - a) * y, text)


def create_graduated_alpha(length: int, start: float = 0.0, end: float = 0.5, curve: str = "linear") -> Tensor:
    """``start + f(t)·(end − start)`` for t from 0 to 1: t (linear), t² (ease_in), 1 − (1 − t)² (ease_out).

    Returns:
        float64 ``(length,)``. Alphas above 1 are allowed: the published server doubles the user's.
    """
    check_choice("curve", curve, Curve)
    check_finite("start", start)
    check_finite("end", end)
    if length < 1:
        raise ValueError(f"length: expected at least 1 token, got {length}.")
    t = torch.linspace(0, 1, length, dtype=torch.float64)
    shaped = {"linear": t, "ease_in": t.square(), "ease_out": 1 - (1 - t).square()}[curve]
    return start + shaped * (end - start)


def blend_attention_weighted(
    text: Tensor, vl: Tensor, alpha: float, importance: Tensor | Sequence[float] | None = None
) -> Tensor:
    """:func:`blend_per_token` with ``α(1 − 0.8w)``, w the importance of each token brought to [0, 1].

    Args:
        importance: one for each token of the shorter side or more; None is :func:`blend_embeddings`.
    """
    if importance is None:
        return blend_embeddings(text, vl, alpha)
    check_finite("alpha", alpha)
    length = min(text.shape[TOKENS], vl.shape[TOKENS])
    weights = _per_token("importance", importance, length).flatten()
    weights = (weights - weights.min()) / (weights.max() - weights.min() + TINY)
    return blend_per_token(text, vl, alpha * (1 - weights * IMPORTANT))


def compute_style_delta(styled: Tensor, neutral: Tensor, unit: bool = True) -> Tensor:
    """``x − n`` of VL states of a picture and a neutral one, cut to the shorter; ``unit``: divided by its own std.

    A delta that does not vary is not divided.
    """
    x, n = shorter(styled, neutral, "neutral")
    delta = x - n
    return give(_unit(delta) if unit else delta, styled)


def blend_with_style_delta(text: Tensor, delta: Tensor, alpha: float = 0.3, scale_to_text: bool = True) -> Tensor:
    """``y + αδ``, the delta stretched over the text and then, if ``scale_to_text``, brought to its std."""
    check_finite("alpha", alpha)
    y, d = pair(text, delta, "delta")
    d = _stretched(d, y.shape[TOKENS])
    if scale_to_text:
        varies = std(d, TOKENS, WIDTH) > 0
        d = torch.where(varies, _unit(d) * std(y, TOKENS, WIDTH), d)
    return give(y + alpha * d, text)


def blend_adain(text: Tensor, vl: Tensor, alpha: float = 0.3, per_token: bool = True) -> Tensor:
    """``α((y − m_y)/s_y·s_x + m_x) + (1 − α)y``, cut to the shorter.

    Means and stds (at least 1e-6) are of each token over its dimensions, or, not ``per_token``, of everything.
    """
    return _restyle(text, vl, alpha, (WIDTH,) if per_token else (TOKENS, WIDTH))


def blend_adain_per_dim(text: Tensor, vl: Tensor, alpha: float = 0.3) -> Tensor:
    """:func:`blend_adain` with means and stds of each dimension over the tokens that are left by the cut."""
    return _restyle(text, vl, alpha, (TOKENS,))


def slerp_blend(text: Tensor, vl: Tensor, alpha: float = 0.3) -> Tensor:
    """Each token along the great circle, its length linear between both; cut to the shorter.

    Tokens that point the same way within 1e-6 are mixed along the line, and so are opposite ones: the published
    formula divides by the sine of pi there.
    """
    check_finite("alpha", alpha)
    y, x = shorter(text, vl)
    u, v = F.normalize(y, dim=WIDTH), F.normalize(x, dim=WIDTH)
    angle = (u * v).sum(WIDTH, keepdim=True).clamp(-1, 1).acos()
    straight = (angle < SAME_ANGLE) | (angle > math.pi - SAME_ANGLE)
    sine = torch.where(straight, 1.0, angle.sin())
    arc = ((1 - alpha) * angle).sin() / sine * u + (alpha * angle).sin() / sine * v
    length = (1 - alpha) * y.norm(dim=WIDTH, keepdim=True) + alpha * x.norm(dim=WIDTH, keepdim=True)
    return give(torch.where(straight, (1 - alpha) * y + alpha * x, arc * length), text)


def surgical_dimension_fix(
    text: Tensor, vl: Tensor, alpha: float = 0.5, dimensions: Sequence[int] = OUTLIER_DIMENSIONS
) -> Tensor:
    """``αx + (1 − α)y``, but the text's own values in ``dimensions``; cut to the shorter.

    Dimensions beyond the width are passed over.
    """
    check_finite("alpha", alpha)
    if any(dimension < 0 for dimension in dimensions):
        raise ValueError(f"dimensions: expected numbers from 0, got {min(dimensions)}.")
    y, x = shorter(text, vl)
    replaced = [dimension for dimension in dimensions if dimension < y.shape[WIDTH]]
    mixed = alpha * x + (1 - alpha) * y
    mixed[..., replaced] = y[..., replaced]
    return give(mixed, text)


def compute_blend_stats(text: Tensor, vl: Tensor) -> dict[str, float]:
    """Mean, std, least and greatest value of both sides, as ``text_mean`` … ``vl_max``."""
    found: dict[str, float] = {}
    for name, x in (("vl", single(vl)), ("text", single(text, "text"))):
        found |= {f"{name}_mean": float(x.mean()), f"{name}_std": float(std(x, *range(x.ndim)))}
        found |= {f"{name}_min": float(x.min()), f"{name}_max": float(x.max())}
    return found


def alpha_at_step(step: int, steps: int, schedule: str, most: float = 0.5, least: float = 0.0) -> float:
    """Alpha of one denoising step, from ``most`` at the first to ``least`` at the last (the published bridge script).

    linear_decay, cosine_decay, or step: the first half at ``most``. A single step counts as the last.

    Raises:
        ValueError: for an unknown schedule, a step outside, or alphas that are not finite.
    """
    check_choice("schedule", schedule, Schedule)
    if not 0 <= step < steps:
        raise ValueError(f"step: expected 0 to {steps - 1}, got {step}.")
    check_finite("most", most)
    check_finite("least", least)
    progress = step / (steps - 1) if steps > 1 else 1.0
    if schedule == "linear_decay":
        return most * (1 - progress) + least * progress
    if schedule == "cosine_decay":
        return least + (most - least) * (1 + math.cos(progress * math.pi)) / 2
    return most if progress < 0.5 else least


def _stretched(x: Tensor, length: int) -> Tensor:
    if x.shape[TOKENS] == length:
        return x
    return F.interpolate(x.transpose(1, 2), length, mode="linear", align_corners=False).transpose(1, 2)


def _unit(x: Tensor) -> Tensor:
    spread = std(x, TOKENS, WIDTH)
    return x / torch.where(spread > 0, spread, 1.0)


def _restyle(text: Tensor, vl: Tensor, alpha: float, axes: tuple[int, ...]) -> Tensor:
    check_finite("alpha", alpha)
    y, x = shorter(text, vl)
    z = (y - y.mean(axes, keepdim=True)) / floored(std(y, *axes))
    styled = z * floored(std(x, *axes)) + x.mean(axes, keepdim=True)
    return give(alpha * styled + (1 - alpha) * y, text)


def _per_token(name: str, values: Tensor | Sequence[float], length: int) -> Tensor:
    """float64 ``(length, 1)`` on the CPU."""
    given = values.detach().cpu().double() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    if given.ndim != 1 or len(given) < length:
        raise ValueError(f"{name}: expected at least {length} numbers, one per token, got shape {tuple(given.shape)}.")
    if not given.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity.")
    return given[:length, None]
