"""Tokens of a picture after the words, or before the template's tail."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..states.families import THINK_TOKENS, Family
from ..states.layout import TAIL_TOKENS, TokenLayout, TokenRole, concatenate_layouts
from ..states.tensors import to_dtype
from .select import select_tokens

AppendPosition = Literal["end", "before_tail"]
TAIL_LENGTHS = (TAIL_TOKENS, TAIL_TOKENS + THINK_TOKENS)  # Z-Image's, and with an empty think block


def append_tokens(
    y: Tensor,
    x: Tensor,
    text_layout: TokenLayout | None,
    vl_layout: TokenLayout | None,
    factor: int,
    position: AppendPosition,
    budget: int | None,
) -> tuple[Tensor, TokenLayout | None]:
    """The text ``(B, L, D)`` and the tokens ``(B, L', D)`` put into it, and the layout of both.

    Raises:
        ValueError: for a factor below 1, or a factor or budget without a layout that says where the pictures are.
    """
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
        x, vl_layout = select_tokens(x, vl_layout, "all", downsample=factor, budget=budget, pool_cut=True)
    layout = None
    if text_layout is not None and vl_layout is not None:
        before = torch.arange(len(text_layout)) < at
        parts = [text_layout.select(before), vl_layout, text_layout.select(~before)]
        layout = concatenate_layouts(parts, "blend")
    return torch.cat([y[:, :at], to_dtype(x, y.dtype), y[:, at:]], dim=1), layout


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


def tail_of(layout: TokenLayout | None, length: int, family: Family) -> tuple[int, int]:
    """Where the tail of a family's template begins and ends; in a text whose layout is unknown it is what comes last.

    Args:
        length: of the text, in tokens.

    Raises:
        ValueError: if the layout does not hold such a tail in one piece, or the text is no longer than the tail.
    """
    if layout is not None:
        return template_tail(layout, (family.tail_tokens,))
    if length <= family.tail_tokens:
        raise ValueError(
            f"text: expected more than the template's {family.tail_tokens} tail tokens, got {length}. Give the whole "
            "text."
        )
    return length - family.tail_tokens, length
