"""Words by ComfyUI's own Qwen3-VL, as Load CLIP gives it."""

from __future__ import annotations

import logging

import comfy.utils
import torch

from ...vl_core import Description, TokenLayout
from ...vl_core.encoder.answers import finish
from ...vl_core.encoder.forward import bare
from ...vl_core.encoder.sampling import Sampling
from ...vl_core.encoder.writing import write_answers
from ...vl_core.pictures import Picture
from ...vl_core.states.families import ZIMAGE
from .held import held
from .memory import check_interrupted, fast_allowed, progress_bar
from .native import native_model, native_pictures, native_tokens, trusted_reader

log = logging.getLogger(__name__)


def write_native(
    clip, pictures, instruction, system_prompt, max_tokens, budget, seed, sampling: Sampling
) -> Description:
    """Words by the pack's own step on the CLIP's modules, or by ``clip.generate``; Stop ends either between tokens."""
    check_interrupted()
    notes: list[str] = []
    prepared, grids, images = native_pictures(pictures, budget, notes)
    layout, tokens = native_tokens(clip, instruction, system_prompt, images, grids, ZIMAGE)
    written, note = None, "the merged forward pass is turned off, or a picture is enlarged"
    if fast_allowed() and [picture.grid for picture in prepared] == grids:
        written, note = _write_ours(clip, layout, prepared, max_tokens, seed, sampling)
    if written is None:
        note = f"written by ComfyUI's own generate, which is slower: {note}"
        log.info("Qwen3-VL: %s.", note)
        # The host's own defaults would penalise repetitions and cut unlikely tokens, which transformers does not.
        options = {"min_p": 0.0, "repetition_penalty": 1.0, **sampling.options()}
        written = clip.generate(tokens, max_length=max_tokens, seed=seed, **options)
    truncated = not written or written[-1] not in native_model(clip).transformer.model.config.stop_tokens
    raw = clip.decode(written)
    words, remarks = finish(raw, len(written), truncated)
    return Description(words, raw, len(written), truncated, (*notes, *remarks, *([note] if note else [])))


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
