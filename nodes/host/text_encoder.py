"""Text encoders of Z-Image and FLUX.2 klein."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from comfy.text_encoders import qwen3vl, z_image

from ...vl_core import TokenLayout
from ...vl_core.states.families import ZIMAGE, Family, detect_text_family, family_of
from ...vl_core.states.fields import quoted
from ...vl_core.states.layout import PAD_TOKEN, pad_layout, text_layout
from ...vl_core.states.statistics import ENCODER_LAYER, length_batches
from ...vl_core.states.vl_states import LAYOUT_KEY
from .memory import check_interrupted, stoppable

EMBEDDING_FILE = re.compile(r"(^|\s)embedding:")  # how ComfyUI's tokenizers are told to insert one


def as_host_reads(prompt: str) -> str:
    """A prompt as ComfyUI's tokenizers see it: they drop the backslash of an escaped parenthesis."""
    return prompt.replace("\\)", ")").replace("\\(", "(")


TEXT_NAME = "qwen3_4b"
NATIVE_NAME = "qwen3vl_4b"
# What ComfyUI calls the encoders, and what their makers do.
SIBLINGS = {"qwen3_4b": "Qwen3-4B", "qwen3_8b": "Qwen3-8B", NATIVE_NAME: "Qwen3-VL-4B", "qwen3vl_8b": "Qwen3-VL-8B"}
LOAD_TEXT = "Load qwen_3_4b.safetensors with Load CLIP, type lumina2."
LOAD_KLEIN = "For FLUX.2 klein the type is flux2."


def _is_klein(model: Any) -> bool:
    """Whether a text encoder is FLUX.2 klein's; FLUX.2 dev's Mistral is of the same class."""
    if getattr(model, "clip_name", None) not in SIBLINGS or isinstance(model, z_image.ZImageTEModel):
        return False
    from comfy.text_encoders import flux  # only here: Z-Image works without it

    return isinstance(model, flux.Flux2TEModel)


def check_text_clip(clip: Any, name: str = "clip", klein: bool = False) -> Family:
    """The family of a text encoder; a CLIP that is of none is refused.

    Args:
        klein: whether the caller can take FLUX.2 klein's as well as Z-Image's.

    Raises:
        ValueError: for every other kind, saying which it is and what to load instead; for other layers than the
            family's.
    """
    model = getattr(clip, "cond_stage_model", None)
    if klein and model is not None and _is_klein(model):
        encoder = getattr(model, model.clip_name)
        hidden = encoder.transformer.model.config.hidden_size
        family = detect_text_family(encoder.options_default[0], hidden, SIBLINGS[model.clip_name], name)
        if encoder.num_layers < max(family.layers):
            raise ValueError(
                f"{name}: expected Z-Image's text encoder {ZIMAGE.text_encoder}, or {family.name}'s with the "
                f"{family.describe_layers()}, got {type(model).__name__} of {encoder.num_layers} blocks. {LOAD_TEXT} "
                f"{LOAD_KLEIN}"
            )
        return family
    if not isinstance(model, z_image.ZImageTEModel):
        kind = type(clip if model is None else model).__name__
        if isinstance(model, qwen3vl.Qwen3VLTEModel):
            kind = "Qwen3-VL, which goes to the vision input"
        load = f"{LOAD_TEXT} {LOAD_KLEIN}" if klein else LOAD_TEXT
        raise ValueError(f"{name}: expected Z-Image's text encoder Qwen3-4B, got {kind}. {load}")
    return family_of(ZIMAGE.group, getattr(model, TEXT_NAME).transformer.model.config.hidden_size)


def encode_text(clip: Any, prompt: str) -> list[list]:
    """A family's own encoding of the prompt, as CLIP Text Encode gives it, with a layout on every entry.

    Raises:
        ValueError: see :func:`check_text_clip`.
    """
    check_text_clip(clip, klein=True)
    tokens = clip.tokenize(prompt)
    layout = _layout_of_tokens(clip, prompt, tokens)
    with stoppable(_blocks(clip)):
        entries = clip.encode_from_tokens_scheduled(tokens)
    return [[states, {**options, LAYOUT_KEY: layout} if layout else options] for states, options in entries]


def _blocks(clip: Any) -> Any:
    """The blocks of a text encoder, in their order."""
    model = clip.cond_stage_model
    return getattr(model, model.clip_name).transformer.model.layers


def encode_words(clip: Any, prompt: str) -> torch.Tensor:
    """The states ``(L, D)`` of :func:`encode_text` without padding, which is not even read.

    Raises:
        ValueError: see :func:`check_text_clip`.
    """
    family = check_text_clip(clip, klein=True)
    return encode_many(clip, [prompt])[0] if family.padded_to else encode_text(clip, prompt)[0][0][0]


def tokenize_text(clip: Any, prompt: str) -> TokenLayout:
    """What the tokens of :func:`encode_text` are, without running the encoder.

    Raises:
        ValueError: see :func:`check_text_clip`; for words that hold an embedding file or tokens of pictures.
    """
    check_text_clip(clip, klein=True)
    is_plain = not EMBEDDING_FILE.search(prompt)  # core leaves out one that it cannot find
    layout = _layout_of_tokens(clip, prompt, clip.tokenize(prompt)) if is_plain else None
    if layout is None:
        raise ValueError(
            f"words: expected plain words, got an embedding: file or tokens of pictures in {quoted(prompt)}."
        )
    return layout


def _layout_of_tokens(clip: Any, prompt: str, tokens: dict) -> TokenLayout | None:
    """None where a token is no word: an embedding file, or those of pictures, which core reads all the same."""
    family, name = check_text_clip(clip, klein=True), clip.cond_stage_model.clip_name
    ids = [pair[0] for pair in tokens[name][0]]
    if not all(isinstance(token, int) for token in ids):
        return None
    words = _words(tokens[name][0], family)
    try:
        layout = text_layout(
            ids[:words], turn=family.turn, tail_tokens=family.tail_tokens,
            layer=None if family.stacked else ENCODER_LAYER if clip.layer_idx is None else clip.layer_idx,
            prompt=as_host_reads(prompt), model=name,
        )
    except ValueError:
        return None
    return pad_layout(layout, len(ids) - words) if words < len(ids) else layout


def _words(row: list[tuple], family: Family) -> int:
    """Tokens of a row of ComfyUI's that come before its padding."""
    count = len(row)
    while family.padded_to and count and row[count - 1][0] == PAD_TOKEN:
        count -= 1
    return count


def encode_many(clip: Any, texts: list[str]) -> list[torch.Tensor]:
    """States ``(L, D)`` of every text without padding on the CPU, texts of like length in one forward."""
    name, family = clip.cond_stage_model.clip_name, check_text_clip(clip, klein=True)
    rows = [clip.tokenize(text)[name][0] for text in texts]
    if family.padded_to:
        rows = [row[: _words(row, family)] for row in rows]
    states = [torch.empty(0)] * len(rows)
    for batch in length_batches([len(row) for row in rows]):
        check_interrupted()
        longest = len(rows[batch[0]])
        # Padding is masked by the host, and comes last, where with causal attention nothing sees it anyway.
        padded = [rows[index] + [(PAD_TOKEN, 1.0)] * (longest - len(rows[index])) for index in batch]
        with stoppable(_blocks(clip)):
            together = clip.encode_from_tokens({name: padded}).reshape(len(batch), longest, -1).cpu()
        for one, index in zip(together, batch, strict=True):
            states[index] = one[: len(rows[index])]
    return states


@cache
def _word_tokenizer() -> Any:
    return z_image.Qwen3Tokenizer().tokenizer


def tokenize_words(text: str) -> list[int]:
    """Token ids of a plain string; every Qwen3 and Qwen3-VL has the same."""
    return _word_tokenizer()(text)["input_ids"]
