"""Methods that give the text another mean and spread in place of mixing tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..states.layout import TokenLayout
from ..states.sinks import Sinks, counted_tokens
from ..states.statistics import Moments
from ..states.tensors import EPSILON

OWN_MIXING = ("adain", "adain_per_dim", "style_dims")  # mixed as published: raw, whatever the space


def mix_restyled(
    y: Tensor, x: Tensor, a: Tensor, method: str, sinks: Sinks, notes: list[str],
    layouts: tuple[TokenLayout | None, TokenLayout | None] = (None, None),
) -> Tensor:
    """adain, adain_per_dim and style_dims, float32; ``layouts`` of both sides tell adain_per_dim's sinks apart."""
    if method == "style_dims":
        upper = torch.arange(y.shape[-1], device=y.device) >= 2 * y.shape[-1] // 3
        return torch.where(upper, (1 - a) * y + a * x, y)
    if method == "adain":
        styled = _restyle(y, *_over_dimensions(y), *_over_dimensions(x))
    else:
        styled = torch.stack([_restyle_dimensions(*pair, sinks, notes, layouts) for pair in zip(y, x, strict=True)])
    return (1 - a) * y + a * styled


def _over_dimensions(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each token ``(…, 1)``, float64: a constant token's mean must be exact, its std is the floor."""
    values = tokens.detach().cpu().double()
    std = values.std(-1, keepdim=True) if values.shape[-1] > 1 else torch.zeros_like(values)
    return values.mean(-1, keepdim=True), std.clamp_min(EPSILON)


def _restyle_dimensions(
    y: Tensor, x: Tensor, sinks: Sinks, notes: list[str], layouts: tuple[TokenLayout | None, TokenLayout | None]
) -> Tensor:
    """AdaIN over the tokens of one pair of sequences ``(L, D)``, ``(L', D)``."""
    own, other = (
        Moments.centring(side[counted_tokens(side, sinks, layout)])
        for side, layout in zip((y, x), layouts, strict=True)
    )
    if min(own.count, other.count) < 2:
        notes.append("A side has a single token and so no std per dimension: the result has little or no variety.")
    return _restyle(y, own.mean, _floored(own), other.mean, _floored(other))


def _floored(moments: Moments) -> Tensor:
    return torch.nan_to_num(moments.std, nan=0.0).clamp_min(EPSILON)


def _restyle(y: Tensor, own_mean: Tensor, own_std: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    own_mean, own_std, mean, std = (part.float().to(y.device) for part in (own_mean, own_std, mean, std))
    return (y - own_mean) / own_std * std + mean
