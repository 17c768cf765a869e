"""Ready-made comparisons: which settings vary over which values, and what holds besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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


# The research note's way of mixing; its presets are compared by it, as its runner does.
NOTE = {
    "method": "resample", "space": "raw", "normalization": "global", "sinks": "include", "antialias": False,
    "tokens": "text", "layer": -6, "strength": 0.5, "target_std": 61.0,
}

PRESETS: dict[str, Preset] = {
    # The research note's own.
    "alpha": Preset("how strongly the picture is mixed in", {"strength": "0, 0.1, 0.3, 0.5, 0.7, 1"}, NOTE),
    "layer": Preset("which hidden state of Qwen3-VL", {"layer": "-1, -2, -4, -6, -8, -12"}, NOTE),
    "token": Preset(
        "which of its tokens", {"tokens": "text, image, image_no_markers, all", "strength": "0.3, 1"}, NOTE
    ),
    "normalization": Preset(
        "how they are brought to the text encoder's scale",
        {"normalization": "none, global, per_dim, hybrid, rms", "tokens": "text, image"}, NOTE | {"target_std": 0.0},
    ),
    "outlier": Preset(
        "what becomes of dimensions that spread too far",
        {"outlier_mode": "none, zero, clamp, scale", "layer": "-2, -8"},
        NOTE
        | {
            "tokens": "all", "strength": 1.0, "outlier_scope": "image tokens", "outlier_direction": "over",
            "outlier_gamma": 1.0,
        },
    ),
    "full": Preset(
        "alpha, layer and tokens together", {"strength": "0.3, 0.6, 1", "layer": "-2, -6, -8", "tokens": "text, all"},
        NOTE,
    ),
    "vl_only": Preset(
        "nothing but Qwen3-VL's states", {"layer": "-2, -6, -8", "tokens": "text, all"}, NOTE | {"strength": 1.0}
    ),
    "style_transfer": Preset(
        "ways that carry statistics only", {"method": "adain, adain_per_dim, style_dims", "strength": "0.3, 0.6, 1"},
        {"layer": -2, "tokens": "all"},
    ),
    "blend_comparison": Preset(
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
    # Ours.
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
