"""Words by ComfyUI's own Qwen3-VL, as Load CLIP gives it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
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
from .memory import check_interrupted, fast_allowed, stoppable, writing_bar
from .native import native_model, native_pictures, native_tokens, room_for, trusted_reader

log = logging.getLogger(__name__)

# For words of a Thinking model: the template goes on with a thought that is over.
THINKING = replace(ZIMAGE, turn=ZIMAGE.turn + THINK_BLOCK, tail_tokens=ZIMAGE.tail_tokens + THINK_TOKENS)
Tell = Callable[[Callable[[], str]], None]
_thinkers: weakref.WeakSet = weakref.WeakSet()  # models whose answers showed thoughts


def write_native(
    clip, pictures, instruction, system_prompt, max_tokens, budget, seed, sampling: Sampling
) -> Description:
    """Words about pictures told together, shown on the node while they come; see :func:`write_each_native`."""
    options = system_prompt, max_tokens, budget, seed, sampling
    return write_each_native(clip, [pictures], instruction, *options, writing_bar(max_tokens))[0]


def write_each_native(
    clip, groups: Sequence[Sequence[torch.Tensor]], instruction, system_prompt, max_tokens, budget, seed,
    sampling: Sampling, tell: Tell = lambda _: check_interrupted(),
) -> list[Description]:
    """Words by the pack's own step on the CLIP's modules, or by ``clip.generate``; Stop ends either between tokens.

    A Thinking model is told that its thought is over; one that only its answer gives away is asked once more.

    Args:
        groups: the pictures that each answer is about. Our step writes all answers at the same time.
        tell: called for every token that our step writes, with what gives the first answer's words so far.
    """
    check_interrupted()
    prepared = []
    for pictures in groups:
        notes: list[str] = []
        prepared.append((*native_pictures(pictures, budget, notes), notes))

    def write(thinking: bool) -> tuple[list[list[int]], list[str], str]:
        family = THINKING if thinking else ZIMAGE
        asked = []
        for ready, grids, images, _ in prepared:
            layout, tokens = native_tokens(clip, instruction, system_prompt, images, grids, family)
            asked.append(_Asked(layout, tokens, ready, [picture.grid for picture in ready] == grids))
        written, note = _write(clip, asked, max_tokens, seed, sampling, tell)
        return written, [clip.decode(one) for one in written], note

    thinking = thinks(clip)
    written, raws, note = write(thinking)
    more: tuple[str, ...] = ()
    if not thinking and any(strip_thoughts(raw) != raw.strip() for raw in raws):
        _thinkers.add(clip.cond_stage_model)
        more = ("this is a Thinking model: asked once more, with its thought closed",)
        written, raws, note = write(True)
    stops, told = native_model(clip).transformer.model.config.stop_tokens, []
    for ids, raw, (*_, changes) in zip(written, raws, prepared, strict=True):
        truncated = not ids or ids[-1] not in stops
        words, remarks = finish(raw, len(ids), truncated)
        said = (*changes, *more, *remarks, *([note] if note else []))
        told.append(Description(words, raw, len(ids), truncated, said))
    return told


@dataclass(frozen=True, eq=False)
class _Asked:
    """One sequence to be answered, for our step and for the host's.

    Attributes:
        fits: whether the host sees the pictures in the size that we give them.
    """

    layout: TokenLayout
    tokens: dict
    pictures: list[Picture]
    fits: bool


def thinks(clip: Any) -> bool:
    """Whether a CLIP holds a Thinking model, by the name of its file, or because an answer of it showed thoughts.

    Neither its weights nor ComfyUI's template tell it from an Instruct model.
    """
    if clip.cond_stage_model in _thinkers:
        return True
    known: Any = clip.patcher.cached_patcher_init or (None, ((),))
    arguments = known[1]  # how ComfyUI would load it again
    files = arguments[0] if isinstance(arguments[0], (list, tuple)) else [arguments[0]]
    return any("thinking" in Path(file).name.lower() for file in files)


def _write(
    clip, asked: Sequence[_Asked], max_tokens: int, seed: int, sampling: Sampling, tell: Tell
) -> tuple[list[list[int]], str]:
    """The tokens, and a line for people where they are not written as fast as they could be."""
    written, note = None, "the merged forward pass is turned off, or a picture is enlarged"
    if fast_allowed() and all(one.fits for one in asked):
        written, note = _write_ours(clip, asked, max_tokens, seed, sampling, tell)
    if written is None:
        note = f"written by ComfyUI's own generate, which is slower: {note}"
        log.info("Qwen3-VL: %s.", note)
        # The host's own defaults would penalise repetitions and cut unlikely tokens, which transformers does not.
        options = {"min_p": 0.0, "repetition_penalty": 1.0, **sampling.options()}
        model, written = native_model(clip).transformer, []
        for one in asked:
            generate = partial(clip.generate, one.tokens, max_length=max_tokens, seed=seed, **options)
            with stoppable(model.visual.blocks, model.model.layers):
                written.append(room_for(clip, generate))
    return written, note


def _write_ours(
    clip, asked: Sequence[_Asked], max_tokens: int, seed: int, sampling: Sampling, tell: Tell
) -> tuple[list[list[int]] | None, str]:
    """The tokens, None where our step cannot be relied on; and why not, or why it is slow."""
    native, language = trusted_reader(clip, asked[0].layout), native_model(clip).transformer.model
    if native is None:
        return None, "its modules are hooked, patched or not those that the pack knows"

    first: list[int] = []

    def hear(row: int, token: int) -> bool:
        first.extend([token] if row == 0 else [])
        tell(lambda: clip.decode(first))
        return False

    options = native.load(clip, max(len(one.layout) for one in asked), max_tokens, len(asked))
    with comfy.model_management.cuda_device_context(native.device), held(native_model(clip), native.device):
        return write_answers(
            native.reader, [(one.layout, one.pictures) for one in asked], sampling, seed, max_tokens,
            language.config.stop_tokens, hear, head=head_of(clip, native.dtype, native.device), **options,
        )


def head_of(clip: Any, dtype: torch.dtype, device: torch.device) -> torch.nn.Module | None:
    """What turns states of a CLIP's Qwen3-VL into scores of tokens; None where its embeddings do, as they are."""
    language = native_model(clip).transformer.model
    if language.config.lm_head:
        return language.lm_head
    plain = bare(language.embed_tokens, torch.empty(0, dtype=dtype, device=device)) is not None
    return None if plain else _Head(native_model(clip).transformer)


class _Head(torch.nn.Module):
    """The host's own scores of tokens, for embeddings that are quantised or in another dtype."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self._score = transformer.logits  # a method: the transformer is no part of this module

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._score(states[:, None])[:, 0]
