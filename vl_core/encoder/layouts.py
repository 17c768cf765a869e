"""Layouts of prompts, found again: to tokenise and lay out takes as long as all else where nothing is read anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..states.families import Family
from ..states.layout import SYSTEM_TURN, SpecialTokens, TokenLayout, text_layout
from .cache import ByteCache

# Bytes: eight hundred questions about a picture of 1024 tokens, what an evaluation asks with 150 references. Of more,
# each is forgotten before it is asked again.
LIMIT = 8 << 20


class Layouts:
    """Layouts by everything that they depend on; thread-safe."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._kept = ByteCache(limit)

    def __call__(self, key: Hashable, make: Callable[[], TokenLayout]) -> TokenLayout:
        """What ``make`` gave under this key; its tensors are the caller's own."""
        layout = self._kept.get(key)
        if layout is None:
            with torch.inference_mode(False):  # who asks later may be outside of it
                layout = make()
            self._kept.put(key, layout, [layout.roles, layout.token_ids])
        return layout.copy()

    def forget(self) -> None:
        self._kept.clear()


def require_string(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a string, got {type(text).__name__}.")


def vocabulary_of(tokenizer: Any) -> tuple[int, int]:
    """What changes when tokens are added to a tokenizer; one that it had as a piece of words makes it no longer."""
    return len(tokenizer), len(getattr(tokenizer, "added_tokens_decoder", ()))


def tokenised(
    tokenizer: Any, prompt: str, system_prompt: str, family: Family, special: SpecialTokens, model: str
) -> TokenLayout:
    """See :meth:`~.qwen3vl.Qwen3VLEncoder.tokenize`."""
    system = SYSTEM_TURN.format(system_prompt) if system_prompt else ""
    system_ids, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        for text in (system, system + family.turn.format(prompt))
    )
    return text_layout(
        ids, system_tokens=len(system_ids), special=special, turn=family.turn, tail_tokens=family.tail_tokens,
        prompt=prompt, model=model,
    )
