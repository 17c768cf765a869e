"""Published: VL states brought to the text encoder's spread, and their outlier dimensions masked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...states.layout import TokenLayout, TokenRole
from ...states.statistics import PUBLISHED_CLIP, PUBLISHED_TARGET_STD, ReferenceStatistics
from ...states.tensors import check_choice
from .numbers import TOKENS, WIDTH, check_finite, check_positive, floored, give, pair, single, std

Masking = Literal["none", "zero", "clamp", "scale"]
Outliers = list[tuple[int, float]]


def scale_embeddings(vl: Tensor, target_std: float = PUBLISHED_TARGET_STD) -> Tensor:
    """``x · target_std / std(x)``, std over all elements; values that do not vary stay.

    Args:
        vl: ``(L, D)`` or ``(B, L, D)``, any float dtype.

    Raises:
        ValueError: for a bad shape or target, or values that are not finite.
    """
    check_positive("target_std", target_std)
    return give(_scaled(single(vl), target_std), vl)


def normalize_per_dimension(
    vl: Tensor, reference: ReferenceStatistics, clip: float | None = PUBLISHED_CLIP
) -> Tensor:
    """``clip((x − mean)/std, ±clip) · std_ref + mean_ref`` per dimension, stds at least 1e-6.

    Args:
        vl: ``(L, D)`` or ``(B, L, D)``. reference: the text encoder's, sinks included. clip: in stds; None for none.

    Raises:
        ValueError: for a reference of another width, or see :func:`scale_embeddings`.
    """
    if clip is not None:
        check_positive("clip", clip)
    return give(_per_dimension(single(vl), reference, clip), vl)


def normalize_hybrid(vl: Tensor, reference: ReferenceStatistics, per_dim_weight: float = 0.5) -> Tensor:
    """``w · per_dim + (1 − w) · global``, global always to 61.0, per_dim clipped at 3. See the two above."""
    check_finite("per_dim_weight", per_dim_weight)
    x = single(vl)
    both = _per_dimension(x, reference, PUBLISHED_CLIP), _scaled(x, PUBLISHED_TARGET_STD)
    return give(per_dim_weight * both[0] + (1 - per_dim_weight) * both[1], vl)


def match_text_std(vl: Tensor, text: Tensor) -> Tensor:
    """``x · std(y)/std(x)``: the spread of this very text (the published layer test). Values that do not vary stay."""
    y, x = pair(text, vl)
    spread = std(x, TOKENS, WIDTH)
    return give(x * torch.where(spread > 0, std(y, TOKENS, WIDTH) / spread.clamp_min(1e-300), 1.0), _like(vl, text))


def match_text_per_dimension(vl: Tensor, text: Tensor) -> Tensor:
    """``(x − mean)/(std + 1e-8) · std(y) + mean(y)`` per dimension, no clipping (the published layer test)."""
    y, x = pair(text, vl)
    z = (x - x.mean(TOKENS, keepdim=True)) / (std(x, TOKENS) + 1e-8)
    return give(z * std(y, TOKENS) + y.mean(TOKENS, keepdim=True), _like(vl, text))


def match_text_mean_and_std(vl: Tensor, text: Tensor) -> Tensor:
    """``(x − mean)/std · std(y) + mean(y)`` over all elements (the published comparison of statistics)."""
    y, x = pair(text, vl)
    spread = std(x, TOKENS, WIDTH)
    z = (x - x.mean((TOKENS, WIDTH), keepdim=True)) / torch.where(spread > 0, spread, 1.0)
    return give(z * std(y, TOKENS, WIDTH) + y.mean((TOKENS, WIDTH), keepdim=True), _like(vl, text))


def get_outlier_dimensions(vl: Tensor, reference: ReferenceStatistics, threshold: float = 10.0) -> Outliers:
    """``[(dimension, std/std_ref), …]`` above ``threshold``, the largest first; std_ref is at least 1e-6.

    Only VL ÷ reference: the published 617× is reference ÷ VL, and this never finds it. One token has no std and no
    outliers. Of a batch each dimension's largest ratio is given. Errors as :func:`normalize_per_dimension`.
    """
    check_positive("threshold", threshold)
    ratios = _ratios(single(vl), reference).amax(0)
    found = [(dimension, float(ratios[dimension])) for dimension in (ratios > threshold).nonzero().flatten().tolist()]
    return sorted(found, key=lambda entry: entry[1], reverse=True)


def mask_outlier_dimensions(
    vl: Tensor, reference: ReferenceStatistics, threshold: float = 10.0, mode: str = "zero"
) -> tuple[Tensor, Outliers]:
    """Outlier dimensions set to 0 (zero) or times threshold·std_ref/std (clamp and scale, one formula there).

    Returns:
        the states, and what :func:`get_outlier_dimensions` found; "none" finds and changes nothing.

    Raises:
        ValueError: for an unknown mode, and see :func:`get_outlier_dimensions`.
    """
    check_choice("mode", mode, Masking)
    found = get_outlier_dimensions(vl, reference, threshold)
    if mode == "none" or not found:
        return vl.clone(), found
    x = single(vl)
    ratios = _ratios(x, reference).unsqueeze(TOKENS)
    factor = torch.zeros_like(ratios) if mode == "zero" else threshold / ratios.clamp_min(threshold)
    return give(torch.where(ratios > threshold, x * factor, x), vl), found


def mask_image_tokens(
    vl: Tensor, layout: TokenLayout, reference: ReferenceStatistics, threshold: float = 10.0, mode: str = "zero"
) -> tuple[Tensor, Outliers]:
    """:func:`mask_outlier_dimensions` measured on and applied to the image tokens of a whole sequence ``(L, D)``.

    The published extraction does this before it selects tokens, so a selection of words alone is not touched by it.
    Where there is no image token nothing is done. Several pictures are measured together.

    Raises:
        ValueError: for a layout of another length, and see :func:`mask_outlier_dimensions`.
    """
    if vl.shape[TOKENS] != len(layout):
        raise ValueError(f"vl_layout: expected {vl.shape[TOKENS]} positions like vl, got {len(layout)}.")
    where = layout.mask(TokenRole.IMAGE)
    if mode == "none" or not where.any():
        return vl, []
    positions = where.nonzero().flatten().to(vl.device)
    masked, found = mask_outlier_dimensions(vl.index_select(TOKENS, positions), reference, threshold, mode)
    return vl.index_copy(TOKENS, positions, masked), found


def _scaled(x: Tensor, target_std: float) -> Tensor:
    spread = std(x, TOKENS, WIDTH)
    return x * torch.where(spread > 0, target_std / spread.clamp_min(1e-300), 1.0)


def _per_dimension(x: Tensor, reference: ReferenceStatistics, clip: float | None) -> Tensor:
    mean, spread = _reference(reference, x.shape[WIDTH])
    z = (x - x.mean(TOKENS, keepdim=True)) / floored(std(x, TOKENS))
    return (z if clip is None else z.clamp(-clip, clip)) * floored(spread) + mean


def _ratios(x: Tensor, reference: ReferenceStatistics) -> Tensor:
    """float64 ``(B, D)``."""
    return std(x, TOKENS)[:, 0] / floored(_reference(reference, x.shape[WIDTH])[1])


def _reference(reference: ReferenceStatistics, width: int) -> tuple[Tensor, Tensor]:
    """Mean and std per dimension, sinks included, float64 ``(D,)``."""
    reference.check_width(width)
    moments = reference.moments("include")
    if moments.count < 2:
        raise ValueError(
            f"reference: expected statistics of at least 2 tokens, got {moments.count}. Measure it on more prompts."
        )
    return moments.mean, moments.std


def _like(vl: Tensor, text: Tensor) -> Tensor:
    """What a VL side that was measured on the text comes back like: a batch where either is one."""
    return vl if vl.ndim >= text.ndim else vl.unsqueeze(0)
