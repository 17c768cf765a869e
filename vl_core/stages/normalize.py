"""Bring the scale of VL states onto that of Z-Image's own text states.

Z-Image RMS-normalises every caption token first, so scale is invisible at alpha = 1; below 1 it is a mixing weight
(see :mod:`blend`, whose dit space is independent of it). Scale per dimension is visible always.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..states.counts import counted
from ..states.layout import TokenLayout
from ..states.sinks import Sinks, TokenSizes
from ..states.statistics import PUBLISHED_CLIP, Moments, ReferenceStatistics
from ..states.tensors import EPSILON, as_batch, check_choice, check_shape, put_back, to_dtype
from .outliers import checked_sizes, reference_moments, tokens_in_scope

NormalizeMode = Literal["none", "global", "per_dim", "hybrid", "rms"]

MOST_SCALE = 1e6  # no encoder comes near; far beyond it finite values would leave float32
NOT_VARYING = "The tokens do not vary in any dimension ({} counted): normalised by their global std instead."
NO_SPREAD = "The values do not vary (std 0): left unchanged."
ZERO_TOKENS = "{} tokens are all zero and have no RMS: left unchanged."

# Of one sequence (L, D): a float32 copy, the original, its sizes (1, L), and which tokens count (1, L) on the CPU. The
# copy is changed in place (new memory costs a CPU more than arithmetic), what does not count in any way.
# -> whether to take the change, and a note or "".
Change = Callable[[Tensor, Tensor, TokenSizes, Tensor], tuple[bool, str]]


@dataclass(frozen=True)
class NormalizeInfo:
    """What was measured and done.

    Attributes:
        original_std, scaled_std: unbiased std over all elements of the counted tokens, before and after; 0 where there
            are fewer than 2 elements.
        original_rms, scaled_rms: median RMS of the counted tokens, before and after; 0 where there are none.
        sinks: attention sinks left alone.
    """

    mode: NormalizeMode
    original_std: float
    scaled_std: float
    original_rms: float
    scaled_rms: float
    sinks: int
    notes: tuple[str, ...]

    def describe(self) -> str:
        """One plain line, then the notes."""
        left = f", {counted(self.sinks, 'attention sink')} left alone" if self.sinks else ""
        line = (
            f"{self.mode}: std {self.original_std:.2f} -> {self.scaled_std:.2f}, median token RMS "
            f"{self.original_rms:.2f} -> {self.scaled_rms:.2f}{left}."
        )
        return "\n".join([line, *self.notes])


def scale_embeddings(x: Tensor, target_std: float, *, sinks: Sinks = "exclude") -> Tensor:
    """``x · target_std / std(x)``, std over all elements (the note's global scaling, with 61.0 and sinks "include").

    Args:
        x: ``(L, D)`` or ``(B, L, D)``; ``sinks``: "exclude" neither measures nor changes attention sinks.

    Returns:
        same shape and dtype, computed in float32. Values that do not vary come back unchanged.

    Raises:
        ValueError: for a bad shape or target, or values that are not finite.
    """
    return normalize(x, "global", target_std=target_std, sinks=sinks)[0]


def normalize_per_dimension(
    x: Tensor, reference: ReferenceStatistics, *, clip: float = PUBLISHED_CLIP, sinks: Sinks = "exclude"
) -> Tensor:
    """``clip((x − mean)/std, ±clip) · std_ref + mean_ref`` per dimension, stds at least 1e-6 (the note's per_dim).

    Arguments and errors are those of :func:`normalize`. A dimension that is constant becomes the reference's mean; if
    none varies (one token, or equal ones) the global std is used instead.
    """
    return normalize(x, "per_dim", reference, clip=clip, sinks=sinks)[0]


def normalize_hybrid(
    x: Tensor,
    reference: ReferenceStatistics,
    *,
    weight: float = 0.5,
    target_std: float | None = None,
    clip: float = PUBLISHED_CLIP,
    sinks: Sinks = "exclude",
) -> Tensor:
    """``weight · per_dim + (1 − weight) · global`` (the note's hybrid). See :func:`normalize`."""
    return normalize(x, "hybrid", reference, target_std=target_std, weight=weight, clip=clip, sinks=sinks)[0]


def normalize_rms(x: Tensor, target_rms: float, *, sinks: Sinks = "exclude") -> Tensor:
    """Each token scaled to RMS ``target_rms``; tokens that are all zero stay.

    Args:
        x: ``(L, D)`` or ``(B, L, D)``; ``sinks``: "exclude" leaves attention sinks at their own RMS.

    Raises:
        ValueError: for a bad shape or target, or values that are not finite.
    """
    check_shape(x)
    check_scale("target_rms", target_rms)
    sizes = checked_sizes(as_batch(x))
    scope, _ = tokens_in_scope(sizes, sinks, None)
    return _rewrite(x, sizes, scope, _token_scaling(target_rms))[0]


def normalize(
    x: Tensor,
    mode: NormalizeMode,
    reference: ReferenceStatistics | None = None,
    *,
    target_std: float | None = None,
    weight: float = 0.5,
    clip: float = PUBLISHED_CLIP,
    sinks: Sinks = "exclude",
    positions: Tensor | None = None,
    layout: TokenLayout | None = None,
) -> tuple[Tensor, NormalizeInfo]:
    """Normalise in one of the modes and report.

    ========  =========================================================================================
    none      x
    global    x · target / std(x), std over all elements; target: ``target_std``, else the reference's
    per_dim   z = clip((x − mean)/std, ±clip) per dimension; z · std_ref + mean_ref, stds at least 1e-6
    hybrid    weight · per_dim + (1 − weight) · global
    rms       each token scaled to the reference's median token RMS
    ========  =========================================================================================

    >>> scaled, info = normalize(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), "global", target_std=2.0)
    >>> round(float(scaled.std()), 4)
    2.0

    Args:
        x: ``(L, D)`` or ``(B, L, D)``, any float dtype; every sequence of a batch is normalised for itself.
        reference: needed by per_dim, hybrid and rms, and by global unless ``target_std`` is given.
        target_std: in the units of the states (published: 61.0, which is one attention sink among 22 tokens).
        weight: share of per_dim in hybrid, 0 to 1. ``clip``: in stds, above 0; infinity turns clipping off.
        sinks: "exclude" neither measures nor changes attention sinks, here and in the reference.
        positions: optional boolean ``(L,)``: measure and change only there; sinks are found on the whole sequence.
        layout: of the ``L`` positions, so that sinks are found among tokens of their own kind (:func:`find_sinks`).

    Returns:
        a new tensor of the same shape and dtype (computed in float32), and what was done. Std 0 leaves the tokens
        unchanged; tokens that vary in no dimension (a single one) take global in place of per_dim. Notes say so.

    Raises:
        ValueError: for a missing or unfit reference, a bad option or shape, or values that are not finite.
    """
    check_choice("mode", mode, NormalizeMode)
    check_shape(x)
    if target_std is not None:
        check_scale("target_std", target_std)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected 0 (global) to 1 (per_dim), got {weight}.")
    if not clip > 0:
        raise ValueError(f"clip: expected a number of stds above 0, got {clip}.")
    before = checked_sizes(as_batch(x))
    scope, left_out = tokens_in_scope(before, sinks, positions, layout)
    change = _change(mode, reference, x.shape[-1], target_std, weight, clip, sinks)
    scaled, notes = _rewrite(x, before, scope, change)
    after = TokenSizes.of(as_batch(scaled))
    info = NormalizeInfo(
        mode, before.global_std(as_batch(x), scope), after.global_std(as_batch(scaled), scope),
        before.median_rms(scope), after.median_rms(scope), left_out, notes,
    )
    return scaled, info


def _change(
    mode: NormalizeMode,
    reference: ReferenceStatistics | None,
    width: int,
    target_std: float | None,
    weight: float,
    clip: float,
    sinks: Sinks,
) -> Change:
    """The mode as a function of the counted tokens, its reference checked."""
    if mode == "none":
        return lambda *_: (False, "")
    if mode == "global" and target_std is not None:
        return _scaling(target_std)
    if reference is None:
        instead = "give target_std" if mode == "global" else "choose mode global with a target_std"
        raise ValueError(
            f"reference: mode {mode} needs the text encoder's statistics, got none. Connect Text Encoder Statistics or "
            f"{instead}."
        )
    moments = reference_moments(reference, width, sinks)
    target = moments.global_std if target_std is None else target_std
    if mode == "global":
        return _scaling(target)
    if mode == "rms":
        if not reference.median_rms > 0:
            raise ValueError(
                f"reference: mode rms needs the median token RMS, got {reference.median_rms}. A published mean and std "
                "do not tell it: measure the text encoder with Text Encoder Statistics, or choose mode global."
            )
        return _token_scaling(reference.median_rms)
    return _matching(moments, target, weight if mode == "hybrid" else 1.0, clip)


def _rewrite(x: Tensor, sizes: TokenSizes, scope: Tensor, change: Change) -> tuple[Tensor, tuple[str, ...]]:
    """``change`` applied to the tokens in scope ``(B, L)`` of each sequence, all others bit for bit, and the notes."""
    batch, notes, kept = as_batch(x), [], []
    scaled = batch.to(torch.float32, copy=True)
    for index, where in enumerate(scope):
        taken, note = False, "No tokens to normalise: left unchanged."
        if where.any():
            # scaled[index] is a plain view: autograd allows writing to it, not to one that iterating gives
            single = TokenSizes(sizes.mean[index : index + 1], sizes.rms[index : index + 1])
            taken, note = change(scaled[index], batch[index], single, where.unsqueeze(0))
        notes.append(note)
        kept.append(~where if taken else torch.ones_like(where))
    scaled = put_back(batch, to_dtype(scaled, x.dtype), torch.stack(kept)) if kept else batch.clone()
    return scaled.reshape(x.shape), tuple(note for note in dict.fromkeys(notes) if note)


def _scaling(target_std: float) -> Change:
    def change(tokens: Tensor, original: Tensor, sizes: TokenSizes, counted: Tensor) -> tuple[bool, str]:
        std = sizes.global_std(original.unsqueeze(0), counted)
        if std <= EPSILON:
            return False, NO_SPREAD
        tokens.mul_(target_std / std)
        return True, ""

    return change


def _token_scaling(target_rms: float) -> Change:
    def change(tokens: Tensor, original: Tensor, sizes: TokenSizes, counted: Tensor) -> tuple[bool, str]:
        is_zero = sizes.rms <= EPSILON
        factor = torch.where(is_zero, 1.0, target_rms / sizes.rms.clamp_min(EPSILON))
        tokens.mul_(factor.view(-1, 1).to(tokens.device))
        zeros = int((is_zero & counted).sum())
        return True, ZERO_TOKENS.format(zeros) if zeros else ""

    return change


def _matching(reference: Moments, target_std: float, weight: float, clip: float) -> Change:
    """``weight`` parts per_dim and the rest global."""
    clip = min(clip, torch.finfo(torch.float32).max)  # beyond which torch takes no number for it

    def change(tokens: Tensor, original: Tensor, sizes: TokenSizes, counted: Tensor) -> tuple[bool, str]:
        own = Moments.centring(tokens, (~counted[0]).nonzero().flatten().to(tokens.device))
        if own.count < 2 or own.std.max() <= EPSILON:  # equal tokens say as little about a spread as one token does
            taken, note = _scaling(target_std)(tokens.copy_(original), original, sizes, counted)
            return taken, note or NOT_VARYING.format(own.count)
        std, target = own.std.clamp_min(EPSILON), reference.std.clamp_min(EPSILON)
        std, target, mean = torch.stack([std, target, reference.mean]).float().to(tokens.device)
        tokens.div_(std).clamp_(-clip, clip).mul_(target).add_(mean)
        if weight < 1:
            own_std = sizes.global_std(original.unsqueeze(0), counted)
            factor = target_std / own_std if own_std > EPSILON else 1.0
            tokens.mul_(weight).add_(original, alpha=(1 - weight) * factor)
        return True, ""

    return change


def check_scale(name: str, value: float) -> None:
    """Raise ValueError unless a std or an RMS to scale to is one that encoders may have."""
    if not 0 < value <= MOST_SCALE:
        raise ValueError(f"{name}: expected a number above 0 and at most {MOST_SCALE:g}, got {value}.")
