"""The whole chain from one strength: what the simple node and the command line do.

A mode is one small function in ``MODES``, with the layer it reads unless another is named, the strengths it takes and
what it does in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..stages.alpha import alpha_curve
from ..stages.append import AppendPosition
from ..stages.blend import BlendInfo, blend
from ..stages.delta import MAX_WEIGHT, DeltaInfo, image_delta
from ..stages.normalize import NormalizeMode, normalize
from ..stages.outliers import MaskMode, mask_outlier_dimensions
from ..stages.select import select_tokens
from ..states.layout import TokenLayout, TokenRole
from ..states.statistics import PUBLISHED_TARGET_STD, ReferenceStatistics
from ..states.vl_states import VLStates

Curve = Literal["flat", "linear", "ease_in", "ease_out"]
MixedTokens = Literal["text", "prompt"]


@dataclass(frozen=True)
class ModeSettings:
    """How a mode acts beyond its strength; every mode names those it takes.

    Attributes:
        tokens: which of the text's tokens are changed: "text" all, "prompt" the user's words without the template.
        curve, curve_end: strength over the tokens, from all of it at the first to its share ``curve_end``, 0 to 1, at
            the last (:func:`alpha_curve`); "flat" is the same everywhere.
        normalization: brings VL states onto the text encoder's (:func:`normalize`).
        outliers, outlier_threshold: what is done with outlier dimensions of the VL states
            (:func:`mask_outlier_dimensions`).
        remove_prompt_direction, rank: see :func:`image_delta`; rank 0 keeps all directions.
        position: where appended tokens go (:func:`blend`).
    """

    tokens: MixedTokens = "text"
    curve: Curve = "flat"
    curve_end: float = 0.0
    normalization: NormalizeMode = "none"
    outliers: MaskMode = "none"
    outlier_threshold: float = 10.0
    remove_prompt_direction: bool = False
    rank: int = 0
    position: AppendPosition = "end"

    @property
    def needs_reference(self) -> bool:
        """Whether the text encoder's statistics are needed."""
        return self.normalization != "none" or self.outliers != "none"


@dataclass(frozen=True, eq=False)
class Task:
    """What a mode works on.

    Attributes:
        text: Z-Image's states, ``(L, D)`` or ``(B, L, D)``; ``layout`` says what its tokens are, where known.
        vl: float32 ``(L_vl, D)`` of the reading; ``vl_layout`` its tokens.
        muted: the same two of the reading with its pictures muted, for modes that need it.
        appended: the same two at the layer that appended tokens are read at, for modes that read two.
        reference: the text encoder's statistics, for settings that need them.
    """

    text: Tensor
    layout: TokenLayout | None
    vl: Tensor
    vl_layout: TokenLayout
    strength: float
    settings: ModeSettings = ModeSettings()
    muted: tuple[Tensor, TokenLayout] | None = None
    appended: tuple[Tensor, TokenLayout] | None = None
    reference: ReferenceStatistics | None = None


Outcome = tuple[Tensor, BlendInfo | DeltaInfo, list[str]]  # states for Z-Image, what was mixed, lines before that


@dataclass(frozen=True)
class Mode:
    """A way to let a picture steer the prompt.

    Attributes:
        act: what it does.
        layer: the hidden state it reads if none is named.
        low, high: the strengths it takes; 0 is the words alone in every mode.
        meaning: what it does, in one line for people.
        settings: names of the :class:`ModeSettings` it takes.
        needs_muted: whether it compares with the same reading, its pictures muted.
        append_layer: the hidden state its appended tokens are read at, where that is another.
    """

    act: Callable[[Task], Outcome]
    layer: int
    low: float
    high: float
    meaning: str
    settings: tuple[str, ...] = ()
    needs_muted: bool = False
    append_layer: int | None = None

    def layers(self, layer: int) -> tuple[int, ...]:
        """What a reading has to capture if ``layer`` is mixed."""
        return tuple(sorted({layer, self.append_layer or layer}))


def blend_aligned(task: Task) -> Outcome:
    """Mix each token with what the VL holds at the same word."""
    vl, lines = _clean(task)
    mixed, info = blend(task.text, vl, _per_token(task), text_layout=task.layout, vl_layout=task.vl_layout)
    return mixed, info, lines


def blend_as_published(task: Task) -> Outcome:
    """The research note's arithmetic: std 61, stretched over the text, mixed as it is."""
    vl, vl_layout = select_tokens(task.vl, task.vl_layout, "text")
    vl, scaled = normalize(vl, "global", target_std=PUBLISHED_TARGET_STD, sinks="include")
    mixed, info = blend(
        task.text, vl, task.strength, "resample", "raw", text_layout=task.layout, vl_layout=vl_layout, sinks="include",
        antialias=False,
    )
    return mixed, info, [scaled.describe()]


def append_picture(task: Task) -> Outcome:
    """Leave the words and add the pictures' tokens, pooled n × n with n = round(1 / strength).

    Z-Image normalises every token, so its size is invisible and only the number of tokens counts.
    """
    if not task.vl_layout.grids:
        raise ValueError(
            "weights: append picture has nothing to add, every picture is pushed away. Choose image delta, or give a "
            "picture a weight above 0."
        )
    vl, lines = _clean(task, task.vl_layout.mask(TokenRole.IMAGE))
    vl, vl_layout = select_tokens(vl, task.vl_layout, "image_no_markers")
    mixed, info = blend(
        task.text, vl, 1.0, "append", text_layout=task.layout, vl_layout=vl_layout,
        append_downsample=round(1 / task.strength), append_position=task.settings.position,
    )
    return mixed, info, lines


def blend_and_append(task: Task) -> Outcome:
    """Mix half as much into each word as the strength says, then add the pictures' tokens after the words.

    On the miniature words bring the style and tokens the background; together they keep more of the prompt than either
    at full strength (docs/methods.md).
    """
    if task.appended is None:
        raise ValueError("appended: blend and append reads a second layer, got none. Capture it in the same reading.")
    mixed, info, lines = blend_aligned(replace(task, strength=MIXED_SHARE * task.strength))
    vl, vl_layout = task.appended
    settings = replace(task.settings, position="end" if info.layout is None else "before_tail")
    both, added, more = append_picture(
        replace(task, text=mixed, layout=info.layout, vl=vl.float(), vl_layout=vl_layout, settings=settings)
    )
    return both, added, [*lines, info.describe(), *more]


def add_image_delta(task: Task) -> Outcome:
    """Add to each token what the picture changed at that word."""
    if task.muted is None:
        raise ValueError("muted: image delta compares with the reading whose pictures are muted, got none.")
    moved, info = image_delta(
        task.text, task.vl, task.muted[0].float(), _per_token(task), text_layout=task.layout,
        vl_layout=task.vl_layout, baseline_layout=task.muted[1],
        remove_prompt_direction=task.settings.remove_prompt_direction, rank=task.settings.rank,
    )
    return moved, info, []


CURVED = ("tokens", "curve", "curve_end")
CLEANED = ("normalization", "outliers", "outlier_threshold")
MIXED_SHARE = 0.5  # of the strength, where the picture's tokens are added as well

# Layer -2 is the one Z-Image was trained on. Blends read -6: the research note found it crisper on the real models, and
# on the miniature -2 moves nothing and -8 to -4 do (docs/miniature.md).
MODES: dict[str, Mode] = {
    "blend aligned": Mode(
        blend_aligned, -6, 0, 1, "mix into each word what it means beside the picture", CURVED + CLEANED
    ),
    "blend as published": Mode(blend_as_published, -6, 0, 1, "the research note's arithmetic, for comparison"),
    "append picture": Mode(
        append_picture, -2, 0, 1, "leave the words as they are and put the picture's tokens after them",
        (*CLEANED, "position"),
    ),
    "blend and append": Mode(
        blend_and_append, -6, 0, 1, "mix into each word, half as much, and put the picture's tokens after them",
        (*CURVED, *CLEANED), append_layer=-2,
    ),
    "image delta": Mode(
        add_image_delta, -2, -MAX_WEIGHT, MAX_WEIGHT,
        "add to each word what the picture did to it; below 0 pushes away from the picture",
        (*CURVED, "remove_prompt_direction", "rank"), needs_muted=True,
    ),
}
DEFAULT_LAYERS: dict[str, int] = {name: mode.layer for name, mode in MODES.items()}


def check_recipe(mode: str, strength: float) -> None:
    """Refuse an unknown mode or a strength it does not take, before any encoder runs.

    Raises:
        ValueError: naming the input, what was expected and what was got.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    low, high = MODES[mode].low, MODES[mode].high
    if low <= strength <= high:
        return
    others = [name for name, other in MODES.items() if other.low <= strength <= other.high]
    hint = f" {' and '.join(others).capitalize()} {'takes' if len(others) == 1 else 'take'} it." if others else ""
    least = "0 (words only)" if low == 0 else f"{low:g} (push away)"
    raise ValueError(f"strength: expected {least} to {high:g} with {mode}, got {strength}.{hint}")


def condition(
    text: Tensor,
    layout: TokenLayout | None,
    seen: VLStates,
    layer: int,
    mode: str,
    strength: float,
    *,
    muted: VLStates | None = None,
    append_layer: int | None = None,
    settings: ModeSettings = ModeSettings(),
    reference: ReferenceStatistics | None = None,
) -> tuple[Tensor, TokenLayout | None, str]:
    """Let what the VL model saw steer the prompt.

    Args:
        text: Z-Image's states of the prompt, ``(L, D)`` or ``(B, L, D)``; ``layout`` says what its tokens are.
        seen: an encode of the same prompt with pictures, in which the mode's ``layers(layer)`` were captured, or
            several of them combined.
        mode: one of ``MODES``.
        strength: 0 returns the text bit for bit. The blends take it as alpha, image delta as weight; appending pools
            the picture n × n with n = round(1 / strength).
        muted: the same encode with its pictures muted, for modes that need it.
        append_layer: where tokens to append are read, for modes that read two layers; the mode's own if None.
        settings: those the mode does not take are not looked at.
        reference: the text encoder's statistics, for settings that need them.

    Returns:
        the states for Z-Image, their layout, and a report of what was done.

    Raises:
        ValueError: see :func:`check_recipe`, :func:`blend` and :func:`image_delta`; for a muted
            encode or statistics that are needed and not given.
    """
    check_recipe(mode, strength)
    if strength == 0:
        return text, layout, "Strength 0: words only."
    vl, vl_layout = seen.at(layer)
    if not vl_layout.grids and muted is None:  # several pictures that are all pushed away have a muted side
        return text, layout, "No picture: words only."
    # float once, so that no stage rounds
    own = MODES[mode].append_layer
    appended = own and seen.at(append_layer or own)
    task = Task(text, layout, vl.float(), vl_layout, strength, settings, muted and muted.at(layer), appended, reference)
    mixed, info, details = MODES[mode].act(task)
    lines = [f"{mode}, strength {strength:g}, layer {layer}", *details]
    if count := int(seen.layout.mask(TokenRole.IMAGE).sum()):
        pictures = ", ".join(f"{rows}×{columns}" for rows, columns in seen.layout.grids)
        lines.append(f"{count} image tokens ({pictures})")
    return mixed, info.layout, "\n".join([*lines, info.describe()])


def _clean(task: Task, positions: Tensor | None = None) -> tuple[Tensor, list[str]]:
    """The VL states after outliers and normalization, and what was done; outliers at ``positions``, None for all."""
    settings, vl, lines = task.settings, task.vl, []
    if settings.needs_reference and task.reference is None:
        raise ValueError(
            f"reference: normalization {settings.normalization} and outliers {settings.outliers} compare with the text "
            "encoder's statistics, got none. Measure them, or choose none for both."
        )
    if settings.outliers != "none":
        vl, found = mask_outlier_dimensions(
            vl, settings.outlier_threshold, settings.outliers, reference=task.reference,
            positions=positions,
        )
        lines.append(found.describe())
    if settings.normalization != "none":
        vl, scaled = normalize(vl, settings.normalization, task.reference)
        lines.append(scaled.describe())
    return vl, lines


def _per_token(task: Task) -> float | Tensor:
    """The strength at each of the text's tokens, or one number for all."""
    settings, length = task.settings, task.text.shape[-2]
    if settings.tokens == "text" and settings.curve == "flat":
        return task.strength
    strength = torch.ones(length)
    if settings.curve != "flat":
        strength = alpha_curve(length, 1.0, settings.curve_end, settings.curve)
    if settings.tokens == "prompt":
        if task.layout is None:
            raise ValueError(
                "tokens: prompt needs to know which tokens are words, but the text does not say. Choose text."
            )
        strength = strength * task.layout.mask(TokenRole.TEXT)
    return strength * task.strength
