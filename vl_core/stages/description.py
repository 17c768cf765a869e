"""Descriptions: in slots, appended to a prompt, and their states brought in by a strength."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..states.layout import TAIL_TOKENS, TokenLayout, TokenRole
from ..states.tensors import EPSILON, as_batch, check_embeddings, to_dtype, token_rms
from .append import template_tail
from .resample import resample_tokens

SEPARATOR = ", "
MOST_TOKENS = 4096  # of a slot in a file: more is a damaged one
ENDS = " \t\r\n,.;:"  # at the end of a phrase these would melt into one token with the separator
SPREAD = 0.6  # on the miniature next to nothing shows of a description before it is more than a third of the way there


@dataclass(frozen=True)
class Slot:
    """One part of every description.

    Attributes:
        name: what it is about. ``tokens``: how many states it is resampled to.
    """

    name: str
    tokens: Annotated[int, Field(le=MOST_TOKENS)]

    def __post_init__(self) -> None:
        if not self.name.strip() or self.tokens < 1:
            raise ValueError(f"slot: expected a name and at least 1 token, got {self.name!r} with {self.tokens}.")


SLOTS = (Slot("style", 8), Slot("palette", 8), Slot("light", 6), Slot("background", 8), Slot("composition", 6))


def check_slots(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """The slots as a tuple; ValueError for none, or two of one name."""
    names = [slot.name for slot in slots]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"slots: expected at least one and different names, got {', '.join(names) or 'none'}.")
    return tuple(slots)


def slot_request(slots: Sequence[Slot] = SLOTS) -> str:
    """What to ask a vision-language model for, so that :func:`read_description` understands the answer."""
    form = "\n".join(f"{slot.name}: …" for slot in slots)
    return f"Describe this picture. Fill in each line with a few words, and write nothing else:\n{form}"


def read_description(text: str, slots: Sequence[Slot] = SLOTS) -> dict[str, str]:
    """Slot names and their words from lines "name: words", as people and models write them.

    With a single slot the whole text is its words, unless it starts with the slot's name.

    Raises:
        ValueError: naming the slots that are missing or empty.
    """
    found: dict[str, str] = {}
    names = {slot.name.lower(): slot.name for slot in slots}
    for line in text.splitlines():
        name, colon, words = line.strip().lstrip("-*# ").partition(":")
        name = names.get(name.strip(" *_").lower())
        if colon and name and words.strip(" *_" + ENDS):
            found.setdefault(name, words.strip(" *_" + ENDS))
    if len(slots) == 1 and not found:
        words = " ".join(text.split()).strip(ENDS)
        found = {slots[0].name: words} if words else {}
    missing = [slot.name for slot in slots if slot.name not in found]
    if missing:
        form = ", ".join(f"'{slot.name}: …'" for slot in slots)
        raise ValueError(f"description: expected a line for each of {form}; {', '.join(missing)} is missing or empty.")
    return found


def describe_prompt(prompt: str, description: Mapping[str, str], slots: Sequence[Slot] = SLOTS) -> tuple[str, ...]:
    """The prompt, growing slot by slot: (prompt, "prompt, a", "prompt, a, b" …); the last is what is encoded.

    Punctuation at the end of the prompt and of each slot's words goes, since ".," would be another token than ",".

    Raises:
        ValueError: if a slot has no words.
    """
    texts = [prompt.rstrip(ENDS)]
    for slot in slots:
        words = description.get(slot.name, "").strip(ENDS)
        if not words:
            raise ValueError(f"description: expected words for slot {slot.name!r}, got none.")
        texts.append(SEPARATOR.join(part for part in (texts[-1], words) if part))
    return tuple(texts)


def slot_positions(layouts: Sequence[TokenLayout]) -> list[Tensor]:
    """Where each slot's tokens, the separator before them included, are in the last of the growing texts.

    Args:
        layouts: of all texts that :func:`describe_prompt` gave, from the same tokenizer, in order.

    Returns:
        per slot the int64 positions.

    Raises:
        ValueError: if a slot has no tokens of its own, because the tokenizer joined its words to others.
    """
    words = layouts[-1].mask(TokenRole.TEXT).nonzero().flatten()
    ids = layouts[-1].token_ids[words]
    bounds = []
    for layout in layouts:
        own = layout.token_ids[layout.mask(TokenRole.TEXT)]
        shared = min(len(own), len(ids))
        bounds.append(int((own[:shared] == ids[:shared]).cumprod(0).sum()))
    spans = [words[start:stop] for start, stop in pairwise(bounds)]
    for index, span in enumerate(spans):
        if not len(span):
            raise ValueError(
                f"description: slot {index + 1} of {len(spans)} has no tokens of its own in {layouts[-1].prompt!r}. "
                "Give it words, and no punctuation at their ends."
            )
    return spans


def slot_targets(
    states: Tensor, layouts: Sequence[TokenLayout], slots: Sequence[Slot], own_tail: Tensor | None = None,
    tail_tokens: int = TAIL_TOKENS,
) -> Tensor:
    """What a picture adapter learns to predict: states at the description and at the template tail after it.

    Args:
        states: text-encoder states ``(L, D)`` or ``(1, L, D)`` of the last text without padding, as the image model
            reads them: one layer, or several side by side.
        layouts: of the growing texts, see :func:`slot_positions`.
        slots: each is resampled to its number of tokens.
        own_tail: the last states ``(tail_tokens, D)`` of the prompt alone; given, the tail is the change from them.
        tail_tokens: how many tokens of the template follow the words.

    Returns:
        float32 ``(slot tokens + tail_tokens, D)``.

    Raises:
        ValueError: if the layouts do not fit the states or the slots, or a slot has no tokens.
    """
    states = states[0] if states.ndim == 3 and len(states) == 1 else states
    if states.ndim != 2 or len(states) != len(layouts[-1]):
        raise ValueError(f"states: expected ({len(layouts[-1])}, width) as its layout has, got {tuple(states.shape)}.")
    if len(layouts) != len(slots) + 1:
        raise ValueError(f"layouts: expected {len(slots) + 1}, the prompt's and one per slot, got {len(layouts)}.")
    states = states.detach().float()
    words = [
        resample_tokens(states[positions.to(states.device)], slot.tokens)
        for positions, slot in zip(slot_positions(layouts), slots, strict=True)
    ]
    tail = states[-tail_tokens:]
    if own_tail is not None:
        tail = tail - own_tail.detach().float().to(tail.device)
    return torch.cat([*words, tail])


def spread(strength: float) -> float:
    """How far a strength leads from neutral tokens, 0, to a description's own, 1: sign(s)·|s|^0.6 up to 1, s beyond.

    What a description does grows late and then steeply with the share of its states; the root spreads that over the
    slider (``docs/adapter.md`` has the curve).
    """
    return strength if abs(strength) > 1 else math.copysign(abs(strength) ** SPREAD, strength)


def lead_in(words: Tensor, neutral: Tensor, share: float | Tensor) -> Tensor:
    """Description tokens on the way from neutral ones: n + share·(p − n), n scaled to p's RMS.

    Args:
        words: p, ``(T, D)`` or ``(B, T, D)``; ``neutral``: n, ``(B, T, D)``; both float32.
        share: one number, or one per token ``(T,)``.

    Returns:
        ``(B, T, D)``.
    """
    scaled = neutral * (token_rms(words) / token_rms(neutral).clamp_min(EPSILON)).unsqueeze(-1)
    return scaled + torch.as_tensor(share, device=words.device).reshape(-1, 1) * (words - scaled)


def bring_in(
    text: Tensor, layout: TokenLayout, described: Tensor, described_layout: TokenLayout, strength: float
) -> tuple[Tensor, TokenLayout]:
    """A prompt with words after it, the words at a strength: what a picture adapter does, with true words.

    Args:
        text: Z-Image's states of the prompt alone, ``(L, D)`` or ``(B, L, D)``; ``layout``: its tokens.
        described: its states of the prompt with the words after it, likewise; ``described_layout``: its tokens.
        strength: 0 returns the text itself, 1 the described states themselves; between, and beyond, each of the words'
            tokens is on its way from the prompt's last word (:func:`lead_in`), and the template tail from the prompt's
            own, by :func:`spread` of the strength. Padding, which some families read as they read words, goes from the
            padding at the same place.

    Returns:
        the states in the text's dtype, and their layout.

    Raises:
        ValueError: if the two do not begin alike, end with other template tails, or nothing was added.
    """
    check_embeddings(text, "text")
    check_embeddings(described, "described")
    if strength == 0:
        return text, layout
    ids, own = described_layout.token_ids, layout.token_ids
    (at, stop), (own_at, own_stop) = template_tail(described_layout), template_tail(layout)
    start = int((ids[: min(at, own_at)] == own[: min(at, own_at)]).cumprod(0).sum())
    if start == 0 or start >= at or not torch.equal(ids[at:stop], own[own_at:own_stop]):
        raise ValueError(
            f"described: expected the text's prompt with words after it, got {described_layout.describe()} for "
            f"{layout.describe()}. Encode both with the same text encoder."
        )
    if strength == 1:
        return described, described_layout
    share = spread(strength)
    whole, before = as_batch(described).float(), as_batch(text).float()
    neutral = whole[:, start - 1 : start].expand(-1, at - start, -1)
    words = lead_in(whole[:, start:at], neutral, share)
    tail = torch.lerp(before[:, own_at:own_stop], whole[:, at:stop], share)
    rest = whole[:, stop:]
    if len(ids) == len(own) and rest.shape[1]:
        rest = torch.lerp(before[:, stop:], rest, share)
    mixed = to_dtype(torch.cat([whole[:, :start], words, tail, rest], 1), text.dtype)
    return (mixed[0] if text.ndim == 2 else mixed), described_layout
