"""As published: the research note's arithmetic, for comparison."""

from __future__ import annotations

from torch import Tensor

from ...stages.blend import blend
from ...stages.normalize import normalize
from ...stages.published import PublishedSettings, published
from ...stages.select import select_tokens
from ...states.layout import TokenLayout
from ...states.statistics import PUBLISHED_TARGET_STD, ReferenceStatistics
from ...states.vl_states import VLStates
from ..settings import READ, Settings
from ..way import Given, Way
from .blends import PUBLISHED, Part, by_layers, needs_reading


def missing(given: Given) -> str:
    return "it scales to the spread of Z-Image's layer -2" if given.family.stacked else ""


def mix(
    text: Tensor, layout: TokenLayout | None, seen: VLStates, layer: int, append_layer: int,
    statistics: ReferenceStatistics | None, settings: Settings,
) -> Part:
    """Std 61, stretched over the text, mixed as it is; or another of the note's methods by its own arithmetic."""
    if settings.published_method != "interpolate":
        own = PublishedSettings(method=settings.published_method, alpha=settings.strength)
        states, vl_layout = seen.at(layer)
        return published(text, layout, states, vl_layout, own, statistics)
    vl, vl_layout = select_tokens(*seen.at(layer), "text")
    vl, scaled = normalize(vl.float(), "global", target_std=PUBLISHED_TARGET_STD, sinks="include")
    mixed, info = blend(
        text, vl, settings.strength, "resample", "raw", text_layout=layout, vl_layout=vl_layout, sinks="include",
        antialias=False,
    )
    return mixed, info.layout, [scaled.describe(), info.describe()]


WAYS = (
    Way(
        PUBLISHED, "the research note's arithmetic, for comparison", by_layers(mix), needs_reading,
        uses=(*READ, "published_method"), layer=-6, missing=missing, stacked=False, rank=91,
        also=("blend as published", "as published"),
    ),
)
