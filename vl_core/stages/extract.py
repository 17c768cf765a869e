"""One call from picture and prompt to cleaned embeddings: encode, mask outliers, select, normalise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..pictures import DEFAULT_BUDGET, as_pictures
from ..states.families import ZIMAGE
from ..states.layout import TokenLayout, TokenRole
from ..states.sinks import Sinks
from ..states.statistics import ReferenceStatistics
from ..states.tensors import check_choice
from .normalize import NormalizeMode, check_scale, normalize
from .outliers import Direction, MaskMode, mask_outlier_dimensions
from .published.reading import native_template as native_family
from .select import SELECTIONS, TokenSelection, select_tokens

DEFAULT_LAYER = -6  # the research note's choice


@dataclass(frozen=True, eq=False)
class VLExtraction:
    """What :func:`extract` gave.

    Attributes:
        embeddings: float32 ``(L, D)`` on the encoder's device.
        layout: of the ``L`` positions.
        masked_dimensions: outlier dimensions found, largest ratio first; ``masked_dim_ratios`` their std ratios.
        original_std, scaled_std: over all counted elements before and after normalising.
        notes: one line for everything worth telling: picture sizes, what was masked and scaled.
    """

    embeddings: Tensor
    layout: TokenLayout
    masked_dimensions: tuple[int, ...]
    masked_dim_ratios: tuple[float, ...]
    original_std: float
    scaled_std: float
    notes: tuple[str, ...]


def extract(
    encoder: Any,
    image: Any,
    text: str,
    hidden_layer: int = DEFAULT_LAYER,
    token_selection: TokenSelection = "text",
    normalization_mode: NormalizeMode = "none",
    outlier_masking: MaskMode = "none",
    outlier_threshold: float = 10.0,
    reference: ReferenceStatistics | None = None,
    sinks: Sinks = "exclude",
    direction: Direction = "over",
    system_prompt: str | None = None,
    budget: int = DEFAULT_BUDGET,
    target_std: float | None = None,
    *,
    outlier_gamma: float = 1.0,
    native_template: bool = False,
    check: Callable[[], None] = lambda: None,
) -> VLExtraction:
    """Encode pictures and a prompt, tame outlier dimensions, keep some tokens and bring them onto a scale.

    Outliers are sought among image tokens before the selection, only those wider than the reference, and scale is
    clamp, as in the research note's code; its own reference counts sinks (``sinks="include"``).

    Args:
        encoder: a :class:`Qwen3VLEncoder`.
        image: a picture, a list of them, or None. Pictures are tensors ``(H, W, C)`` or ``(B, H, W, C)``, float in
            [0, 1] or uint8, or PIL images.
        text: the prompt.
        hidden_layer: Hugging Face ``hidden_states`` index, negative from the end.
        token_selection: see :func:`select_tokens`.
        normalization_mode, target_std: see :func:`normalize`.
        outlier_masking, outlier_threshold, outlier_gamma, direction: see :func:`mask_outlier_dimensions`. Measured on
            and changed at image tokens only, whatever is selected; at all tokens if there is no picture.
        reference: the text encoder's statistics: needed for outliers and every normalisation but "global" with a
            ``target_std``.
        sinks: whether attention sinks count, in both stages.
        native_template: read in the template the encoder was trained on (:func:`.published.native_template`).
        system_prompt, budget, check: see :meth:`Qwen3VLEncoder.encode`.

    Raises:
        TypeError: if a picture is neither tensor nor PIL image.
        ValueError: for options that do not fit together (before the encoder runs); also from the stages.
    """
    pictures = as_pictures(image)
    check_options(
        len(pictures), token_selection, normalization_mode, outlier_masking, outlier_threshold, reference, sinks,
        direction, target_std,
    )
    notes: list[str] = []
    family = native_family(encoder.variant) if native_template else ZIMAGE
    seen = encoder.encode(
        pictures, text, (hidden_layer,), system_prompt, budget=budget, check=check, notes=notes, family=family
    )
    embeddings, layout = seen.at(hidden_layer)
    embeddings = embeddings.float()  # once, so that no stage rounds
    masked_dimensions, ratios = (), ()
    if outlier_masking != "none" and reference is not None:  # check_options has seen to it
        at_pictures = layout.mask(TokenRole.IMAGE)
        embeddings, masking = mask_outlier_dimensions(
            embeddings, outlier_threshold, outlier_masking, reference=reference, direction=direction,
            gamma=outlier_gamma, sinks=sinks, positions=at_pictures if at_pictures.any() else None, layout=layout,
        )
        masked_dimensions, ratios = masking.masked_dimensions, masking.ratios
        notes.append(masking.describe())
    embeddings, layout = select_tokens(embeddings, layout, token_selection)
    embeddings, scaling = normalize(
        embeddings, normalization_mode, reference, target_std=target_std, sinks=sinks, layout=layout
    )
    notes.append(scaling.describe())
    return VLExtraction(
        embeddings, layout, tuple(masked_dimensions), tuple(ratios), scaling.original_std, scaling.scaled_std,
        tuple(notes),
    )


def check_options(
    pictures: int,
    token_selection: str,
    normalization_mode: str,
    outlier_masking: str,
    outlier_threshold: float,
    reference: ReferenceStatistics | None,
    sinks: str,
    direction: str,
    target_std: float | None,
) -> None:
    """Refuse options of :func:`extract` that cannot work, before an encoder is loaded or run.

    Args:
        pictures: how many there are; the rest as in :func:`extract`.

    Raises:
        ValueError: naming the input, what was expected and how to mend it.
    """
    if token_selection not in SELECTIONS:
        raise ValueError(f"tokens: expected one of {', '.join(SELECTIONS)}, got {token_selection!r}.")
    check_choice("normalization", normalization_mode, NormalizeMode)
    check_choice("outlier masking", outlier_masking, MaskMode)
    check_choice("sinks", sinks, Sinks)
    check_choice("direction", direction, Direction)
    if token_selection.startswith("image") and not pictures:
        raise ValueError(f"tokens: {token_selection!r} needs at least one picture, got none. Give one, or select text.")
    if not outlier_threshold >= 1:
        raise ValueError(f"outlier threshold: expected a ratio of at least 1, got {outlier_threshold}.")
    if target_std is not None:
        check_scale("target std", target_std)
    if reference is None:
        needs = []
        if outlier_masking != "none":
            needs.append(f"outlier masking {outlier_masking!r}")
        if normalization_mode != "none" and not (normalization_mode == "global" and target_std is not None):
            needs.append(f"normalization {normalization_mode!r}")
        if needs:
            raise ValueError(
                f"reference: {' and '.join(needs)} compare with the text encoder's statistics, got none. Measure them "
                "with `calibrate` and give the result."
            )


