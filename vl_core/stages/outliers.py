"""Dimensions whose spread differs wildly from the reference's: found, reported and tamed.

The published "617× outlier" (dimension 396 of Qwen3-4B at layer -2) is reference ÷ picture, not picture ÷ reference:
picture tokens contain no attention sink, the reference did. So both directions are looked at unless told otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..states.counts import counted
from ..states.layout import TokenLayout
from ..states.sinks import Sinks, TokenSizes, counted_among
from ..states.statistics import Moments, ReferenceStatistics
from ..states.tensors import EPSILON, all_finite, as_batch, check_choice, check_shape, describe_not_finite, to_dtype

Direction = Literal["over", "under", "both"]
MaskMode = Literal["none", "zero", "clamp", "scale"]

WORST_SHOWN = 5  # dimensions named in a report; the rest are counted
DONE = {
    "none": "left unchanged", "zero": "set to zero", "clamp": "clamped to the threshold",
    "scale": "moved towards the threshold",
}


def checked_sizes(batch: Tensor) -> TokenSizes:
    """The size of every token of ``(B, L, D)``, which tells at once whether all values are finite.

    Raises:
        ValueError: if one is not.
    """
    sizes = TokenSizes.of(batch)
    if not sizes.rms.isfinite().all() and not all_finite(batch):
        raise describe_not_finite("embeddings")
    return sizes


def tokens_in_scope(
    sizes: TokenSizes, sinks: Sinks, positions: Tensor | None, layout: TokenLayout | None = None
) -> tuple[Tensor, int]:
    """Which tokens a stage measures and changes.

    Args:
        sizes: of the tokens ``(B, L)``. Sinks are found on whole sequences, each for itself.
        positions: optional boolean ``(L,)``, the same for every sequence of a batch.
        layout: of the ``L`` positions, which tells kinds of tokens apart (:func:`find_sinks`).

    Returns:
        boolean ``(B, L)`` on the CPU, and how many sinks were left out at ``positions``.

    Raises:
        ValueError: if ``positions`` or the layout has another shape or type, or ``sinks`` is unknown.
    """
    counted = counted_among(sizes.rms, sinks, layout)
    if positions is None:
        return counted, int((~counted).sum())
    length = counted.shape[1]
    if positions.dtype != torch.bool or tuple(positions.shape) != (length,):
        raise ValueError(
            f"positions: expected booleans of shape ({length},), one per token, got {positions.dtype} of shape "
            f"{tuple(positions.shape)}."
        )
    positions = positions.cpu()
    return counted & positions, int((~counted & positions).sum())


def reference_moments(reference: ReferenceStatistics, width: int, sinks: Sinks) -> Moments:
    """The reference's moments, checked to be usable on embeddings of ``width``.

    Raises:
        ValueError: if the width is another, or fewer than 2 tokens were measured.
    """
    reference.check_width(width)
    moments = reference.moments(sinks)
    if moments.count < 2:
        raise ValueError(
            f"reference: expected statistics of at least 2 tokens, got {moments.count}. Measure it on more prompts."
        )
    return moments


@dataclass(frozen=True)
class OutlierInfo:
    """What was found and done.

    Attributes:
        masked_dimensions: the dimensions found, the largest ratio first (mode "none" finds them but changes nothing).
        ratios: their std ratios, each ≥ 1 on its ``sides`` ("over": wider than the reference, "under": narrower).
        tokens: how many tokens the statistics ran over; ``sinks`` how many were left out as attention sinks.
        width: D.
    """

    mode: MaskMode
    threshold: float
    direction: Direction
    masked_dimensions: tuple[int, ...]
    ratios: tuple[float, ...]
    tokens: int
    notes: tuple[str, ...]
    sides: tuple[str, ...] = ()
    width: int = 0
    sinks: int = 0

    def describe(self) -> str:
        """One or two plain lines, then the notes."""
        count = len(self.masked_dimensions)
        beyond = {"over": "wider than", "under": "narrower than", "both": "off"}[self.direction]
        done = DONE[self.mode] if count else "nothing to do"
        left = f" ({counted(self.sinks, 'attention sink')} left alone)" if self.sinks else ""
        lines = [
            f"{count} of {self.width} dimensions more than {self.threshold:g}× {beyond} the reference, measured over "
            f"{self.tokens} tokens{left}: {done}."
        ]
        if count:
            worst = zip(self.masked_dimensions, self.ratios, self.sides, strict=True)
            named = [f"{dimension} ({ratio:.4g}× {side})" for dimension, ratio, side in list(worst)[:WORST_SHOWN]]
            more = f" and {count - len(named)} more" if count > len(named) else ""
            lines.append(f"Worst: {', '.join(named)}{more}.")
        return "\n".join([*lines, *self.notes])


def get_outlier_dimensions(
    embeddings: Tensor,
    threshold: float = 10.0,
    *,
    reference: ReferenceStatistics | Tensor,
    direction: Direction = "both",
    sinks: Sinks = "exclude",
    positions: Tensor | None = None,
    layout: TokenLayout | None = None,
) -> list[tuple[int, float]]:
    """Dimensions whose std is more than ``threshold`` times the reference's, or less than a ``threshold``-th of it.

    Arguments, formula and errors are those of :func:`mask_outlier_dimensions`.

    >>> states = torch.tensor([[1.0, 100.0], [-1.0, -100.0], [1.0, -100.0]])
    >>> [(dimension, round(ratio)) for dimension, ratio in get_outlier_dimensions(states, reference=torch.ones(2))]
    [(1, 115)]

    Returns:
        ``[(dimension, ratio), …]``, the largest ratio first.
    """
    info = mask_outlier_dimensions(
        embeddings, threshold, "none", reference=reference, direction=direction, sinks=sinks, positions=positions,
        layout=layout,
    )[1]
    return list(zip(info.masked_dimensions, info.ratios, strict=True))


def mask_outlier_dimensions(
    embeddings: Tensor,
    threshold: float = 10.0,
    mode: MaskMode = "zero",
    *,
    reference: ReferenceStatistics | Tensor,
    direction: Direction = "both",
    gamma: float = 0.5,
    sinks: Sinks = "exclude",
    positions: Tensor | None = None,
    layout: TokenLayout | None = None,
) -> tuple[Tensor, OutlierInfo]:
    """Find outlier dimensions and tame them.

    With s the std of a dimension over the tokens (unbiased), r the reference's, both at least 1e-6: over = s/r,
    under = r/s, both = the larger. A dimension is an outlier if its ratio is above ``threshold``. Its column becomes 0
    (zero), × threshold·r/s if over or × r/(threshold·s) if under (clamp: the ratio is then the threshold), or × that
    factor to the power ``gamma`` (scale). "Over" columns are scaled about 0, so their means shrink along; "under" ones
    about their mean, which would otherwise grow with the spread. A column that is
    constant (s ≤ 1e-6) has no spread to bring to the threshold: clamp and scale leave it and say so.

    Source: the research note's outlier masking (direction "over", sinks "include"; its clamp and scale were one
    formula, here scale is the gradual one its table describes).

    Args:
        embeddings: ``(L, D)`` or ``(B, L, D)``, any float dtype. Each sequence of a batch is measured and changed for
            itself; the report joins them, with the largest ratio of each dimension.
        threshold: at least 1.
        reference: statistics of the text encoder, or its std per dimension ``(D,)``.
        gamma: in (0, 1]; 1 makes "scale" equal to "clamp".
        sinks: "exclude" neither measures nor changes attention sinks; "include" treats them like any token.
        positions: optional boolean ``(L,)``: measure and change only there.
        layout: of the ``L`` positions, so that sinks are found among tokens of their own kind (:func:`find_sinks`).

    Returns:
        a new tensor of the same shape and dtype (computed in float32), and what was found. With fewer than 2 tokens
        in scope there is no std: nothing is changed, and a note says so.

    Raises:
        ValueError: for a bad option or shape, values that are not finite, or a reference of another width.
    """
    check_choice("mode", mode, MaskMode)
    check_choice("direction", direction, Direction)
    check_shape(embeddings)
    if not threshold >= 1:
        raise ValueError(f"threshold: expected a ratio of at least 1, got {threshold}. Below 1 all are outliers.")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma: expected a number above 0 and up to 1 (1 = clamp), got {gamma}.")
    scope, left_out = tokens_in_scope(checked_sizes(as_batch(embeddings)), sinks, positions, layout)
    spread = _reference_spread(reference, embeddings.shape[-1], sinks)

    batch, changes = as_batch(embeddings), []
    found: dict[int, tuple[float, str]] = {}
    notes: list[str] = []
    for index, where in enumerate(scope):
        count = int(where.sum())
        if count < 2:
            notes.append(f"Fewer than 2 tokens to measure ({count}): outliers cannot be found, left unchanged.")
            continue
        left_alone = (~where).nonzero().flatten().to(batch.device)
        own = Moments.centring(batch[index].to(torch.float32, copy=True), left_alone)
        own_spread = own.std
        ratio, is_over = _ratios(own_spread, spread, direction)
        flagged = ratio > threshold
        dimensions = flagged.nonzero().flatten()
        sides = zip(dimensions.tolist(), ratio[dimensions].tolist(), is_over[dimensions].tolist(), strict=True)
        for dimension, own_ratio, over in sides:
            entry = (own_ratio, "over" if over else "under")
            found[dimension] = max(found.get(dimension, entry), entry)
        if mode in ("clamp", "scale"):
            constant = flagged & ~is_over & (own_spread <= EPSILON)
            if constant.any():
                notes.append(f"{int(constant.sum())} of them are constant: scaling cannot spread them, left unchanged.")
            flagged = flagged & ~constant
        if mode != "none" and flagged.any():
            factor = _factor(ratio, is_over, threshold, mode, gamma)[flagged].float().to(batch.device)
            rows, columns = (which.nonzero().flatten().to(batch.device) for which in (where, flagged))
            about = torch.where(is_over, 0.0, own.mean) if mode != "zero" else torch.zeros_like(own.mean)
            changes.append((index, rows.unsqueeze(-1), columns, factor, about[flagged].float().to(batch.device)))

    masked = batch.clone()
    for index, rows, columns, factor, about in changes:
        values = about + (batch[index, rows, columns].float() - about) * factor
        # masked[index] is a plain view: autograd allows writing to it, not to one that iterating gives
        masked[index][rows, columns] = to_dtype(values, batch.dtype)

    order = sorted(found, key=lambda dimension: (-found[dimension][0], dimension))
    info = OutlierInfo(
        mode, threshold, direction, tuple(order), tuple(found[dimension][0] for dimension in order), int(scope.sum()),
        tuple(dict.fromkeys(notes)), tuple(found[dimension][1] for dimension in order), embeddings.shape[-1], left_out,
    )
    return masked.reshape(embeddings.shape), info


def _reference_spread(reference: ReferenceStatistics | Tensor, width: int, sinks: Sinks) -> Tensor:
    """Std per dimension, float64 ``(D,)`` on the CPU, at least EPSILON."""
    if isinstance(reference, ReferenceStatistics):
        return reference_moments(reference, width, sinks).std.clamp_min(EPSILON)
    if tuple(reference.shape) != (width,) or not reference.is_floating_point():
        raise ValueError(
            f"reference: expected a std per dimension, floats of shape ({width},), got {reference.dtype} of shape "
            f"{tuple(reference.shape)}. Measure it on the text encoder of this workflow."
        )
    spread = reference.detach().to("cpu", torch.float64)
    if not (spread.isfinite() & (spread >= 0)).all():
        raise ValueError("reference: expected finite stds of at least 0, got NaN, infinity or a negative one.")
    return spread.clamp_min(EPSILON)


def _ratios(own_spread: Tensor, spread: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """The ratio per dimension on the side asked for, and whether that side is "over"."""
    over = own_spread.clamp_min(EPSILON) / spread
    if direction == "both":
        return torch.maximum(over, 1 / over), over >= 1
    return (over if direction == "over" else 1 / over), torch.full_like(over, direction == "over", dtype=torch.bool)


def _factor(ratio: Tensor, is_over: Tensor, threshold: float, mode: MaskMode, gamma: float) -> Tensor:
    """What each column is multiplied with, were it an outlier."""
    if mode == "zero":
        return torch.zeros_like(ratio)
    clamp = torch.where(is_over, threshold / ratio, ratio / threshold)
    return clamp if mode == "clamp" else clamp**gamma
