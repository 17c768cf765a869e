"""A byte-level BPE tokenizer like Qwen's, with Qwen's structural tokens and Z-Image's chat template."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import world

VOCABULARY = 760  # before the special tokens
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)
ORDINARY_ADDED = ("<think>", "</think>")  # in Qwen3's vocabulary, but not special
# What Qwen3's template comes down to for one turn, and Qwen3-VL's for one with pictures; both say the same of text.
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def build_tokenizer() -> Any:
    """Trained on the world's captions; always the same."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    from vl_core.zimage.tiny import byte_level_bpe

    tokenizer = byte_level_bpe(_corpus(), VOCABULARY)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY_ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="right",
        chat_template=CHAT_TEMPLATE, model_max_length=2048,
    )


def _corpus() -> list[str]:
    rng = random.Random(0)
    texts = []
    for scene in world.sample_scenes(3000, torch.Generator().manual_seed(1)).records():
        texts += [world.caption(scene, rng)[0], world.canonical_caption(scene), *world.question(scene, rng)]
        texts += [world.tags(scene, rng), "user\n", "assistant\n", "system\n", "\n"]
    names = world.SHAPES + world.COLORS + world.STYLES + world.MOODS + world.SIZES + world.POSITIONS
    # Every name becomes one token, alone and after a space.
    return texts + [*world.DESCRIBE, *world.DESCRIBE_LOOK, *names, " " + " ".join(names)] * 300


def load_tokenizer(folder: Path) -> Any:
    """From ``folder/tokenizer``, built there if missing."""
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer"
    if not (path / "tokenizer.json").is_file():
        build_tokenizer().save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)


def encode(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids padded on the right, int16 ``(N, length)``, and their counts int16 ``(N,)``; 0 where a text is longer."""
    ids = np.full((len(texts), length), tokenizer.pad_token_id, dtype=np.int16)
    counts = np.zeros(len(texts), dtype=np.int16)
    fast = tokenizer.backend_tokenizer
    fast.no_padding()
    fast.no_truncation()
    for start in range(0, len(texts), 20000):
        part = fast.encode_batch(list(texts[start : start + 20000]), add_special_tokens=False)
        for row, found in enumerate(part, start):
            if len(found.ids) <= length:
                ids[row, : len(found.ids)] = found.ids
                counts[row] = len(found.ids)
    return ids, counts


def join(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """What several calls of :func:`encode` gave, as tensors. Workers give arrays: tensors need /dev/shm."""
    ids, counts = (np.concatenate(group) for group in zip(*parts, strict=True))
    return torch.from_numpy(ids), torch.from_numpy(counts)
