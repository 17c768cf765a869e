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

from .families import THINK_TOKENS
from .layout import TAIL_TOKENS, TokenLayout, TokenRole, concatenate_layouts
from .outliers import as_batch, check_all_embeddings, check_choice, put_back, to_dtype
from .resample import resample_tokens
from .select import select_tokens
from .statistics import EPSILON, Moments, Sinks, counted_among, counted_tokens, median, token_rms

BlendMethod = Literal["aligned", "resample", "truncate", "append", "adain", "adain_per_dim", "style_dims"]
BlendSpace = Literal["dit", "raw", "slerp"]
CurveShape = Literal["linear", "ease_in", "ease_out"]
AppendPosition = Literal["end", "before_tail"]

OWN_MIXING = ("adain", "adain_per_dim", "style_dims")  # mixed as published: raw, whatever the space
LOW_COSINE = 0.5  # below this the tokens at one place hardly carry the same words
SLERP_LIMIT = 1e-3  # radians from 0 or pi where the arc is a line, or undefined
TAIL_LENGTHS = (TAIL_TOKENS, TAIL_TOKENS + THINK_TOKENS)  # Z-Image's, and with an empty think block
PROMPT_SHOWN = 40  # characters of a prompt in an error


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
        kept = f", {self.sinks} sinks kept from the text" if self.sinks else ""
        lines = [f"{self.method}: {what}, {self.tokens} tokens{kept}."]
        if self.effective_alpha is not None:
            lines.append(f"After Z-Image's token norm alpha acts like {self.effective_alpha:.2f} on average.")
        if self.cosine is not None:
            lines.append(f"Median cosine between text and VL at the same positions: {self.cosine:.2f}.")
        return "\n".join([*lines, *self.notes])


def alpha_curve(length: int, start: float, end: float, shape: CurveShape = "linear") -> Tensor:
    """Alpha per position, from ``start`` to ``end`` along t (linear), t² (ease_in) or 1 − (1−t)² (ease_out).

    Returns float32 ``(length,)``. A length of 1 gives ``start``. Source: the research note's token curves.

    Raises:
        ValueError: if start or end leaves 0 to 1, length < 1, or the shape is unknown.
    """
    check_choice("shape", shape, CurveShape)
    if length < 1:
        raise ValueError(f"length: expected at least 1 token, got {length}.")
    for name, value in (("start", start), ("end", end)):
        if not 0 <= value <= 1:
            raise ValueError(f"alpha {name}: expected 0 (text) to 1 (VL), got {value}.")
    t = torch.linspace(0, 1, length, dtype=torch.float64)
    t = {"linear": t, "ease_in": t.square(), "ease_out": 1 - (1 - t).square()}[shape]
    return ((1 - t) * start + t * end).float()


def aligned_positions(
    text_layout: TokenLayout, vl_layout: TokenLayout, otherwise: str = ", or choose method resample"
) -> Tensor:
    """Where the VL sequence carries the text's tokens.

    The VL sequence of a prompt is its text sequence with pictures inserted, perhaps after a system turn that the text
    lacks: so the ids of its positions outside pictures must end with the text's ids.

    Args:
        otherwise: what an error adds to its advice.

    Returns:
        int64 ``(L_text,)``: indices into the VL sequence.

    Raises:
        ValueError: if they do not, naming the first token that differs.
    """
    positions = vl_layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT).nonzero().flatten()
    if not len(positions):
        raise ValueError(
            "vl: expected tokens of the prompt to align with the text, got pictures only. Select all or text tokens of "
            f"the VL{otherwise}{' or append' if otherwise else ''}."
        )
    if text_layout.mask(TokenRole.MARKER, TokenRole.IMAGE).any():
        raise ValueError(
            f"text: expected words only, got {text_layout.describe()}. Blend aligned first, append pictures last."
        )
    extra = len(positions) - len(text_layout)
    if extra < 0 or not torch.equal(vl_layout.token_ids[positions[extra:]], text_layout.token_ids):
        place, ours, theirs = _first_mismatch(text_layout.token_ids, vl_layout.token_ids[positions])
        raise ValueError(
            f"text and vl: expected the same words outside the pictures, but at position {place} the text has token "
            f"{ours} and the VL {theirs}. Text prompt: {_shorten(text_layout.prompt)}; VL prompt: "
            f"{_shorten(vl_layout.prompt)}. Use the same prompt for both{otherwise}."
        )
    return positions[extra:]


def _first_mismatch(text_ids: Tensor, vl_ids: Tensor) -> tuple[int, int | str, int | str]:
    """Position in the text and both ids there, with the VL read from where it agrees longest ("end" if it ran out)."""

    def agreement(start: int) -> int:
        both = min(len(text_ids), len(vl_ids) - start)
        different = (text_ids[:both] != vl_ids[start : start + both]).nonzero().flatten()
        return int(different[0]) if len(different) else both

    starts = [0, *(vl_ids == text_ids[0]).nonzero().flatten().tolist()]
    start = max(starts, key=agreement)
    place = agreement(start)
    ours, theirs = text_ids[place:], vl_ids[start + place :]
    return place, int(ours[0]) if len(ours) else "end", int(theirs[0]) if len(theirs) else "end"


def _shorten(prompt: str) -> str:
    return repr(prompt if len(prompt) <= PROMPT_SHOWN else prompt[: PROMPT_SHOWN - 1] + "…")


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
    resample        x: the VL resampled to the text's length (:func:`~.resample.resample_tokens`)
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

    Args:
        text, vl: ``(L, D)`` or ``(B, L, D)``, any float dtype; a batch of one VL serves every text.
        alpha: 0 to 1, or one per text token ``(L_text,)`` (:func:`alpha_curve`).
        text_layout, vl_layout: what the positions are, where known.
        sinks: "exclude" keeps the text's vector where the text or the VL brought to its positions has an attention
            sink, and keeps sinks out of adain_per_dim's statistics; "include" mixes them like any token.
        antialias: of resampling; False is the note's.
        append_downsample: average each appended picture's tokens over n × n cells.
        append_position: "end" puts the VL tokens behind the whole text; "before_tail" between the user's words and
            the template's last 5 tokens, which needs ``text_layout``. The text's own tokens stay bit for bit.
        append_budget: most tokens that each picture may append, None for no limit; a larger one is averaged further
            (:func:`~.select.select_tokens`).

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
    strength = _strength(alpha, y.shape[1])
    if method == "append":
        blended, info = _append(
            y, x, space, text_layout, vl_layout, append_downsample, append_position, append_budget
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


def paired_batches(text: Tensor, vl: Tensor, name: str = "vl") -> tuple[Tensor, Tensor]:
    """Both as ``(B, L, D)`` of one batch size and width, on the text's device; ``name`` is what errors call the VL.

    Raises:
        ValueError: for other shapes, widths or batches that differ, no tokens, values that are not finite.
    """
    y, (x,) = paired_with(text, {name: vl})
    return y, x


def paired_with(text: Tensor, sides: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """:func:`paired_batches` of the text and several VL sides by name; a GPU is waited for once."""
    check_all_embeddings({"text": text, **sides})
    y, brought = as_batch(text), []
    for name, vl in sides.items():
        if text.shape[-1] != vl.shape[-1]:
            raise ValueError(
                f"text and {name}: expected equal widths, got {text.shape[-1]} and {vl.shape[-1]}. Z-Image needs "
                "Qwen3-VL-4B, width 2560."
            )
        for side, tokens in (("text", text), (name, vl)):
            if not tokens.shape[-2]:
                raise ValueError(f"{side}: expected at least 1 token, got none.")
        x = as_batch(vl).to(text.device)
        if len(x) not in (1, len(y)):
            raise ValueError(f"{name}: expected a batch of {len(y)} like the text's, or of 1, got {len(x)}.")
        brought.append(x.expand(len(y), -1, -1))
    return y, brought


def check_layout(name: str, layout: TokenLayout | None, tokens: Tensor) -> None:
    """Raise ValueError unless ``layout`` is None or has a position for each of ``tokens`` ``(…, L, D)``."""
    if layout is not None and len(layout) != tokens.shape[-2]:
        raise ValueError(f"{name}_layout: expected {tokens.shape[-2]} positions like {name}, got {len(layout)}.")


def _strength(alpha: float | Tensor, length: int) -> Tensor:
    """Alpha per token: float32 ``(length,)``."""
    values = alpha.detach().cpu() if isinstance(alpha, Tensor) else torch.tensor(float(alpha), dtype=torch.float64)
    if values.ndim and tuple(values.shape) != (length,):
        raise ValueError(
            f"alpha: expected one number, or one per text token, shape ({length},), got shape {tuple(values.shape)}."
        )
    if not ((values >= 0) & (values <= 1)).all():
        wrong = values[~((values >= 0) & (values <= 1))].flatten()[0]
        raise ValueError(f"alpha: expected 0 (text) to 1 (VL), got {float(wrong)}.")
    return values.float().expand(length)


def _append(
    y: Tensor,
    x: Tensor,
    space: BlendSpace,
    text_layout: TokenLayout | None,
    vl_layout: TokenLayout | None,
    factor: int,
    position: AppendPosition,
    budget: int | None,
) -> tuple[Tensor, BlendInfo]:
    at = y.shape[1] if position == "end" else template_tail(text_layout)[0]
    if factor < 1:
        raise ValueError(f"append_downsample: expected at least 1, got {factor}.")
    if factor > 1 or budget is not None:
        if vl_layout is None:
            what = f"append_downsample: {factor}" if factor > 1 else f"append_budget: {budget}"
            raise ValueError(
                f"{what} needs to know where the pictures are, but vl has no vl_layout. Encode with Qwen3-VL Encode, "
                "or set the downsampling to 1 and no budget."
            )
        x, vl_layout = select_tokens(x, vl_layout, "all", downsample=factor, budget=budget)
    layout = None
    if text_layout is not None and vl_layout is not None:
        before = torch.arange(len(text_layout)) < at
        parts = [text_layout.select(before), vl_layout, text_layout.select(~before)]
        layout = concatenate_layouts(parts, "blend")
    blended = torch.cat([y[:, :at], to_dtype(x, y.dtype), y[:, at:]], dim=1)
    return blended, BlendInfo("append", space, (1.0, 1.0), blended.shape[1], layout, None, None, 0, (), position)


def template_tail(text_layout: TokenLayout | None, lengths: tuple[int, ...] = TAIL_LENGTHS) -> tuple[int, int]:
    """Where the template's tail begins and ends: the tokens that open the assistant's turn, and what follows in it.

    Args:
        lengths: of the tails to look for: 5, and 9 with an empty think block.

    Raises:
        ValueError: if the layout is unknown, or does not hold such a tail in one piece.
    """
    if text_layout is None:
        raise ValueError(
            "append_position: before_tail needs to know where the words end, but text has no text_layout. Choose end, "
            "or take the text from a node that keeps it: Z-Image Vision Conditioning at strength 0 gives the same "
            "states as CLIP Text Encode."
        )
    ids = text_layout.token_ids
    template = (text_layout.mask(TokenRole.TEMPLATE) & ~text_layout.padding()).nonzero().flatten()
    for length in lengths:
        tail = template[-length:]
        in_one_piece = len(template) > length and int(tail[-1] - tail[0]) == length - 1
        # Both turns open with <|im_start|>: the user's is the first token, the assistant's the third of the tail.
        if in_one_piece and ids[tail[2]] == ids[template[0]]:
            return int(tail[0]), int(tail[-1]) + 1
    expected = " or ".join(map(str, lengths))
    raise ValueError(
        f"append_position: before_tail expected a text that ends with the template's {expected} tail tokens, "
        f"got {text_layout.describe()}. Give the whole text, or choose end."
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
    is_sink = ~counted_among(size, sinks)
    if method == "truncate":
        length = min(y.shape[1], vl.shape[1])
        if y.shape[1] != vl.shape[1]:
            notes.append(f"Cut to {length} tokens: the text had {y.shape[1]}, the VL {vl.shape[1]}.")
        text_layout = text_layout and text_layout.select(torch.arange(len(text_layout)) < length)
        y, strength, is_sink, size = y[:, :length], strength[:length], is_sink[:, :length], size[:, :length]
    x = _bring(vl, y.shape[1], method, text_layout, vl_layout, antialias, notes)
    cosine = effective = other_size = None
    if method == "aligned":
        other_size, products = torch.stack([token_rms(x.detach()), mean_products(y.detach(), x.detach())]).cpu()
        cosine = median_cosine(products, size, other_size)
        if text_layout is None or vl_layout is None:
            notes += doubts_about_words(cosine)
    elif method != "adain_per_dim":  # there the VL has positions of its own
        other_size = token_rms(x.detach()).cpu()
    if other_size is not None:
        is_sink = is_sink | ~counted_among(other_size, sinks)

    a = strength.to(y.device).unsqueeze(-1)
    if method in OWN_MIXING:
        mixed = _mix_as_published(y.float(), x.float(), a, method, sinks, notes)
    else:
        mixed = _mix(y.float(), x.float(), a, space)
    keep = is_sink | (strength == 0)
    if method not in OWN_MIXING and space == "raw":
        effective = _effective_alpha(size, other_size, strength, ~is_sink)
    elif method not in OWN_MIXING:
        aimless = torch.minimum(size, other_size) <= EPSILON
        keep = keep | aimless
        if aimless.any():
            notes.append(f"{int(aimless.sum())} tokens are all zero and have no direction: the text's vector stays.")
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


def align(
    vl: Tensor,
    length: int,
    text_layout: TokenLayout | None,
    vl_layout: TokenLayout | None,
    otherwise: str = ", or choose method resample",
) -> Tensor:
    """The VL ``(B, L_vl, D)`` at the text's positions ``(B, length, D)``: by token id where both layouts are known, by
    count otherwise.

    Raises:
        ValueError: if the ids or counts do not match; ``otherwise`` is what the error adds to its advice.
    """
    if text_layout is not None and vl_layout is not None:
        return vl.index_select(1, aligned_positions(text_layout, vl_layout, otherwise).to(vl.device))
    words = vl
    if vl_layout is not None:
        words = vl[:, vl_layout.mask(TokenRole.TEMPLATE, TokenRole.TEXT).to(vl.device)]
    if words.shape[1] != length:
        where = "tokens" if vl_layout is None else "tokens outside the pictures"
        raise ValueError(
            f"vl: expected {length} {where}, as many as the text has, got {words.shape[1]}. Use the same prompt for "
            f"both (and a system prompt in both or neither){otherwise}."
        )
    return words


def mean_products(y: Tensor, x: Tensor) -> Tensor:
    """Mean over the dimensions of what two tokens have in common: ``(…, L, D)`` twice -> float32 ``(…, L)``."""
    return (y.float() * x.float()).mean(-1)


def median_cosine(products: Tensor, size: Tensor, other_size: Tensor) -> float:
    """Median over tokens of the cosine, from :func:`mean_products` and the RMS of either side, all ``(…, L)``."""
    sizes = (size.double() * other_size.double()).clamp_min(torch.finfo(torch.float64).tiny)
    return float(median((products.double() / sizes).flatten()))


def doubts_about_words(cosine: float) -> list[str]:
    """A remark if tokens that were paired by count alone hardly carry the same words."""
    if cosine >= LOW_COSINE:
        return []
    return [f"Cosine {cosine:.2f} is low: check that text and VL read the same prompt."]


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


def _mix_as_published(
    y: Tensor, x: Tensor, a: Tensor, method: BlendMethod, sinks: Sinks, notes: list[str]
) -> Tensor:
    """adain, adain_per_dim and style_dims, float32."""
    if method == "style_dims":
        upper = torch.arange(y.shape[-1], device=y.device) >= 2 * y.shape[-1] // 3
        return torch.where(upper, (1 - a) * y + a * x, y)
    if method == "adain":
        styled = _restyle(y, *_over_dimensions(y), *_over_dimensions(x))
    else:
        styled = torch.stack([_restyle_dimensions(*pair, sinks, notes) for pair in zip(y, x, strict=True)])
    return (1 - a) * y + a * styled


def _effective_alpha(size: Tensor, other_size: Tensor, strength: Tensor, mixed: Tensor) -> float | None:
    """Mean weight of the VL after the token norm, from both sides' RMS ``(B, L)``; None if no position is mixed."""
    if not mixed.any():
        return None
    theirs, ours = strength * other_size, (1 - strength) * size
    weight = torch.where(theirs + ours > 0, theirs / (theirs + ours).clamp_min(EPSILON**2), strength)
    return float(weight[mixed].mean())


def _over_dimensions(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each token ``(…, 1)``, float64: a constant token's mean must be exact, its std is the floor."""
    values = tokens.detach().cpu().double()
    std = values.std(-1, keepdim=True) if values.shape[-1] > 1 else torch.zeros_like(values)
    return values.mean(-1, keepdim=True), std.clamp_min(EPSILON)


def _restyle_dimensions(y: Tensor, x: Tensor, sinks: Sinks, notes: list[str]) -> Tensor:
    """AdaIN over the tokens of one pair of sequences ``(L, D)``, ``(L', D)``."""
    own, other = (Moments.centring(side[counted_tokens(side, sinks)]) for side in (y, x))
    if min(own.count, other.count) < 2:
        notes.append("A side has a single token and so no std per dimension: the result has little or no variety.")
    return _restyle(y, own.mean, _floored(own), other.mean, _floored(other))


def _floored(moments: Moments) -> Tensor:
    return torch.nan_to_num(moments.std, nan=0.0).clamp_min(EPSILON)


def _restyle(y: Tensor, own_mean: Tensor, own_std: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    own_mean, own_std, mean, std = (part.float().to(y.device) for part in (own_mean, own_std, mean, std))
    return (y - own_mean) / own_std * std + mean
