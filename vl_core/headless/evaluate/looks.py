"""Looks that an evaluation learns itself, of every picture and of noise: within a share of its time, or not at all.

What decides (how long a step takes) is measured once and written into the plan. Each look is a file of its own; one
that was being learned when the run was killed is gone on with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...encoder.answers import append_words
from ...looks.learn import learn_look
from ...looks.look import Look
from ...looks.options import QUALITIES, LearnOptions
from ...looks.others import OTHERS
from ...looks.resumed import learn_resumed, part_of, stopped_at
from ...looks.start import Words
from ...looks.state import LearnState
from ...states.files import parse_json
from ...states.layout import TokenLayout
from ...zimage.look_painter import PipelinePainter, frozen
from ...zimage.progress import progress
from ..learn import LONGEST_ANSWER, learning_key
from .kept import write_whole

if TYPE_CHECKING:
    from .runner import Evaluation

WAY, LOOKS, NOISE = "learned look", "looks", "noise"
SHARE = 0.2  # of the time
# The first that there is time for. Fewer steps would say more of the steps than of the way.
TRIED = (QUALITIES["good"], QUALITIES["quick"], replace(QUALITIES["quick"], steps=25))
PROBED = 2  # steps that are timed: of two one asks for another prompt
OUT_OF_TIME = "{count} looks of {steps} steps would take {need:.0f} of {whole:g} minutes, {share:.0%} are for them"

Texts = Mapping[str, tuple[Tensor, TokenLayout]]


class TextPainter(PipelinePainter):
    """Z-Image without its text encoder: ``texts`` has the states of all that is asked for, by prompt."""

    def __init__(self, pipeline: Any, name: str, texts: Texts) -> None:
        super().__init__(pipeline, name)
        self.texts = texts

    def text(self, prompt: str) -> tuple[Tensor, TokenLayout]:
        return self.texts[prompt]

    @contextmanager
    def learning(self) -> Iterator[None]:
        with frozen(self.dit, self.vae):
            yield


class Timed(Exception):
    """Enough steps were made to know how long one takes."""


def bring_looks(evaluation: Evaluation) -> None:
    """Give every picture its look, and what stands for noise one of noise; or leave the way out and say why."""
    if evaluation.given[0].look is not None or all(arm.group != WAY for arm in evaluation.arms):
        return
    path = evaluation.folder / "plan.json"
    plan: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"), path.name) if path.is_file() else {"rungs": []}
    if LOOKS not in plan:
        plan[LOOKS] = _decided(evaluation)
        write_whole(path, json.dumps(plan, indent=1) + "\n")
    evaluation.looks_said, evaluation.looks_seconds = plan[LOOKS]["said"], plan[LOOKS]["seconds"]
    if plan[LOOKS]["options"] is None:
        evaluation.leave_out(WAY, plan[LOOKS]["said"])
        return
    looks = _learned(evaluation, LearnOptions.of(plan[LOOKS]["options"]))
    evaluation.give([replace(one, look=look) for one, look in zip(evaluation.given, looks, strict=True)])


def lessons_of(evaluation: Evaluation) -> list[tuple[Tensor, Words, Texts]]:
    """Of each picture, and last of noise: its pixels, what Qwen3-VL says of it, and the states of these words."""
    kept, (ask_look, ask_shows, things_of) = evaluation.kept, evaluation.look_questions
    drawn = torch.randint(0, 256, evaluation.pictures[0].shape, generator=torch.Generator().manual_seed(0))
    pictures = [*evaluation.pictures, drawn.to(torch.uint8)]

    def words() -> list[Words]:
        found = []
        for picture in pictures:
            look, shows = (
                kept.write(
                    [picture], ask, longest=LONGEST_ANSWER, budget=evaluation.sheet.models.image_tokens
                ).words for ask in (ask_look, ask_shows)
            )
            found.append(Words((things_of(shows),), look))
        return found

    def texts(told: Words) -> Texts:
        asked = (*OTHERS, *told.shows, *(append_words(shows, told.look) for shows in told.shows))
        found = {prompt: kept.words(prompt)[0] for prompt in asked}
        return {prompt: (text.states, cast(TokenLayout, text.layout)) for prompt, text in found.items()}

    every = evaluation.vision_turn(words)
    states = evaluation.text_turn(lambda: [texts(told) for told in every])
    return list(zip(pictures, every, states, strict=True))


def _decided(evaluation: Evaluation) -> dict[str, Any]:
    """How looks are learned, None for not at all, in a sentence, and the seconds that they will take."""
    models, none = evaluation.sheet.models, {"options": None, "seconds": 0.0}
    if evaluation.fleet.ray:
        return {**none, "said": "left out: learned by `learn --each --ray` they can be given by --looks"}
    size = max(32, min(TRIED[0].size, max(models.width, models.height)))
    try:
        picture, words, texts = lessons_of(evaluation)[-1]
        with evaluation.turns("painter") as pipeline:
            step = step_seconds(TextPainter(pipeline, "", texts), picture, words, replace(TRIED[0], size=size))
    except (ValueError, torch.OutOfMemoryError) as error:
        return {**none, "said": f"left out: {' '.join(str(error).split())}"}
    count = len(evaluation.pictures) + 1
    needs = [step * _cost(options) / _cost(TRIED[0]) * options.steps * count for options in TRIED]
    for options, need in zip(TRIED, needs, strict=True):
        if need <= SHARE * 60 * evaluation.minutes:
            said = f"{count} looks of {options.steps} steps, learned in about {need / 60:.0f} minutes"
            return {"options": replace(options, size=size).header(), "said": said, "seconds": need}
    said = OUT_OF_TIME.format(
        count=count, steps=TRIED[-1].steps, need=needs[-1] / 60, whole=evaluation.minutes, share=SHARE
    )
    return {**none, "said": f"left out: {said}"}


def _cost(options: LearnOptions) -> float:
    """Of a step, in noisy pictures: at every fourth one another prompt takes one with gradients and two without."""
    return options.draws + 0.5 * (options.keep > 0)


def step_seconds(painter: PipelinePainter, picture: Tensor, words: Words, options: LearnOptions) -> float:
    """How long a step takes.

    Raises:
        ValueError, torch.OutOfMemoryError: if nothing can be learned on this painter.
    """
    stamps: list[float] = []

    def stamp(state: LearnState) -> None:
        stamps.append(time.perf_counter())
        if len(stamps) > PROBED:
            raise Timed

    with suppress(Timed):
        learn_look(painter, [picture], words, options, on_step=stamp)
    return (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1)


def _learned(evaluation: Evaluation, options: LearnOptions) -> list[Look]:
    """A look of each picture, and last the one of noise."""
    folder, name = evaluation.folder / LOOKS, Path(evaluation.sheet.models.zimage).resolve().name
    keys = [one.key for one in evaluation.sheet.references] + [NOISE]
    files = [folder / f"{key}.safetensors" for key in keys]
    if not all(file.is_file() for file in files):
        folder.mkdir(exist_ok=True)
        lessons = [
            (file, lesson) for file, lesson in zip(files, lessons_of(evaluation), strict=True) if not file.is_file()
        ]
        with evaluation.turns("painter") as pipeline, progress("Learning looks", len(lessons)) as move:
            for file, (picture, words, texts) in lessons:
                key = learning_key(name, [picture], words, options)
                part = part_of(file, key)
                learn_resumed(
                    TextPainter(pipeline, name, texts), [picture], words, options, part, key,
                    on_step=lambda state: None, state=stopped_at(part, key),
                ).save(file)
                move(note=words.look)
    return [Look.load(file) for file in files]
