"""As published: the research note's arithmetic, for comparison."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from ...stages.blend import blend
from ...stages.normalize import normalize
from ...stages.published import published
from ...stages.select import select_tokens
from ...states.layout import TokenLayout
from ...states.statistics import PUBLISHED_TARGET_STD, ReferenceStatistics
from ...states.vl_states import VLStates
from ..settings import READ, Settings
from ..way import Given, Needs, Readings, Steered, Text, Way
from .blends import PUBLISHED, Part, by_layers, needs_reading


def missing(given: Given) -> str:
    return "it scales to the spread of Z-Image's layer -2" if given.family.stacked else ""


def needs(settings: Settings, given: Given) -> Needs:
    """A reading, and what the method compares it with: statistics, or the same with a grey picture."""
    note = settings.of_note()
    return replace(needs_reading(settings, given), statistics=note.needs_statistics, neutral=note.needs_neutral)


def mix(
    text: Tensor, layout: TokenLayout | None, seen: VLStates, layer: int, append_layer: int,
    statistics: ReferenceStatistics | None, settings: Settings, neutral: VLStates | None = None,
) -> Part:
    """Std 61, stretched over the text, mixed as it is; or what else the note has, by its own arithmetic."""
    if settings.published_method != "interpolate" or settings.published:
        grey, grey_layout = (None, None) if neutral is None else neutral.at(layer)
        return published(
            text, layout, *seen.at(layer), settings.of_note(), statistics, neutral=grey, neutral_layout=grey_layout
        )
    vl, vl_layout = select_tokens(*seen.at(layer), "text")
    vl, scaled = normalize(vl.float(), "global", target_std=PUBLISHED_TARGET_STD, sinks="include")
    mixed, info = blend(
        text, vl, settings.strength, "resample", "raw", text_layout=layout, vl_layout=vl_layout, sinks="include",
        antialias=False,
    )
    return mixed, info.layout, [scaled.describe(), info.describe()]


def act(text: Text, readings: Readings, settings: Settings, given: Given) -> Steered:
    return by_layers(partial(mix, neutral=readings.neutral))(text, readings, settings, given)


WAYS = (
    Way(
        PUBLISHED, "the research note's arithmetic, for comparison", act, needs,
        uses=(*READ, "published_method", "published"), layer=-6, missing=missing, stacked=False, rank=91,
        also=("blend as published", "as published"),
    ),
)
