"""Image delta: add to each token what the picture changed at that word."""

from __future__ import annotations

from torch import Tensor

from ...stages.delta import MAX_WEIGHT, image_delta
from ...states.layout import TokenLayout
from ...states.stacks import steer_layers
from ..settings import CURVED, DELTA, READ, Settings
from ..way import Given, Needs, Readings, Steered, Text, Way
from .blends import for_people, needs_reading, strength_at_tokens


def needs(settings: Settings, given: Given) -> Needs:
    found = needs_reading(settings, given)
    return Needs(layers=found.layers, muted=True)


def act(text: Text, readings: Readings, settings: Settings, given: Given) -> Steered:
    seen, muted, family = readings.seen, readings.muted, given.family
    assert seen is not None and muted is not None, "steer brings what the way needs"

    def on_part(part: Tensor, layout: TokenLayout | None, index: int) -> tuple[Tensor, TokenLayout | None, str]:
        layer = family.layers[index] if family.stacked else settings.read_layer
        (plus, plus_layout), (zero, zero_layout) = seen.at(layer), muted.at(layer)
        moved, info = image_delta(
            part, plus.float(), zero.float(), strength_at_tokens(settings, part, layout), text_layout=layout,
            vl_layout=plus_layout, baseline_layout=zero_layout,
            remove_prompt_direction=settings.remove_prompt_direction, rank=settings.rank,
        )
        return moved, info.layout, f"layer {layer}\n{info.describe()}"

    states, layout, lines = steer_layers(text.states, text.layout, family, on_part, words=text.words)
    head = f"What the picture did to each word, added at strength {settings.strength:g}."
    return Steered(states, layout, (head, *for_people(settings, seen)[1:], *lines), text, text.words)


WAYS = (
    Way(
        DELTA, "add to each word what the picture did to it", act, needs, low=-MAX_WEIGHT, high=MAX_WEIGHT,
        uses=(*READ, *CURVED, "remove_prompt_direction", "rank"), layer=-2, rank=90, also=("image delta",),
    ),
)
