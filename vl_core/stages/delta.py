"""Image delta: what the picture added at each of the prompt's tokens, carried over to Z-Image's own text states.

The same sequence is read twice, with the picture and with a baseline in its place. Their difference at the words is
what the picture did to them; whatever sets Qwen3-VL apart from Qwen3-4B is on both sides and cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..states.counts import counted
from ..states.layout import TokenLayout
from ..states.sinks import Sinks, counted_among
from ..states.tensors import EPSILON, check_choice, check_layout, median, paired_with, put_back, to_dtype, token_rms
from .alignment import align, doubts_about_words, mean_products, median_cosine
from .alpha import number_per_token

MAX_WEIGHT = 3.0


@dataclass(frozen=True, eq=False)
class DeltaInfo:
    """What was added.

    Attributes:
        weight: its lowest and highest value.
        tokens: length of the result.
        layout: of the result, with source "blend"; None if the text's is unknown.
        moved: tokens of all sequences that the picture changed and that are no sinks.
        relative_size: the median over them of the delta's RMS in units of its token's RMS, before weight, direction
            and rank; 0 if there are none.
        energy_kept: share of the delta's summed squares that ``remove_prompt_direction`` and ``rank`` left, 1 if
            neither was asked for; ``direction_removed``: what the first of them took.
        rank: directions kept of the delta, None for all.
        sinks: positions that kept the text's vector because a side is an attention sink there.
        cosine: the median over positions of the cosine between text and baseline.
    """

    weight: tuple[float, float]
    tokens: int
    layout: TokenLayout | None
    moved: int
    relative_size: float
    energy_kept: float
    direction_removed: float
    rank: int | None
    sinks: int
    cosine: float
    notes: tuple[str, ...]

    def describe(self) -> str:
        """A few plain lines, then the notes."""
        low, high = self.weight
        weight = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        if not self.moved:
            lines = ["image delta: the picture changed no token, the text stays as it is."]
        else:
            kept = f", {counted(self.sinks, 'attention sink')} kept from the text" if self.sinks else ""
            lines = [
                f"image delta: weight {weight}, {counted(self.tokens, 'token')}{kept}.",
                f"The picture moved {counted(self.moved, 'token')}, by {self.relative_size:.2f} of their size "
                "(median).",
            ]
        if self.energy_kept < 1:
            along = f", {self.direction_removed:.0%} lay along the prompt's own direction"
            parts = (along if self.direction_removed else "") + (f", rank {self.rank}" if self.rank else "")
            lines.append(f"{self.energy_kept:.0%} of the delta's energy is kept{parts}.")
        return "\n".join([*lines, *self.notes])


def image_delta(
    text: Tensor,
    with_picture: Tensor,
    without_picture: Tensor,
    weight: float | Tensor,
    *,
    text_layout: TokenLayout | None,
    vl_layout: TokenLayout | None,
    baseline_layout: TokenLayout | None = None,
    remove_prompt_direction: bool = False,
    rank: int | None = None,
    sinks: Sinks = "exclude",
) -> tuple[Tensor, DeltaInfo]:
    """Add to the text y what the picture changed: ``y + rms(y)·w·(x⁺/rms(x⁺) − x⁰/rms(x⁰))`` per token.

    x⁺ and x⁰ are taken where they carry the text's tokens (:func:`aligned_positions`), each in units of its
    token's RMS, and the difference is brought to the text token's scale. Weight 0, and an x⁺ equal to x⁰, give the
    text bit for bit. A token that is all zero on any side has no direction: the text's vector stays.

    Args:
        text: Z-Image's states y of the prompt, ``(L, D)`` or ``(B, L, D)``, any float dtype.
        with_picture: x⁺, VL states of the same prompt and the picture, ``(L_vl, D)`` or a batch of one or B.
        without_picture: x⁰, the same without what the picture says: muted in place, or of another picture.
        weight: -3 to 3, or one per text token ``(L,)``; 1 adds what the picture did, negative weights push away.
        text_layout, vl_layout: what the positions of text and VL are, where known.
        baseline_layout: of x⁰ if it is another than x⁺'s: a prompt that was read without any picture.
        remove_prompt_direction: take from each token's delta its component along y/rms(y).
        rank: keep only the top k principal directions of the delta, None or 0 keeps all: the singular vectors of its
            largest singular values over a sequence's tokens, uncentred (what all words share is part of it). The
            prompt's direction is removed first, so the rank is exact and that removal then approximate.
        sinks: "exclude" keeps the text's vector where any side has an attention sink; "include" moves it as well.

    Returns:
        a tensor like ``text`` in shape, dtype and device, computed in float32, and what was added.

    Raises:
        ValueError: for a weight outside -3 to 3, a negative rank, other widths, batches, prompts or numbers of
            tokens, or values that are not finite.
    """
    check_choice("sinks", sinks, Sinks)
    if rank is not None and rank < 0:
        raise ValueError(f"rank: expected 1 or more directions, or 0 for all, got {rank}.")
    y, (seen, blind) = paired_with(text, {"with_picture": with_picture, "without_picture": without_picture})
    w = number_per_token(
        "weight", weight, y.shape[1], (-MAX_WEIGHT, MAX_WEIGHT), f"-{MAX_WEIGHT:g} (push away) to {MAX_WEIGHT:g}"
    )
    if baseline_layout is None and seen.shape[1] != blind.shape[1]:
        raise ValueError(
            f"without_picture: expected {seen.shape[1]} positions like with_picture, got {blind.shape[1]}. If it was "
            "read without any picture, give its baseline_layout."
        )
    baseline_layout = vl_layout if baseline_layout is None else baseline_layout
    check_layout("text", text_layout, y)
    check_layout("vl", vl_layout, seen)
    check_layout("baseline", baseline_layout, blind)

    plus = align(seen, y.shape[1], text_layout, vl_layout, otherwise="")
    zero = align(blind, y.shape[1], text_layout, baseline_layout, otherwise="")
    y_rms, plus_rms, zero_rms = (token_rms(side) for side in (y, plus, zero))
    delta = _unit(plus, plus_rms).sub_(_unit(zero, zero_rms))
    measured = [y_rms, plus_rms, zero_rms, token_rms(delta), mean_products(y, zero)]
    *sizes, moves, products = torch.stack(measured).detach().cpu()  # all that is decided and reported, in one transfer
    is_sink = ~counted_among(torch.stack(sizes), sinks, text_layout).all(0)
    aimless = torch.stack(sizes).amin(0) <= EPSILON
    unmoved = is_sink | aimless | (moves == 0)
    if unmoved.any():
        delta = delta.masked_fill(unmoved.to(y.device).unsqueeze(-1), 0)
    moves = moves[~unmoved]

    before = _energy(delta) if remove_prompt_direction or rank else 0.0
    if remove_prompt_direction:
        own = _unit(y, y_rms)
        delta = delta - (delta * own).mean(-1, keepdim=True) * own  # own has a mean square of 1
    across = _energy(delta) if remove_prompt_direction else before
    if rank:
        delta = _principal(delta, rank)
    left = _energy(delta) if rank else across
    added = torch.addcmul(y.float(), (y_rms * w.to(y.device)).unsqueeze(-1), delta)
    result = put_back(y, to_dtype(added, y.dtype), unmoved | (w == 0))

    cosine, notes = median_cosine(products, sizes[0], sizes[2]), []
    if text_layout is None or vl_layout is None:
        notes += doubts_about_words(cosine)
    if aimless.any():
        notes.append(f"{int(aimless.sum())} tokens are all zero and have no direction: the text's vector stays.")
    info = DeltaInfo(
        (float(w.min()), float(w.max())), y.shape[1], text_layout and replace(text_layout, source="blend"),
        moves.numel(), float(median(moves)) if moves.numel() else 0.0, left / before if before else 1.0,
        1 - across / before if before else 0.0, rank or None, int(is_sink.sum()), cosine, tuple(notes),
    )
    return (result[0] if text.ndim == 2 else result), info


def _unit(tokens: Tensor, rms: Tensor) -> Tensor:
    """Each token ``(…, L, D)`` over its RMS ``(…, L)``, float32; a zero token stays zero."""
    return tokens.float() / rms.unsqueeze(-1).clamp_min(EPSILON)


def _principal(delta: Tensor, rank: int) -> Tensor:
    """The best approximation of each sequence ``(L, D)`` of a batch by ``rank`` directions (Eckart and Young, 1936)."""
    if rank >= min(delta.shape[-2:]):
        return delta
    exact = delta.cpu().double()
    directions = torch.linalg.svd(exact.detach(), full_matrices=False).Vh[:, :rank]
    return (exact @ directions.mT @ directions).to(delta)


def _energy(delta: Tensor) -> float:
    return float(delta.detach().cpu().double().square().sum())
