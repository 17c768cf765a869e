"""Putting learned looks after a prompt, by the rules of words (:mod:`vl_core.stages.description`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stages.append import tail_of
from ..stages.description import lead_in, spread
from ..states.families import Family
from ..states.layout import TokenLayout, TokenRole, concatenate_layouts
from ..states.stacks import by_layer, restore_padding, split_layers, split_padding
from ..states.tensors import as_batch, check_embeddings, to_dtype
from .look import Look
from .units import scaled, sizes_of

MAX_STRENGTH = 2.0
LOOK_TOKEN = -1  # id of a token that no word was written for


@dataclass(frozen=True)
class LookInfo:
    """What was done: the strength, each look's share of it, tokens that were added, tokens now, remarks."""

    strength: float
    shares: tuple[float, ...]
    added: int
    length: int
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for people, then the remarks."""
        if not self.added:
            return "Strength 0: words only."
        many = f" (shares {', '.join(f'{share:.2f}' for share in self.shares)})" if len(self.shares) > 1 else ""
        said = f"Learned look at strength {self.strength:g}{many}: {self.added} tokens added, {self.length} in all."
        return "\n".join([said, *self.notes])


def apply_look(
    text: Tensor,
    layout: TokenLayout | None,
    looks: Look | Sequence[Look],
    strength: float = 1.0,
    weights: Sequence[float] | None = None,
    *,
    words: int | None = None,
    model: str = "",
) -> tuple[Tensor, TokenLayout | None, LookInfo]:
    """A prompt that is painted in a learned look.

    The look's tokens come before the template's tail, and the tail changes: [prompt][n + s·(e − n)][tail + s·ΔT], with
    n the prompt's last word at the token's size and s = :func:`spread` of the strength. Of several looks each brings
    its own tokens, s by its weight beside the largest; the tail's change is their mean by weight.

    Args:
        text: states of the prompt, ``(L, S·D)`` or ``(B, L, S·D)``; ``layout``: its tokens, where known.
        looks: one or several, all of the text's family.
        strength: 0, the prompt bit for bit, to 2; 1 is what was learned.
        weights: of several looks, at least 0 and not all 0; alike unless told.
        words: how many tokens are no padding, where the layout is unknown (:func:`split_padding`).
        model: name of the image model that will paint, for a remark if the look is another's.

    Returns:
        the states in the text's dtype, their layout, and what was done.

    Raises:
        ValueError: for a look of another family or width, no look, a strength or weights out of range.
    """
    several = [looks] if isinstance(looks, Look) else list(looks)
    shares = _shares(weights, len(several))
    if strength < 0:
        raise ValueError(
            f"strength: expected 0 to {MAX_STRENGTH:g}, got {strength:g}. Below 0 has not been measured: "
            "put the words for it into the negative prompt instead."
        )
    if not strength <= MAX_STRENGTH:
        raise ValueError(f"strength: expected 0 to {MAX_STRENGTH:g}, got {strength:g}.")
    check_embeddings(text, "text")
    for look in several:
        look.check_text(text, layout)
    family = several[0].family
    if any(look.origin.family != several[0].origin.family for look in several):
        raise ValueError(
            f"looks: expected all of one family, got {', '.join(dict.fromkeys(one.origin.family for one in several))}."
        )
    notes = _notes(several, layout, family, model)
    if strength == 0:
        return text, layout, LookInfo(0.0, shares, 0, text.shape[-2], notes)
    own, own_layout, padding = split_padding(text, layout, words if family.padded_to else None)
    batch = as_batch(own).float()
    at, stop = tail_of(own_layout, batch.shape[1], family)
    last = batch[:, at - 1 : at]
    added = [
        _led_in(look, last, spread(strength * share / max(shares)), family)
        for look, share in zip(several, shares, strict=True)
        if share
    ]
    change = torch.stack([share * look.tail for look, share in zip(several, shares, strict=True)]).sum(0)
    tail = batch[:, at:stop]
    moved = tail + spread(strength) * scaled(change.to(tail.device), sizes_of(tail, len(family.layers)))
    count = sum(one.shape[1] for one in added)
    whole = torch.cat([batch[:, :at], *added, moved, batch[:, stop:]], 1)
    mixed = to_dtype(whole[0] if own.ndim == 2 else whole, text.dtype)
    result, found = restore_padding(mixed, _with_tokens(own_layout, at, count), padding)
    return result, found, LookInfo(strength, shares, count, result.shape[-2], notes)


def _led_in(look: Look, last: Tensor, share: float, family: Family) -> Tensor:
    """The look's tokens on their way from the prompt's last word ``(B, 1, S·D)``: ``(B, K, S·D)``."""
    tokens = scaled(look.tokens, look.sizes).to(last.device)
    neutral = split_layers(last.expand(-1, len(tokens), -1), family)
    return by_layer(tokens, family, lambda part, index: (lead_in(part, neutral[index], share), None))[0]


def _shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that sum to 1."""
    if not count:
        raise ValueError("looks: expected at least one, got none.")
    given = torch.ones(count) if weights is None else torch.as_tensor(list(weights), dtype=torch.float64)
    if given.shape != (count,) or not (given.isfinite() & (given >= 0)).all() or not given.any():
        shown = ", ".join(f"{float(weight):g}" for weight in given.flatten())
        raise ValueError(f"weights: expected {count} numbers of 0 or more, not all 0, got {shown or 'none'}.")
    return tuple((given / given.sum()).tolist())


def _with_tokens(layout: TokenLayout | None, at: int, count: int) -> TokenLayout | None:
    """The layout with ``count`` tokens of no word in place."""
    if layout is None:
        return None
    before = torch.arange(len(layout)) < at
    added = TokenLayout(torch.full((count,), TokenRole.TEXT, dtype=torch.uint8), torch.full((count,), LOOK_TOKEN))
    return concatenate_layouts([layout.select(before), added, layout.select(~before)], "blend")


def _notes(looks: Sequence[Look], layout: TokenLayout | None, family: Family, model: str) -> tuple[str, ...]:
    notes = [
        f"Learned on {look.origin.model!r}, this model is {model!r}: the look may come out otherwise."
        for look in looks
        if model and look.origin.model and look.origin.model != model
    ]
    if layout is None:
        notes.append(
            f"Where your words end is not known: the last {family.tail_tokens} tokens count as the template's tail."
        )
    return tuple(dict.fromkeys(notes))
