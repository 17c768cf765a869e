"""How the miniature's VL is asked as a judge: it knows only the questions that it was trained with."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from vl_core.encoder.judging import Question
from vl_core.reports.judge import NO, SHOWS, YES, Query

from .. import world

NAMES = {"background": world.COLORS, "style": world.STYLES, "mood": world.MOODS}
# Both wordings that the VL was trained with; a reference is described by the first.
ASK = {
    "background": ("what is the background color?", "which background?"),
    "style": ("what style is it?", "which texture?"), "mood": ("what mood is it?", "which palette?"),
}


@dataclass(frozen=True)
class WorldForm:
    """A :class:`~vl_core.reports.judge.Form`: parts of the look by their names, things by their colour and shape."""

    parts: tuple[str, ...] = world.LOOK
    caption: str = world.DESCRIBE[0]

    def describe(self, part: str) -> str:
        return world.DESCRIBE[0] if part == SHOWS else ASK[part][0]

    def thing(self, words: str) -> tuple[Query, ...]:
        """Whether it is there; and whether both its shape has its colour and its colour has its shape.

        Asked whether there is a red star, this VL looks at the colour; asked for the shape of what is red, it is often
        wrong about paintings. Either of the last two is right about one half of the thing only, so they count together:
        ``judge-check`` says how near to the truth that is.
        """
        which, whose = thing_of(words)
        shape, color = world.SHAPES[which], world.COLORS[whose]
        return (
            Query(Question(f"is there {world.with_article(f'{color} {shape}')}?", (YES, NO)), YES),
            Query(Question(f"what color is the {shape}?", world.COLORS), color, also=(
                Query(Question(f"what shape is {color}?", world.SHAPES), shape),
            )),
        )

    def part(self, part: str, words: str) -> tuple[Query, ...]:
        """The part in both wordings; a word that is no name of it is never the answer."""
        if words not in NAMES[part]:
            raise ValueError(f"{part}: expected one of {', '.join(NAMES[part])}, got {words!r}.")
        return tuple(Query(Question(ask, NAMES[part]), words) for ask in ASK[part])


def thing_of(words: str) -> tuple[int, int]:
    """Shape and colour of the first thing that words name, such as "a large red star in the center".

    Raises:
        ValueError: if there is none.
    """
    found = re.search(rf"\b({'|'.join(world.COLORS)}) ({'|'.join(world.SHAPES)})\b", words)
    if not found:
        raise ValueError(f"thing: expected a colour and a shape, such as red star, got {words!r}.")
    return world.SHAPES.index(found[2]), world.COLORS.index(found[1])


def ground(pictures: int = 16, prompts: int = 3, seed: int = 7) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Pictures of the world by name, uint8 ``(128, 128, 3)``, and prompts with the thing that each asks for, which no
    picture has."""
    from ..show.scenes import draw  # which draws sheets with what is measured here

    scenes, written = draw(pictures, seed, prompts)
    painted, _ = world.render(scenes, torch.Generator().manual_seed(seed))
    pixels = ((painted + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    names = [
        f"{number:02}-" + "-".join((world.COLORS[scene.background], world.STYLES[scene.style], world.MOODS[scene.mood]))
        for number, scene in enumerate(scenes.records(), 1)
    ]
    things = [thing_of(text) for text in written]
    named = [world.with_article(f"{world.COLORS[color]} {world.SHAPES[shape]}") for shape, color in things]
    return dict(zip(names, pixels, strict=True)), list(zip(written, named, strict=True))
