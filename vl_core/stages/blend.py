"""Mix VL states into Z-Image's own text states.

Z-Image RMS-normalises every caption token, so a plain mixture (raw) weighs each side by its RMS: states scaled to the
published std of 61 are about five times heavier than the text tokens they are mixed with, and alpha 0.3 acts like 0.7
(derived, not yet shown on real weights). The dit space mixes what Z-Image sees, and alpha means what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..states.counts import counted
from ..states.layout import TokenLayout
from ..states.sinks import Sinks, counted_among, sinks_among
from ..states.tensors import (
    EPSILON,
    check_choice,
    check_layout,
    paired_with,
    put_back,
    to_dtype,
    token_rms,
)
from .adain import OWN_MIXING, mix_restyled
from .alignment import align, doubts_about_words, mean_products, median_cosine
from .alpha import strength_per_token
from .append import AppendPosition, append_tokens
from .resample import resample_tokens

BlendMethod = Literal["aligned", "resample", "truncate", "append", "adain", "adain_per_dim", "style_dims"]
BlendSpace = Literal["dit", "raw", "slerp"]

SLERP_LIMIT = 1e-3  # radians from 0 or pi where the arc is a line, or undefined


@dataclass(frozen=True, eq=False)
class BlendInfo:
    """What was mixed.

    Attributes:
        alpha: its lowest and highest value; (1, 1) for append, which does not use it.
        tokens: length of the result.
        layout: of the result, with source "blend"; None if the text's (for append, either one's) is unknown.
        cosine: aligned only: the median over positions of the cosine between text and VL.
        effective_alpha: raw space only: the mean over mixed positions of α·rms(x)/(α·rms(x) + (1−α)·rms(y)), the
            weight that Z-Image's RMSNorm leaves the VL side.
        sinks: positions that kept the text's vector because either side is an attention sink there.
        append_position: where append put the VL tokens.
    """

    method: BlendMethod
    space: BlendSpace
    alpha: tuple[float, float]
    tokens: int
    layout: TokenLayout | None
    cosine: float | None
    effective_alpha: float | None
    sinks: int
    notes: tuple[str, ...]
    append_position: AppendPosition = "end"

    def describe(self) -> str:
        """One or two plain lines, then the notes."""
        low, high = self.alpha
        alpha = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        if self.method == "append":
            place = "after it" if self.append_position == "end" else "between its words and the template tail"
            what = f"text unchanged, VL tokens {place} (alpha is not used)"
        else:
            what = f"alpha {alpha}" + ("" if self.method in OWN_MIXING else f" in {self.space} space")
        kept = f", {counted(self.sinks, 'attention sink')} kept from the text" if self.sinks else ""
        lines = [f"{self.method}: {what}, {counted(self.tokens, 'token')}{kept}."]
        if self.effective_alpha is not None:
            lines.append(f"After Z-Image's token norm alpha acts like {self.effective_alpha:.2f} on average.")
        if self.cosine is not None:
            lines.append(f"Median cosine between text and VL at the same positions: {self.cosine:.2f}.")
        return "\n".join([*lines, *self.notes])


def blend(
    text: Tensor,
    vl: Tensor,
    alpha: float | Tensor,
    method: BlendMethod = "aligned",
    space: BlendSpace = "dit",
    *,
    text_layout: TokenLayout | None = None,
    vl_layout: TokenLayout | None = None,
    sinks: Sinks = "exclude",
    antialias: bool = True,
    append_downsample: int = 1,
    append_position: AppendPosition = "end",
    append_budget: int | None = None,
) -> tuple[Tensor, BlendInfo]:
    """Mix text states y with VL states x; alpha 0 gives the text bit for bit, 1 the VL side.

    ==============  ===================================================================================
    aligned         x: the VL at the positions that carry the text's tokens (:func:`aligned_positions`);
                    without both layouts its positions outside pictures, if they are as many
    resample        x: the VL resampled to the text's length (:func:`resample_tokens`)
    truncate        both cut to the shorter (the note's "linear")
    append          the text, then the VL tokens (or these before the text's template tail); alpha and space are
                    not used (a token's scale is invisible to Z-Image): ``append_downsample`` is the strength
    adain           (y − m_y)/s_y·s_x + m_x with means and stds of each token over its dimensions
    adain_per_dim   the same per dimension over the tokens; the lengths may differ
    style_dims      only the upper third of the dimensions, [2D//3, D)
    ==============  ===================================================================================

    The last three are mixed as published, (1−α)·y + α·styled, whatever the space; adain and style_dims take the VL
    aligned if both layouts are known and match, resampled otherwise. Spaces of aligned, resample and truncate:

    - dit: rms(y)·((1−α)·y/rms(y) + α·x/rms(x)) per token: what Z-Image's token norm sees, at the text's scale.
    - raw: (1−α)·y + α·x, the research note's.
    - slerp: along the great circle between y/rms(y) and x/rms(x), times rms(y); a line where the angle is 0 or pi.

    A token whose RMS is 0 on either side has no direction: in dit and slerp the text's vector stays.

    >>> text, vl = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 50.0]])
    >>> blend(text, vl, 0.0)[0].tolist()
    [[3.0, 4.0]]
    >>> [round(value, 4) for value in blend(text, vl, 1.0)[0][0].tolist()]  # the VL's direction at the text's scale
    [0.0, 5.0]

    Args:
        text, vl: ``(L, D)`` or ``(B, L, D)``, any float dtype; a batch of one VL serves every text.
        alpha: 0 to 1, or one per text token ``(L_text,)`` (:func:`alpha_curve`).
        text_layout, vl_layout: what the positions are, where known.
        sinks: "exclude" keeps the text's vector where the text, or a VL token brought there, is an attention sink
            (:func:`find_sinks`, on either whole sequence), and keeps sinks out of adain_per_dim's statistics;
            "include" mixes them like any token.
        antialias: of resampling; False is the note's.
        append_downsample: average each appended picture's tokens over n × n cells.
        append_position: "end" puts the VL tokens behind the whole text; "before_tail" between the user's words and
            the template's last 5 tokens, which needs ``text_layout``. The text's own tokens stay bit for bit.
        append_budget: most tokens that each picture may append, None for no limit; a larger one is averaged further
            (:func:`select_tokens`).

    Returns:
        ``(L, D)`` or ``(B, L, D)`` in the text's shape (but for truncate and append, its length), dtype and device,
        computed in float32, and what was done.

    Raises:
        ValueError: for another width, batch, prompt or number of tokens, alpha outside 0 to 1, unknown options, or
            values that are not finite.
    """
    check_choice("method", method, BlendMethod)
    check_choice("space", space, BlendSpace)
    check_choice("sinks", sinks, Sinks)
    check_choice("append_position", append_position, AppendPosition)
    y, (x,) = paired_with(text, {"vl": vl})
    check_layout("text", text_layout, y)
    check_layout("vl", vl_layout, x)
    strength = strength_per_token(alpha, y.shape[1])
    if method == "append":
        blended, layout = append_tokens(
            y, x, text_layout, vl_layout, append_downsample, append_position, append_budget
        )
        info = BlendInfo(
            "append", space, (1.0, 1.0), blended.shape[1], layout, None, None, 0, (), append_position
        )
    else:
        blended, info = _mix_in(y, x, strength, method, space, text_layout, vl_layout, sinks, antialias)
    return (blended[0] if text.ndim == 2 else blended), info


def blend_adain(text: Tensor, vl: Tensor, alpha: float | Tensor) -> Tensor:
    """Give each text token the mean and std of its VL token: ``(1−α)·y + α·((y − m_y)/s_y·s_x + m_x)``.

    Means and stds (unbiased, at least 1e-6) run over the dimensions of a token, sinks included (the research note's
    adain; AdaIN is arXiv 1703.06868).

    Args:
        text, vl: ``(L, D)`` or ``(B, L, D)`` of equal length; ``alpha``: 0 to 1, or ``(L,)``.

    Raises:
        ValueError: if the lengths differ; else as :func:`blend`.
    """
    _check_equal_lengths(text, vl)
    return blend(text, vl, alpha, "adain", sinks="include")[0]


def blend_adain_per_dim(text: Tensor, vl: Tensor, alpha: float | Tensor) -> Tensor:
    """Give each dimension of the text the VL's mean and std over the tokens. The lengths may differ.

    See :func:`blend_adain`; with a single token a std counts as 1e-6, so a single VL token gives its own vector.
    """
    return blend(text, vl, alpha, "adain_per_dim", sinks="include")[0]


def blend_style_dims(text: Tensor, vl: Tensor, alpha: float | Tensor) -> Tensor:
    """Mix only the upper third of the dimensions, [2D//3, D), of sequences of equal length. See :func:`blend_adain`."""
    _check_equal_lengths(text, vl)
    return blend(text, vl, alpha, "style_dims", sinks="include")[0]


def _check_equal_lengths(text: Tensor, vl: Tensor) -> None:
    if text.shape[-2] != vl.shape[-2]:
        raise ValueError(
            f"text and vl: expected equal numbers of tokens, got {text.shape[-2]} and {vl.shape[-2]}. Resample the VL "
            "with resample_tokens first."
        )


def _mix_in(
    y: Tensor,
    vl: Tensor,
    strength: Tensor,
    method: BlendMethod,
    space: BlendSpace,
    text_layout: TokenLayout | None,
    vl_layout: TokenLayout | None,
    sinks: Sinks,
    antialias: bool,
) -> tuple[Tensor, BlendInfo]:
    """Every method but append. ``y``, ``vl`` ``(B, L, D)``, ``strength`` ``(L_text,)`` on the CPU, like all sizes."""
    notes: list[str] = []
    size = token_rms(y.detach()).cpu()
    is_sink = ~counted_among(size, sinks, text_layout) if method != "aligned" else torch.zeros_like(size).bool()
    layouts = text_layout, vl_layout
    if method == "truncate":
        length = min(y.shape[1], vl.shape[1])
        if y.shape[1] != vl.shape[1]:
            notes.append(f"Cut to {length} tokens: the text had {y.shape[1]}, the VL {vl.shape[1]}.")
        text_layout = text_layout and text_layout.select(torch.arange(len(text_layout)) < length)
        y, strength, is_sink, size = y[:, :length], strength[:length], is_sink[:, :length], size[:, :length]
    x = _bring(vl, y.shape[1], method, text_layout, vl_layout, antialias, notes)
    # Aligned tokens are the text's own words, see below; for adain_per_dim the VL has positions of its own.
    if method not in ("aligned", "adain_per_dim") and sinks == "exclude":
        theirs = sinks_among(token_rms(vl.detach()).cpu(), vl_layout)
        if theirs.any():  # a resampled token that holds some of a sink is hardly anything else
            shares = _bring(theirs.float().unsqueeze(-1), y.shape[1], method, text_layout, vl_layout, antialias, notes)
            is_sink = is_sink | (shares.squeeze(-1) > 0)
    cosine = effective = other_size = None
    if method == "aligned":
        other_size, products = torch.stack([token_rms(x.detach()), mean_products(y.detach(), x.detach())]).cpu()
        cosine = median_cosine(products, size, other_size)
        is_sink = ~counted_among(torch.stack([size, other_size.expand_as(size)]), sinks, text_layout).all(0)
        if text_layout is None or vl_layout is None:
            notes += doubts_about_words(cosine)
    elif method not in OWN_MIXING:
        other_size = token_rms(x.detach()).cpu()

    a = strength.to(y.device).unsqueeze(-1)
    keep = is_sink | (strength == 0)
    if method in OWN_MIXING:
        mixed = mix_restyled(y.float(), x.float(), a, method, sinks, notes, layouts)
    else:
        mixed = _mix(y.float(), x.float(), a, space)
        assert other_size is not None, "every method that mixes here pairs positions"
        if space == "raw":
            effective = _effective_alpha(size, other_size, strength, ~is_sink)
        else:
            aimless = torch.minimum(size, other_size) <= EPSILON
            keep = keep | aimless
            if aimless.any():
                notes.append(
                    f"{int(aimless.sum())} tokens are all zero and have no direction: the text's vector stays."
                )
    info = BlendInfo(
        method, space, (float(strength.min()), float(strength.max())), y.shape[1],
        text_layout and replace(text_layout, source="blend"), cosine, effective, int(is_sink.sum()),
        tuple(dict.fromkeys(notes)),
    )
    return put_back(y, to_dtype(mixed, y.dtype), keep), info


def _bring(
    vl: Tensor,
    length: int,
    method: BlendMethod,
    text_layout: TokenLayout | None,
    vl_layout: TokenLayout | None,
    antialias: bool,
    notes: list[str],
) -> Tensor:
    """The VL as ``length`` tokens that pair up with the text's; untouched for adain_per_dim, which pairs nothing."""
    if method == "adain_per_dim":
        return vl
    if method == "truncate":
        return vl[:, :length]
    if method == "aligned":
        return align(vl, length, text_layout, vl_layout)
    if method != "resample" and text_layout is not None and vl_layout is not None:
        try:
            return align(vl, length, text_layout, vl_layout)
        except ValueError:
            notes.append("The VL does not hold the text's words: resampled instead of aligned.")
    return resample_tokens(vl, length, antialias=antialias)


def _mix(y: Tensor, x: Tensor, a: Tensor, space: BlendSpace) -> Tensor:
    """Raw: as they are; dit and slerp: RMS-normalised tokens along the line or the arc, at the text's scale."""
    if space == "raw":
        return ((1 - a) * y).addcmul_(a, x)
    scale, other = (token_rms(side).unsqueeze(-1) for side in (y, x))
    own_unit, other_unit = 1 / scale.clamp_min(EPSILON), 1 / other.clamp_min(EPSILON)
    if space == "dit":
        return ((1 - a) * scale * own_unit * y).addcmul_(a * scale * other_unit, x)
    u, v = own_unit * y, other_unit * x
    line = (1 - a) * u + a * v
    # Kahan's angle between two vectors of equal length: precise near 0 and pi, where acos is not
    angle = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    straight = (angle < SLERP_LIMIT) | (angle > torch.pi - SLERP_LIMIT)
    sine = torch.where(straight, 1.0, angle.sin())
    arc = (((1 - a) * angle).sin() * u + (a * angle).sin() * v) / sine
    return scale * torch.where(straight, line, arc)


def _effective_alpha(size: Tensor, other_size: Tensor, strength: Tensor, mixed: Tensor) -> float | None:
    """Mean weight of the VL after the token norm, from both sides' RMS ``(B, L)``; None if no position is mixed."""
    if not mixed.any():
        return None
    theirs, ours = strength * other_size, (1 - strength) * size
    weight = torch.where(theirs + ours > 0, theirs / (theirs + ours).clamp_min(EPSILON**2), strength)
    return float(weight[mixed].mean())


