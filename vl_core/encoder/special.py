"""Ids of the structural tokens that a Qwen3-VL folder's tokenizer has."""

from __future__ import annotations

from typing import Any

from ..states.layout import SpecialTokens

# Name in SpecialTokens, the token, and what config.json calls its id.
SPECIAL_TOKENS = (
    ("im_start", "<|im_start|>", None),
    ("im_end", "<|im_end|>", None),
    ("vision_start", "<|vision_start|>", "vision_start_token_id"),
    ("vision_end", "<|vision_end|>", "vision_end_token_id"),
    ("image_pad", "<|image_pad|>", "image_token_id"),
)


def special_tokens(tokenizer: Any, config: Any, name: str) -> SpecialTokens:
    """Ids from the tokenizer, checked against the model's config."""
    ids = {}
    for field, token, config_name in SPECIAL_TOKENS:
        found = tokenizer.convert_tokens_to_ids(token)
        expected = getattr(config, config_name) if config_name else found
        if found is None or found == tokenizer.unk_token_id or found != expected:
            raise ValueError(
                f"{name}: expected a tokenizer with {token}{f' as {expected}' if config_name else ''}, got {found}. "
                "The tokenizer belongs to another model; download the folder's tokenizer files again."
            )
        ids[field] = found
    return SpecialTokens(**ids)
