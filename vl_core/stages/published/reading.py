"""Published: what is read beside the reference picture, and in which template."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...states.families import ZIMAGE, Family
from ...states.layout import TAIL_TOKENS, USER_TURN

GREY = 128
TOKEN_PIXELS = 32  # 16-pixel patches, merged 2 × 2
OPEN_THOUGHT, OPEN_THOUGHT_TOKENS = "<think>\n", 2


def neutral_picture(width: int = 1024) -> Tensor:
    """The grey square that a style delta is measured from: uint8 ``(width, width, 3)``, 128 throughout.

    The published script takes the styled picture's width.
    """
    if width < 1:
        raise ValueError(f"width: expected at least 1 pixel, got {width}.")
    return torch.full((width, width, 3), GREY, dtype=torch.uint8)


def estimate_token_count(width: int, height: int) -> int:
    """Image tokens of a picture: whole tiles of 32 × 32 pixels."""
    return (width // TOKEN_PIXELS) * (height // TOKEN_PIXELS)


def native_template(variant: str) -> Family:
    """The template a Qwen3-VL was trained on, to be given to ``encode`` as its family.

    An Instruct model's is Z-Image's. A Thinking model's goes on with an open think block after the assistant's header,
    two tokens that a selection of words then has besides.

    Args:
        variant: "Instruct" or "Thinking", as :class:`Qwen3VLEncoder` found it.
    """
    if variant != "Thinking":
        return ZIMAGE
    return replace(
        ZIMAGE, name="Z-Image, Thinking", turn=USER_TURN + OPEN_THOUGHT, tail_tokens=TAIL_TOKENS + OPEN_THOUGHT_TOKENS
    )
