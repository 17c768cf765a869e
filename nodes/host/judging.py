"""Whatever encoder hangs on a socket as a judge of pictures: probabilities of one-token answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from torch.nn import functional

from ...vl_core.encoder.judging import Answer, Question, read_answers, tokens_of
from ...vl_core.pictures import DEFAULT_BUDGET
from ...vl_core.reports.judge import LONGEST, Form, Query, figure, say_parts, shares_of
from ...vl_core.states.families import ZIMAGE
from . import encoders
from .held import held
from .loaded import LoadedEncoder
from .memory import check_interrupted
from .native import check_vision_clip, native_model, native_pictures, native_tokens, trusted_reader
from .native_words import head_of


def scores_of(
    encoder: Any, pictures: Sequence[torch.Tensor], prompt: str, reference: torch.Tensor | None, form: Form, *,
    budget: int = DEFAULT_BUDGET,
) -> tuple[list[dict[str, float]], list[str]]:
    """How far the prompt and each part of a reference's look are in each picture, in [0, 1].

    Args:
        pictures: ``(1, H, W, C)`` each. prompt: what was to be painted; "" for nothing.
        reference: whose look was to be taken; None for none.

    Returns:
        the scores by name, and what was said of the reference, a line a part.

    Raises:
        ValueError: if there is neither, and see :func:`ask`.
    """
    if not prompt.strip() and reference is None:
        raise ValueError("judge: expected a prompt or a reference to look for, got neither. Give one of them.")
    wanted: dict[str, tuple[Query, ...]] = {"prompt": form.thing(prompt.strip())} if prompt.strip() else {}
    said: list[str] = []
    if reference is not None:
        words = say_parts(form, lambda asked: encoders.write_words(
            encoder, {"reference": reference}, asked, max_tokens=LONGEST, budget=budget
        ).words)
        wanted |= {part: form.part(part, words[part]) for part in form.parts}
        said = [f"{part}: {words[part]}" for part in form.parts]
    queries = [query for each in wanted.values() for query in each]
    found = []
    for picture in pictures:
        check_interrupted()
        told = shares_of(queries, lambda questions, shown=picture: ask(encoder, shown, questions, budget=budget))
        found.append({name: figure(told, each) for name, each in wanted.items()})
    return found, said


def ask(
    encoder: Any, picture: torch.Tensor, questions: Sequence[Question], *, budget: int = DEFAULT_BUDGET
) -> list[Answer]:
    """How likely the Qwen3-VL on the socket finds each answer about a picture ``(1, H, W, C)``.

    Raises:
        ValueError: for another encoder, and one whose modules are hooked, patched or not those that the pack knows.
    """
    if isinstance(encoder, LoadedEncoder):
        return encoder.ask(picture, questions, budget)
    check_vision_clip(encoder, "judge")
    prepared, grids, images = native_pictures([picture], budget, [])
    layouts = [native_tokens(encoder, question.ask, "", images, grids, ZIMAGE)[0] for question in questions]
    native = trusted_reader(encoder, layouts[0])
    if native is None or [one.grid for one in prepared] != grids:
        raise ValueError(
            "judge: this Qwen3-VL is hooked, patched or read by ComfyUI's own forward only. Use Load Qwen3-VL, or "
            "pictures of 64 × 64 pixels or more."
        )
    tokens = [tokens_of(_tokenizer(encoder), question) for question in questions]
    options = native.load(encoder, sum(map(len, layouts)))
    device, model = native.device, native_model(encoder)
    with comfy.model_management.cuda_device_context(device), held(model, device), torch.inference_mode():
        states = native.reader.branch([(layouts, prepared[0])], **options)
        head = head_of(encoder, native.dtype, device)
        embeddings = model.transformer.model.embed_tokens
        scores = functional.linear(states, embeddings.weight) if head is None else head(states)
    return read_answers(scores.float(), tokens)


def _tokenizer(clip: Any):
    """Text to ids without a template: what begins with this mark is taken as it stands."""
    mark, name = "<|im_start|>", clip.cond_stage_model.clip_name

    def tokenize(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [pair[0] for pair in clip.tokenize(mark + text)[name][0]][1:]}

    return tokenize
