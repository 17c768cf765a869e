"""Blends: Qwen3-VL's own states of the prompt and the picture, mixed into the text's or put after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...stages.alpha import alpha_curve
from ...stages.blend import blend
from ...stages.chain import prepare
from ...stages.select import select_tokens
from ...states.layout import TokenLayout, TokenRole
from ...states.stacks import steer_layers
from ...states.statistics import ReferenceStatistics
from ...states.vl_states import VLStates
from ..settings import CLEANED, CURVED, OPEN_BLEND, READ, Settings, masks_outliers
from ..way import Given, Needs, Readings, Steered, Text, Way

MIXED_SHARE = 0.5  # of the strength, where the picture's tokens are added as well
APPENDED_LAYER = -2  # where tokens to append are read, beside words that are mixed at another layer
PUBLISHED = "research: as published"

# What acts on one layer: (text, its layout, reading, layer, layer of appended tokens, statistics, settings)
Part = tuple[Tensor, TokenLayout | None, list[str]]
ActOnLayer = Callable[
    [Tensor, TokenLayout | None, VLStates, int, int, "ReferenceStatistics | None", Settings], Part
]


def mix_into_words(
    text: Tensor, layout: TokenLayout | None, seen: VLStates, layer: int, append_layer: int,
    statistics: ReferenceStatistics | None, settings: Settings,
) -> Part:
    """Mix each token with what the VL holds at the same word."""
    vl, vl_layout, lines = _cleaned(seen, layer, settings, statistics)
    mixed, info = blend(
        text, vl, strength_at_tokens(settings, text, layout), text_layout=layout, vl_layout=vl_layout
    )
    return mixed, info.layout, [*lines, info.describe()]


def append_picture(
    text: Tensor, layout: TokenLayout | None, seen: VLStates, layer: int, append_layer: int,
    statistics: ReferenceStatistics | None, settings: Settings,
) -> Part:
    """Leave the words and add the pictures' tokens, pooled n × n with n = round(1 / strength).

    Z-Image normalises every token, so its size is invisible and only the number of tokens counts.
    """
    if not seen.layout.grids:
        raise ValueError(
            "weights: appended tokens has nothing to add, every picture is pushed away. Give a picture a weight above "
            "0, or choose another way."
        )
    vl, vl_layout, lines = _cleaned(seen, append_layer, settings, statistics, pictures_only=True)
    vl, vl_layout = select_tokens(vl, vl_layout, "image_no_markers")
    mixed, info = blend(
        text, vl, 1.0, "append", text_layout=layout, vl_layout=vl_layout,
        append_downsample=round(1 / settings.strength), append_position=settings.append_position,
    )
    return mixed, info.layout, [*lines, info.describe()]


def mix_and_append(
    text: Tensor, layout: TokenLayout | None, seen: VLStates, layer: int, append_layer: int,
    statistics: ReferenceStatistics | None, settings: Settings,
) -> Part:
    """Mix half as much into each word as the strength says, then add the pictures' tokens after the words.

    On the miniature words bring the style and tokens the background; together they keep more of the prompt than either
    at full strength (docs/methods.md).
    """
    less = settings.at(MIXED_SHARE * settings.strength)
    mixed, mixed_layout, lines = mix_into_words(text, layout, seen, layer, layer, statistics, less)
    placed = replace(settings, append_position="end" if mixed_layout is None else "before_tail")
    both, both_layout, more = append_picture(
        mixed, mixed_layout, seen, layer, append_layer, statistics, placed
    )
    return both, both_layout, [*lines, *more]


def mix_openly(
    text: Tensor, layout: TokenLayout | None, seen: VLStates, layer: int, append_layer: int,
    statistics: ReferenceStatistics | None, settings: Settings,
) -> Part:
    """The open pipeline of nodes: select tokens, mask outlier dimensions, normalise, blend by any method."""
    appends = settings.method == "append"
    states, vl_layout = seen.at(layer)
    states, vl_layout, lines = prepare(
        states, vl_layout, statistics, tokens=settings.tokens,
        downsample=1 if appends or settings.method == "aligned" else settings.downsample,
        pictures_only=settings.outlier_scope == "image tokens", sinks=settings.sinks, **_cleaning(settings),
    )
    mixed, info = blend(
        text, states, settings.strength, settings.method, settings.space, text_layout=layout, vl_layout=vl_layout,
        sinks=settings.sinks, antialias=settings.antialias, append_position=settings.append_position,
        append_downsample=settings.downsample if appends and vl_layout.grids else 1,
    )
    return mixed, info.layout, [*lines, info.describe()]


def strength_at_tokens(settings: Settings, text: Tensor, layout: TokenLayout | None) -> float | Tensor:
    """The strength at each of the text's tokens ``(L,)``, or one number for all.

    Raises:
        ValueError: if only the words are to change and the text does not say which they are.
    """
    if settings.changed == "text" and settings.curve == "flat":
        return settings.strength
    length = text.shape[-2]
    strength = torch.ones(length)
    if settings.curve != "flat":
        strength = alpha_curve(length, 1.0, settings.curve_end, settings.curve)
    if settings.changed == "prompt":
        if layout is None:
            raise ValueError(
                "changed: prompt needs to know which tokens are words, but the text does not say. Choose text."
            )
        strength = strength * layout.mask(TokenRole.TEXT)
    return strength * settings.strength


def _cleaned(
    seen: VLStates, layer: int, settings: Settings, statistics: ReferenceStatistics | None, *,
    pictures_only: bool = False,
) -> tuple[Tensor, TokenLayout, list[str]]:
    return prepare(*seen.at(layer), statistics, pictures_only=pictures_only, **_cleaning(settings))


def _cleaning(settings: Settings) -> dict:
    return {
        "outlier_mode": settings.outlier_mode if masks_outliers(settings) else "none",
        "outlier_threshold": settings.outlier_threshold,
        "outlier_direction": settings.outlier_direction, "outlier_gamma": settings.outlier_gamma,
        "normalization": settings.normalization, "target_std": settings.target_std or None,
    }


def needs_statistics(settings: Settings) -> bool:
    """Whether the text encoder's statistics are compared with."""
    own_target = settings.normalization == "global" and settings.target_std > 0
    return masks_outliers(settings) or (settings.normalization != "none" and not own_target)


def needs_reading(settings: Settings, given: Given, *more: int) -> Needs:
    """A reading at the layer of the settings and ``more``, or at the family's own layers."""
    layers = given.family.layers if given.family.stacked else tuple(sorted({settings.read_layer, *more}))
    return Needs(layers=layers, statistics=needs_statistics(settings))


def by_layers(act: ActOnLayer, append_layer: int | None = None) -> Callable[..., Steered]:
    """A way's act from what acts on one layer; layers that lie side by side are each mixed for themselves."""

    def on_text(text: Text, readings: Readings, settings: Settings, given: Given) -> Steered:
        seen, family = readings.seen, given.family
        assert seen is not None, "steer brings what the way needs"
        if not seen.layout.grids and readings.muted is None:  # pictures that are all pushed away have a muted side
            return Steered(text.states, text.layout, ("No picture: words only.",), text, text.words)
        added = 0  # tokens, the same in every layer

        def on_part(
            part: Tensor, layout: TokenLayout | None, index: int
        ) -> tuple[Tensor, TokenLayout | None, str]:
            nonlocal added
            layer = family.layers[index] if family.stacked else settings.read_layer
            at = layer if family.stacked or append_layer is None else append_layer
            states, found, lines = act(part, layout, seen, layer, at, readings.statistics[index], settings)
            added = states.shape[-2] - part.shape[-2]
            head = f"{settings.way}, strength {settings.strength:g}, layer {layer}"
            return states, found, "\n".join([head, *lines])

        states, layout, lines = steer_layers(text.states, text.layout, family, on_part, words=text.words)
        return Steered(states, layout, (*for_people(settings, seen), *lines), text, text.words and text.words + added)

    return on_text


def for_people(settings: Settings, seen: VLStates) -> list[str]:
    """What was mixed in, and how large the pictures were to Qwen3-VL."""
    grids = seen.layout.grids
    if not grids:
        return [f"Pushed away from the picture by {settings.way} at strength {settings.strength:g}."]
    what = "The picture" if len(grids) == 1 else f"{len(grids)} pictures"
    count = int(seen.layout.mask(TokenRole.IMAGE).sum())
    return [
        f"{what} mixed in by {settings.way} at strength {settings.strength:g}.",
        f"{count} image tokens ({', '.join(f'{rows}×{columns}' for rows, columns in grids)})",
    ]


BLENDED = (*READ, *CLEANED)

# Layer -2 is the one Z-Image was trained on. Blends read -6: the research note found it crisper on the real models, and
# on the miniature -2 moves nothing and -8 to -4 do (docs/miniature.md).
WAYS = (
    Way(
        "blend and append", "mix into each word, half as much, and put the picture's tokens after them",
        by_layers(mix_and_append, APPENDED_LAYER),
        lambda settings, given: needs_reading(settings, given, APPENDED_LAYER),
        uses=(*BLENDED, *CURVED), layer=-6, rank=30,
    ),
    Way(
        "aligned blend", "mix into each word what it means beside the picture", by_layers(mix_into_words),
        needs_reading, uses=(*BLENDED, *CURVED), layer=-6, rank=31, also=("blend aligned",),
    ),
    Way(
        "appended tokens", "leave the words as they are and put the picture's tokens after them",
        by_layers(append_picture), needs_reading, uses=(*BLENDED, "append_position"), layer=-2, rank=32,
        also=("append picture",),
    ),
    Way(
        OPEN_BLEND, "the nodes' open pipeline: select, mask outliers, normalise, blend by any method",
        by_layers(mix_openly), needs_reading,
        uses=(
            *BLENDED, "method", "tokens", "downsample", "space", "outlier_scope", "sinks", "antialias",
            "append_position",
        ),
        layer=-2, rank=80,
    ),
)
