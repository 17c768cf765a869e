"""Ready-made comparisons: which settings vary over which values, and what holds besides.

Those of the research note's names are its own table (:data:`vl_core.stages.published.PRESETS`), by its own arithmetic;
the whole grid is painted where the note painted a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from ...stages.published.presets import DENOISE, LAYER, THINK, PublishedPreset
from ...stages.published.presets import PRESETS as PUBLISHED
from ...stages.published.settings import write_settings
from ...states.fields import Value
from ...steering.takes import take_names


@dataclass(frozen=True)
class Preset:
    """One comparison.

    Attributes:
        meaning: what it shows, in one line for people.
        axes: name -> values as people write them; the first goes along columns.
        base: settings that hold throughout.
    """

    meaning: str
    axes: Mapping[str, str]
    base: Mapping[str, Value] = field(default_factory=dict)


AS_PUBLISHED = "research: as published"
# What the note's settings are called here; all others are written into one, ``published``.
NAMES = {"alpha": "strength", "method": "published_method", LAYER: LAYER, DENOISE: DENOISE, THINK: THINK}


def of_note(preset: PublishedPreset) -> Preset:
    """A comparison of the note as settings of the way *research: as published*."""
    shared = {name: values for name, values in preset.axes.items() if name in NAMES}
    axes = {NAMES[name]: ", ".join(_said(value) for value in values) for name, values in shared.items()}
    own = {name: values for name, values in preset.axes.items() if name not in NAMES}
    together = product(*own.values())
    base, settings = preset.base, preset.base.settings
    written = [
        write_settings(replace(settings, **dict(zip(own, values, strict=True))), "alpha", "method")
        or " + ".join(f"{name} {value}" for name, value in zip(own, values, strict=True))
        for values in together
    ]
    holds: dict[str, Value] = {
        "way": AS_PUBLISHED, "strength": settings.alpha, "published_method": settings.method, LAYER: base.layer,
        DENOISE: base.denoise, THINK: base.think,
    }
    if own:
        axes["published"] = ", ".join(written)
    else:
        holds["published"] = written[0]
    return Preset(preset.meaning, axes, {name: value for name, value in holds.items() if name not in axes})


def _said(value: Value) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


# The note's way of mixing with this pack's stages, for what the note's own comparisons lack.
NOTE = {
    "method": "resample", "space": "raw", "normalization": "global", "sinks": "include", "antialias": False,
    "tokens": "text", "layer": -6, "strength": 0.5, "target_std": 61.0,
}

PRESETS: dict[str, Preset] = {
    **{name: of_note(preset) for name, preset in PUBLISHED.items()},
    # Ours, of the same questions.
    "selections": Preset(
        "which of Qwen3-VL's tokens", {"tokens": "text, image, image_no_markers, all", "strength": "0.3, 1"}, NOTE
    ),
    "scales": Preset(
        "how VL states are brought to the text encoder's scale",
        {"normalization": "none, global, per_dim, hybrid, rms", "tokens": "text, image"}, NOTE | {"target_std": 0.0},
    ),
    "masking": Preset(
        "what becomes of dimensions that spread too far",
        {"outlier_mode": "none, zero, clamp, scale", "layer": "-2, -8"},
        NOTE
        | {
            "tokens": "all", "strength": 1.0, "outlier_scope": "image tokens", "outlier_direction": "over",
            "outlier_gamma": 1.0,
        },
    ),
    "vl_only": Preset(
        "nothing but Qwen3-VL's states", {"layer": "-2, -6, -8", "tokens": "text, all"}, NOTE | {"strength": 1.0}
    ),
    "statistics": Preset(
        "ways that carry statistics only", {"method": "adain, adain_per_dim, style_dims", "strength": "0.3, 0.6, 1"},
        {"layer": -2, "tokens": "all"},
    ),
    "lengths": Preset(
        "the ways to bring two lengths together",
        {"method": "resample, truncate, append, adain", "layer": "-2, -6"}, {"tokens": "all", "strength": 0.5},
    ),
    "img2img": Preset(
        "how much of the reference's own pixels is kept", {"denoise": "0.4, 0.6, 0.8, 1", "strength": "0, 0.5"},
        {"way": "aligned blend"},
    ),
    "think": Preset(
        "with and without an empty think block after the prompt", {"think": "off, on", "strength": "0.3, 0.7, 1"},
        {"method": "aligned", "layer": -6},
    ),
    "methods": Preset(
        "the ways side by side",
        {
            "way": "words, picture adapter, blend and append, aligned blend, appended tokens",
            "strength": "0.3, 0.6, 1",
        },
    ),
    "takes": Preset("what can be taken from the picture", {"take": ", ".join(take_names()), "way": "words"}),
    "aligned": Preset(
        "the aligned blend, layer by layer", {"strength": "0.3, 0.5, 0.7, 1", "layer": "-2, -4, -6, -8"},
        {"way": "aligned blend"},
    ),
    "delta": Preset(
        "what the picture adds to each word; below 0 takes that away",
        {"strength": "-2, -1, 0.5, 1, 2", "layer": "-2, -6"}, {"way": "image delta"},
    ),
    "space": Preset(
        "the space it is mixed in", {"space": "dit, raw, slerp", "strength": "0.3, 0.7"}, {"method": "aligned"}
    ),
    "describe": Preset(
        "Qwen3-VL's words after the prompt, with and without its states",
        {"described": "off, on", "strength": "0, 0.5"},
        {"method": "aligned"},
    ),
    "adapter": Preset(
        "a picture adapter's strength (needs --adapter)", {"strength": "0, 0.2, 0.4, 0.6, 1, 1.5"},
        {"way": "picture adapter"},
    ),
    "downsample": Preset(
        "fewer picture tokens after the words", {"downsample": "1, 2, 4, 8"},
        {"method": "append", "tokens": "image_no_markers"},
    ),
}
