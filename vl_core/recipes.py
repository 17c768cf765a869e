"""The whole chain from one strength: what the simple node and the command line do."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .blend import blend
from .layout import TokenLayout, TokenRole
from .normalize import normalize
from .select import select_tokens
from .states import VLStates
from .statistics import PUBLISHED_TARGET_STD

Mode = Literal["blend aligned", "blend as published", "append picture"]

# Hidden state each mode reads when the user names none: -2 is the one Z-Image was trained on, so nothing needs to be
# rescaled; -6 is the research note's choice.
DEFAULT_LAYERS: dict[str, int] = {"blend aligned": -2, "blend as published": -6, "append picture": -2}


def check_recipe(mode: str, strength: float) -> None:
    """Refuse an unknown mode or a strength outside 0 … 1, before any encoder runs.

    Raises:
        ValueError: naming the input, what was expected and what was got.
    """
    if mode not in DEFAULT_LAYERS:
        raise ValueError(f"mode: expected one of {', '.join(DEFAULT_LAYERS)}, got {mode!r}.")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 (words only) to 1, got {strength}.")


def condition(
    text: Tensor, layout: TokenLayout | None, seen: VLStates, layer: int, mode: Mode, strength: float
) -> tuple[Tensor, TokenLayout | None, str]:
    """Let what the VL model saw steer the prompt.

    Args:
        text: Z-Image's states of the prompt, ``(L, D)`` or ``(B, L, D)``; ``layout`` says what its tokens are.
        seen: an encode of the same prompt with pictures, in which ``layer`` was captured.
        strength: 0 returns the text bit for bit. The blends take it as alpha; appending pools the picture n × n with
            n = round(1 / strength), because Z-Image normalises every token, so only the number of tokens counts.

    Returns:
        the states for Z-Image, their layout, and a report of what was done.

    Raises:
        ValueError: see :func:`check_recipe` and :func:`~.blend.blend`.
    """
    check_recipe(mode, strength)
    if strength == 0:
        return text, layout, "Strength 0: words only."
    vl, vl_layout = seen.at(layer)
    vl = vl.float()  # once, so that no stage rounds
    if not vl_layout.grids:
        return text, layout, "No picture: words only."
    lines = [f"{mode}, strength {strength:g}, layer {layer}"]
    if mode == "append picture":
        vl, vl_layout = select_tokens(vl, vl_layout, "image_no_markers")
        mixed, info = blend(
            text, vl, 1.0, "append", text_layout=layout, vl_layout=vl_layout, append_downsample=round(1 / strength)
        )
    elif mode == "blend as published":
        vl, vl_layout = select_tokens(vl, vl_layout, "text")
        vl, scaled = normalize(vl, "global", target_std=PUBLISHED_TARGET_STD, sinks="include")
        lines.append(scaled.describe())
        mixed, info = blend(
            text, vl, strength, "resample", "raw", text_layout=layout, vl_layout=vl_layout, sinks="include",
            antialias=False,
        )
    else:
        mixed, info = blend(text, vl, strength, text_layout=layout, vl_layout=vl_layout)
    pictures = ", ".join(f"{rows}×{columns}" for rows, columns in seen.layout.grids)
    count = len(seen.layout.mask(TokenRole.IMAGE).nonzero())
    lines.append(f"{count} image tokens ({pictures})")
    return mixed, info.layout, "\n".join([*lines, info.describe()])
