"""Learned look: what a picture has that words lack, learned on it with Z-Image's own loss."""

from __future__ import annotations

from ...looks.apply import MAX_STRENGTH, apply_look
from ...looks.look import Look
from ..settings import Settings
from ..way import Given, Needs, Readings, Steered, Text, Way


def missing(given: Given) -> str:
    looks = _looks(given)
    if not looks:
        return "no learned look is connected"
    families = {look.origin.family for look in looks}
    if families == {given.family.group}:
        return ""
    return f"the learned look is for {' and '.join(sorted(families))}, not for {given.family.group}"


def needs(settings: Settings, given: Given) -> Needs:
    if not _looks(given):
        raise ValueError(
            "look: the way learned look needs one, got none. Connect Learn Look, choose a look_file, or choose the way "
            "words."
        )
    return Needs()


def act(text: Text, readings: Readings, settings: Settings, given: Given) -> Steered:
    states, layout, info = apply_look(
        text.states, text.layout, _looks(given), settings.strength, words=text.words
    )
    return Steered(states, layout, (info.describe(),), text, text.words and text.words + info.added)


def _looks(given: Given) -> list[Look]:
    if given.look is None:
        return []
    return [given.look] if isinstance(given.look, Look) else list(given.look)


WAYS = (
    Way(
        "learned look", "what words cannot say, from a look that was learned on a picture", act, needs,
        high=MAX_STRENGTH, missing=missing, rank=15, quiet=True,
    ),
)
