"""Descriptions in slots: how they are appended to a prompt, and where their tokens are then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .layout import TAIL_TOKENS, TokenLayout, TokenRole
from .resample import resample_tokens

SEPARATOR = ", "
ENDS = " \t\r\n,.;:"  # at the end of a phrase these would melt into one token with the separator


@dataclass(frozen=True)
class Slot:
    """One part of every description.

    Attributes:
        name: what it is about. ``tokens``: how many states it is resampled to.
    """

    name: str
    tokens: int

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
    states: Tensor, layouts: Sequence[TokenLayout], slots: Sequence[Slot], own_tail: Tensor | None = None
) -> Tensor:
    """What a picture adapter learns to predict: states at the description and at the template tail after it.

    Args:
        states: text-encoder states ``(L, D)`` or ``(1, L, D)`` of the last text, at the layer Z-Image reads.
        layouts: of the growing texts, see :func:`slot_positions`.
        slots: each is resampled to its number of tokens.
        own_tail: the last 5 states ``(5, D)`` of the prompt alone; given, the tail is the change from them.

    Returns:
        float32 ``(slot tokens + 5, D)``.

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
    tail = states[-TAIL_TOKENS:]
    if own_tail is not None:
        tail = tail - own_tail.detach().float().to(tail.device)
    return torch.cat([*words, tail])
