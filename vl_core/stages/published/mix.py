"""Published: the whole method in one call, from VL states of a picture and a prompt to mixed states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...states.layout import TokenLayout
from ...states.statistics import ReferenceStatistics
from ...states.tensors import check_layout
from ..select import select_tokens
from . import blends, cleaning
from .gram import gram_style_transfer
from .numbers import give, single, std, wide
from .settings import TOKENS, PublishedSettings

RECOMMENDED = PublishedSettings()
WORST_SHOWN = 5  # masked dimensions named in a line


def published(
    text: Tensor,
    text_layout: TokenLayout | None,
    vl: Tensor,
    vl_layout: TokenLayout,
    settings: PublishedSettings = RECOMMENDED,
    reference: ReferenceStatistics | None = None,
    *,
    neutral: Tensor | None = None,
    neutral_layout: TokenLayout | None = None,
    more_layers: Sequence[Tensor] = (),
    importance: Tensor | Sequence[float] | None = None,
) -> tuple[Tensor, TokenLayout | None, list[str]]:
    """Mask outliers on image tokens, select, normalise, scale and mix, in that order, as published.

    Args:
        text: ``(L, D)`` or ``(B, L, D)``; ``text_layout``: of its tokens, where known.
        vl, vl_layout: the whole VL sequence ``(L_vl, D)`` at one layer, and what its tokens are.
        settings: what to do.
        reference: the text encoder's statistics, where ``settings.needs_statistics``.
        neutral, neutral_layout: the same reading of a :func:`neutral_picture`, where ``settings.needs_neutral``; the
            layout is ``vl_layout`` unless given.
        more_layers: other layers of the same reading, for the mean of Gram matrices.
        importance: of each of the text's tokens, for attention_weighted; None weighs them all alike.

    Returns:
        states in the text's dtype and on its device, as long as the text, the shorter side or (linear at alpha 1) the
        VL; their layout, None if it is not known; a line for each thing that was done.

    Raises:
        ValueError: for what is missing, layouts of another length, or see the functions.
    """
    check_layout("text", text_layout, text)
    check_layout("vl", vl_layout, vl)
    if settings.alpha == 0:
        return text.clone(), text_layout, ["alpha 0: the text alone."]
    lines: list[str] = []
    x, layout = clean(text, vl, vl_layout, settings, reference, lines)
    if settings.method == "style_delta":
        if neutral is None:
            raise ValueError(
                "neutral: style_delta needs VL states of a neutral picture, got none. Read one, or choose another "
                "method."
            )
        n, _ = clean(text, neutral, neutral_layout or vl_layout, settings, reference, [], "neutral")
        delta = blends.compute_style_delta(x, n, settings.unit_delta)
        mixed = blends.blend_with_style_delta(text, delta, settings.alpha, settings.delta_to_text)
    elif settings.method == "gram_style":
        others = [clean(text, other, vl_layout, settings, reference, [], "more_layers")[0] for other in more_layers]
        mixed = gram_style_transfer(text, [x, *others], settings.alpha, settings.gram_steps, settings.gram_rate)
    else:
        mixed = _mix(text, x, settings, importance)
    before, after = text.shape[-2], mixed.shape[-2]
    cut = f", cut to {after} of the text's {before} tokens" if after < before else ""
    lines.append(f"{settings.method}, alpha {settings.alpha:g}: std {_spread(mixed):.2f}{cut}.")
    return mixed, _layout_of(mixed, text_layout, layout, settings), lines


def clean(
    text: Tensor,
    vl: Tensor,
    layout: TokenLayout,
    settings: PublishedSettings,
    reference: ReferenceStatistics | None,
    lines: list[str],
    name: str = "vl",
) -> tuple[Tensor, TokenLayout]:
    """VL states ready to be mixed, in float64 on the CPU: masked on image tokens, selected, normalised and scaled.

    Args:
        lines: gets one for each thing that was done. ``name``: what errors call the VL.

    Raises:
        ValueError: for statistics that are needed and not given, and see the functions.
    """
    single(vl, name)  # finite, and says whose it is if not
    if settings.needs_statistics and reference is None:
        raise ValueError(
            f"reference: normalization {settings.normalization} and outlier_masking {settings.outlier_masking} "
            "compare with the text encoder's statistics, got none. Measure them, or choose global and none."
        )
    x = wide(vl)  # once, so that no stage rounds
    if reference is not None and settings.outlier_masking != "none":
        x, found = cleaning.mask_image_tokens(
            x, layout, reference, settings.outlier_threshold, settings.outlier_masking
        )
        lines.append(_masked(found, settings))
    x, layout = select_tokens(x, layout, TOKENS[settings.tokens])
    before = _spread(x)
    x = _normalised(text, x, settings, reference)
    if settings.scale_factor != 1:
        x = give(single(x) * settings.scale_factor, x)
    scaled = f"{settings.normalization}: std {before:.2f} -> {_spread(x):.2f}"
    lines.append(f"{settings.tokens} tokens: {layout.describe()}; {scaled}.")
    return x, layout


def _normalised(
    text: Tensor, x: Tensor, settings: PublishedSettings, reference: ReferenceStatistics | None
) -> Tensor:
    mode = settings.normalization
    if mode == "none" or _spread(x) == 0:  # as published: what does not vary is left alone
        return x
    if mode == "global":
        return cleaning.scale_embeddings(x, settings.target_std)
    if mode == "text_std":
        return cleaning.match_text_std(x, text)
    if mode == "text_per_dim":
        return cleaning.match_text_per_dimension(x, text)
    if mode == "text_mean_std":
        return cleaning.match_text_mean_and_std(x, text)
    assert reference is not None, "checked by clean"
    if mode == "hybrid":
        return cleaning.normalize_hybrid(x, reference, settings.per_dim_weight)
    return cleaning.normalize_per_dimension(x, reference, settings.clip or None)


def _mix(
    text: Tensor, x: Tensor, settings: PublishedSettings, importance: Tensor | Sequence[float] | None
) -> Tensor:
    alpha, method = settings.alpha, settings.method
    if method == "interpolate":
        return blends.blend_interpolate(text, x, alpha)
    if method == "linear":
        return blends.blend_embeddings(text, x, alpha)
    if method in ("adain", "adain_global"):
        return blends.blend_adain(text, x, alpha, per_token=method == "adain")
    if method == "adain_per_dim":
        return blends.blend_adain_per_dim(text, x, alpha)
    if method == "style_only":
        return blends.blend_style_only(text, x, alpha, settings.style_dims(text.shape[-1]))
    if method == "graduated":
        length = min(text.shape[-2], x.shape[-2])
        end = settings.end_factor * alpha
        curve = blends.create_graduated_alpha(length, settings.start_alpha, end, settings.curve)
        return blends.blend_per_token(text, x, curve)
    if method == "attention_weighted":
        return blends.blend_attention_weighted(text, x, alpha, importance)
    if method == "surgical_fix":
        return blends.surgical_dimension_fix(text, x, alpha, settings.replaced())
    return blends.slerp_blend(text, x, alpha)


def _layout_of(
    mixed: Tensor, text_layout: TokenLayout | None, vl_layout: TokenLayout, settings: PublishedSettings
) -> TokenLayout | None:
    """The VL's where linear at alpha 1 gave the whole VL, else the text's, cut like the states."""
    length = mixed.shape[-2]
    if settings.method in ("linear", "attention_weighted") and settings.alpha == 1 and length == len(vl_layout):
        return replace(vl_layout, source="blend")
    if text_layout is None:
        return None
    return replace(text_layout.select(torch.arange(len(text_layout)) < length), source="blend")


def _masked(found: cleaning.Outliers, settings: PublishedSettings) -> str:
    if not found:
        return f"No dimension of the image tokens spreads more than {settings.outlier_threshold:g}×."
    named = ", ".join(f"{dimension} ({ratio:.4g}×)" for dimension, ratio in found[:WORST_SHOWN])
    more = f" and {len(found) - WORST_SHOWN} more" if len(found) > WORST_SHOWN else ""
    return f"{settings.outlier_masking} on image tokens: dimensions {named}{more}."


def _spread(x: Tensor) -> float:
    return float(std(single(x), -3, -2, -1))
