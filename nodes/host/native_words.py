"""Words by ComfyUI's own Qwen3-VL, as Load CLIP gives it."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils
import torch

from ...vl_core import Description, TokenLayout
from ...vl_core.encoder.answers import finish, strip_thoughts
from ...vl_core.encoder.forward import bare
from ...vl_core.encoder.sampling import Sampling
from ...vl_core.encoder.writing import write_answers
from ...vl_core.pictures import Picture
from ...vl_core.states.families import THINK_BLOCK, THINK_TOKENS, ZIMAGE
from .held import held
from .memory import check_interrupted, fast_allowed, progress_bar, stoppable
from .native import native_model, native_pictures, native_tokens, room_for, trusted_reader

log = logging.getLogger(__name__)

# For words of a Thinking model: the template goes on with a thought that is over.
THINKING = replace(ZIMAGE, turn=ZIMAGE.turn + THINK_BLOCK, tail_tokens=ZIMAGE.tail_tokens + THINK_TOKENS)
_thinkers: weakref.WeakSet = weakref.WeakSet()  # models whose answers showed thoughts


def write_native(
    clip, pictures, instruction, system_prompt, max_tokens, budget, seed, sampling: Sampling
) -> Description:
    """Words by the pack's own step on the CLIP's modules, or by ``clip.generate``; Stop ends either between tokens.

    A Thinking model is told that its thought is over; one that only its answer gives away is asked once more.
    """
    check_interrupted()
    notes: list[str] = []
    prepared, grids, images = native_pictures(pictures, budget, notes)

    def write(thinking: bool) -> tuple[list[int], str, str]:
        family = THINKING if thinking else ZIMAGE
        layout, tokens = native_tokens(clip, instruction, system_prompt, images, grids, family)
        written, note = _write(clip, layout, tokens, prepared, grids, max_tokens, seed, sampling)
        return written, clip.decode(written), note

    thinking = thinks(clip)
    written, raw, note = write(thinking)
    if not thinking and strip_thoughts(raw) != raw.strip():
        _thinkers.add(clip.cond_stage_model)
        notes.append("this is a Thinking model: asked once more, with its thought closed")
        written, raw, note = write(True)
    truncated = not written or written[-1] not in native_model(clip).transformer.model.config.stop_tokens
    words, remarks = finish(raw, len(written), truncated)
    return Description(words, raw, len(written), truncated, (*notes, *remarks, *([note] if note else [])))


def thinks(clip: Any) -> bool:
    """Whether a CLIP holds a Thinking model, by the name of its file, or because an answer of it showed thoughts.

    Neither its weights nor ComfyUI's template tell it from an Instruct model.
    """
    if clip.cond_stage_model in _thinkers:
        return True
    _, arguments, *_ = clip.patcher.cached_patcher_init or (None, ((),))  # how ComfyUI would load it again
    files = arguments[0] if isinstance(arguments[0], (list, tuple)) else [arguments[0]]
    return any("thinking" in Path(file).name.lower() for file in files)


def _write(
    clip, layout: TokenLayout, tokens: dict, prepared: list[Picture], grids, max_tokens: int, seed: int,
    sampling: Sampling,
) -> tuple[list[int], str]:
    """The tokens, and a line for people where they are not written as fast as they could be."""
    written, note = None, "the merged forward pass is turned off, or a picture is enlarged"
    if fast_allowed() and [picture.grid for picture in prepared] == grids:
        written, note = _write_ours(clip, layout, prepared, max_tokens, seed, sampling)
    if written is None:
        note = f"written by ComfyUI's own generate, which is slower: {note}"
        log.info("Qwen3-VL: %s.", note)
        # The host's own defaults would penalise repetitions and cut unlikely tokens, which transformers does not.
        options = {"min_p": 0.0, "repetition_penalty": 1.0, **sampling.options()}
        model = native_model(clip).transformer
        with stoppable(model.visual.blocks, model.model.layers):
            written = room_for(clip, lambda: clip.generate(tokens, max_length=max_tokens, seed=seed, **options))
    return written, note


def _write_ours(
    clip, layout: TokenLayout, pictures: list[Picture], max_tokens: int, seed: int, sampling: Sampling
) -> tuple[list[int] | None, str]:
    """The tokens, None where our step cannot be relied on; and why not, or why it is slow."""
    native, language = trusted_reader(clip, layout), native_model(clip).transformer.model
    if native is None:
        return None, "its modules are hooked, patched or not those that the pack knows"
    bar = progress_bar(max_tokens)

    def hear(_row: int, _token: int) -> bool:
        bar()
        return False

    options = native.load(clip, len(layout), max_tokens)
    with comfy.model_management.cuda_device_context(native.device), held(native_model(clip), native.device):
        embeddings = bare(language.embed_tokens, torch.empty(0, dtype=native.dtype, device=native.device))
        tied = None if embeddings is not None else _Head(native_model(clip).transformer)
        answers, note = write_answers(
            native.reader, [(layout, pictures)], sampling, seed, max_tokens, language.config.stop_tokens, hear,
            head=language.lm_head if language.config.lm_head else tied, **options,
        )
    return answers and answers[0], note


class _Head(torch.nn.Module):
    """The host's own scores of tokens, for embeddings that are quantised or in another dtype."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self._score = transformer.logits  # a method: the transformer is no part of this module

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._score(states[:, None])[:, 0]
