"""Words: Qwen3-VL says what the picture is like, and Z-Image's own text encoder reads it after the prompt."""

from __future__ import annotations

from ...stages.description import bring_in
from ...states.stacks import by_layer, split_layers
from ..settings import Settings
from ..way import Given, Needs, Readings, Steered, Text, Way


def needs(settings: Settings, given: Given) -> Needs:
    return Needs(words=True)


def act(text: Text, readings: Readings, settings: Settings, given: Given) -> Steered:
    """The described entry itself at strength 1, else the words brought in by their strength."""
    described, strength = readings.described, settings.strength
    assert described is not None, "steer brings what the way needs"
    line = f"Qwen3-VL saw: {readings.words.rstrip('.')}. Added to your prompt at strength {strength:g}."
    if given.words is not None:
        line = f"Your words: {readings.words.rstrip('.')}. Added to your prompt at strength {strength:g}."
    if strength == 1:
        return Steered(described.states, described.layout, (line,), described, described.words)
    own, whole = text.layout, described.layout
    if own is None or whole is None:
        raise ValueError(
            "prompt: words at another strength than 1 need plain words, got an embedding: file or tokens of pictures. "
            "Remove them, or use strength 1."
        )
    parts = split_layers(described.states, given.family)
    states, found = by_layer(
        text.states, given.family, lambda part, index: bring_in(part, own, parts[index], whole, strength)
    )
    return Steered(states, found[0], (line,), described, described.words)


WAYS = (
    Way(
        "words", "Qwen3-VL puts it into words after your prompt", act, needs, high=1.5,
        uses=("instruction", "longest", "image_tokens"), rank=10, also=("describe", "description"),
    ),
)
