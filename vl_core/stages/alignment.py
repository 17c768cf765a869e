"""Which tokens of a VL sequence are those of the text: same tokens, same places."""

from __future__ import annotations

import torch
from torch import Tensor

from ..states.layout import TokenLayout, TokenRole
from ..states.tensors import median

LOW_COSINE = 0.5  # below this the tokens at one place hardly carry the same words
PROMPT_SHOWN = 40  # characters of a prompt in an error


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
