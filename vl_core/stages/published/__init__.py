"""The published method, complete and apart: the research note and its public code, by their own arithmetic.

Nothing here is what the rest of the pack recommends. What each part does to pictures was not measured; what it
computes is held to a transcription in numpy (``tests/unit/stages/test_published.py``). Everything runs in float64 on
the CPU. Where the published code gives NaN or divides by zero (a single token's std, opposite tokens on an arc), a
std counts as 0 or the tokens are mixed along the line, and the function says so.

=====================  ================================================================================
cleaning
  scale_embeddings     all elements to one std, 61.0
  normalize_…          per dimension to the text encoder's mean and std, or half of that and half global
  match_text_…         to the spread of this very text
  mask_…, get_…        dimensions of image tokens whose VL ÷ reference std is too large: 0, or at the limit
blends
  blend_interpolate    αx + (1 − α)y, the VL stretched over the text
  blend_embeddings     the same, both cut to the shorter
  blend_style_only     the same in some dimensions only, the upper third
  blend_per_token      the same with an alpha for each token: graduated, or by its importance
  blend_adain…         the text with the VL's mean and std: of each token, of everything, of each dimension
  slerp_blend          along the arc, token by token
  surgical_…           αx + (1 − α)y, but the text's values in twenty dimensions
  …style_delta         the text plus what a picture has over a grey one
  gram_style_transfer  the text moved towards the VL's Gram matrix
  alpha_at_step        an alpha that falls over the denoising steps, for whoever paints
reading
  neutral_picture      the grey picture
  native_template      the template that Qwen3-VL was trained on, Thinking or Instruct
=====================  ================================================================================

:func:`published` does all of it as :class:`PublishedSettings` say; ``PRESETS`` are the published comparisons.
"""

from .blends import (
    alpha_at_step,
    blend_adain,
    blend_adain_per_dim,
    blend_attention_weighted,
    blend_embeddings,
    blend_interpolate,
    blend_per_token,
    blend_style_only,
    blend_with_style_delta,
    compute_blend_stats,
    compute_style_delta,
    create_graduated_alpha,
    interpolate_sequence,
    slerp_blend,
    surgical_dimension_fix,
)
from .cleaning import (
    get_outlier_dimensions,
    mask_image_tokens,
    mask_outlier_dimensions,
    match_text_mean_and_std,
    match_text_per_dimension,
    match_text_std,
    normalize_hybrid,
    normalize_per_dimension,
    scale_embeddings,
)
from .gram import gram_matrix, gram_style_transfer
from .mix import clean, published
from .presets import PRESETS, PublishedPreset, PublishedRun
from .reading import estimate_token_count, native_template, neutral_picture
from .settings import FIELDS, PublishedSettings, read_settings, write_settings

__all__ = [
    "FIELDS",
    "PRESETS",
    "PublishedPreset",
    "PublishedRun",
    "PublishedSettings",
    "alpha_at_step",
    "blend_adain",
    "blend_adain_per_dim",
    "blend_attention_weighted",
    "blend_embeddings",
    "blend_interpolate",
    "blend_per_token",
    "blend_style_only",
    "blend_with_style_delta",
    "clean",
    "compute_blend_stats",
    "compute_style_delta",
    "create_graduated_alpha",
    "estimate_token_count",
    "get_outlier_dimensions",
    "gram_matrix",
    "gram_style_transfer",
    "interpolate_sequence",
    "mask_image_tokens",
    "mask_outlier_dimensions",
    "match_text_mean_and_std",
    "match_text_per_dimension",
    "match_text_std",
    "native_template",
    "neutral_picture",
    "normalize_hybrid",
    "normalize_per_dimension",
    "published",
    "read_settings",
    "scale_embeddings",
    "slerp_blend",
    "surgical_dimension_fix",
    "write_settings",
]
