"""The chain before a blend: select tokens, mask outlier dimensions, normalise. Written here and nowhere else."""

from __future__ import annotations

from torch import Tensor

from ..states.layout import TokenLayout, TokenRole
from ..states.sinks import Sinks
from ..states.statistics import ReferenceStatistics
from .normalize import NormalizeMode, normalize
from .outliers import Direction, MaskMode, mask_outlier_dimensions
from .select import TokenSelection, select_tokens


def prepare(
    states: Tensor,
    layout: TokenLayout,
    reference: ReferenceStatistics | None = None,
    *,
    tokens: TokenSelection = "all",
    downsample: int = 1,
    outlier_mode: MaskMode = "none",
    outlier_threshold: float = 10.0,
    outlier_direction: Direction = "both",
    outlier_gamma: float = 0.5,
    pictures_only: bool = False,
    normalization: NormalizeMode = "none",
    target_std: float | None = None,
    sinks: Sinks = "exclude",
) -> tuple[Tensor, TokenLayout, list[str]]:
    """VL states ready to be blended.

    Args:
        states: ``(L, D)``; ``layout``: what its tokens are.
        reference: the text encoder's statistics, which outliers and normalization compare with.
        tokens, downsample: see :func:`select_tokens`.
        outlier_mode … outlier_gamma: see :func:`mask_outlier_dimensions`.
        pictures_only: measure and change outliers on image tokens only, where the selection left any.
        normalization, target_std: see :func:`normalize`. sinks: of both.

    Returns:
        the states in float32, so that no stage rounds, their layout, and a line for each stage that did something.

    Raises:
        ValueError: for statistics that are needed and not given, and see the stages.
    """
    own_target = normalization == "global" and target_std is not None
    if reference is None and (outlier_mode != "none" or (normalization != "none" and not own_target)):
        raise ValueError(
            f"reference: normalization {normalization} and outliers {outlier_mode} compare with the text encoder's "
            "statistics, got none. Measure them, or choose none for both."
        )
    lines: list[str] = []
    states = states.float()
    if tokens != "all" or downsample != 1:
        states, layout = select_tokens(states, layout, tokens, downsample=downsample if layout.grids else 1)
        lines.append(f"{tokens} tokens: {layout.describe()}")
    if outlier_mode != "none":
        assert reference is not None, "refused above"
        pictures = layout.mask(TokenRole.IMAGE)
        states, found = mask_outlier_dimensions(
            states, outlier_threshold, outlier_mode, reference=reference, direction=outlier_direction,
            gamma=outlier_gamma, sinks=sinks, positions=pictures if pictures_only and bool(pictures.any()) else None,
            layout=layout,
        )
        lines.append(found.describe())
    if normalization != "none":
        states, scaled = normalize(
            states, normalization, reference, target_std=target_std, sinks=sinks, layout=layout
        )
        lines.append(scaled.describe())
    return states, layout, lines
