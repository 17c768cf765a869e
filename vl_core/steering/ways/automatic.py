"""The way that looks at what is there and takes the first that fits."""

from __future__ import annotations

from ..settings import AUTOMATIC, Settings
from ..way import Given, Needs, Readings, Steered, Text, Way


def needs(settings: Settings, given: Given) -> Needs:
    return Needs()


def act(text: Text, readings: Readings, settings: Settings, given: Given) -> Steered:
    raise ValueError(f"way: {AUTOMATIC} names another way and does nothing itself. Steer with steer().")


WAYS = (
    Way(
        AUTOMATIC, "a learned look if one is connected, a picture adapter if it is good and knows such pictures, else "
        "words", act, needs, high=1.5, tries=("learned look", "picture adapter", "words"), rank=0,
    ),
)
