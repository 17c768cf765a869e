"""Ready-made comparisons: which settings vary over which values, and what holds besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...steering.settings import Value


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
    "tokens": "text", "layer": -6, "alpha": 0.5, "target_std": 61.0,
}

PRESETS: dict[str, Preset] = {
    # The research note's own.
    "alpha": Preset("how strongly the picture is mixed in", {"alpha": "0, 0.1, 0.3, 0.5, 0.7, 1"}, NOTE),
    "layer": Preset("which hidden state of Qwen3-VL", {"layer": "-1, -2, -4, -6, -8, -12"}, NOTE),
    "token": Preset(
        "which of its tokens", {"tokens": "text, image, image_no_markers, all", "alpha": "0.3, 1"}, NOTE
    ),
    "normalization": Preset(
        "how they are brought to the text encoder's scale",
        {"normalization": "none, global, per_dim, hybrid, rms", "tokens": "text, image"}, NOTE | {"target_std": 0.0},
    ),
    "outlier": Preset(
        "what becomes of dimensions that spread too far",
        {"outlier_mode": "none, zero, clamp, scale", "layer": "-2, -6"},
        NOTE | {"tokens": "image", "alpha": 1.0, "outlier_scope": "image tokens"},
    ),
    "full": Preset(
        "alpha, layer and tokens together", {"alpha": "0.3, 0.6, 1", "layer": "-2, -6, -8", "tokens": "text, all"},
        NOTE,
    ),
    "vl_only": Preset(
        "nothing but Qwen3-VL's states", {"layer": "-2, -6, -8", "tokens": "text, all"}, NOTE | {"alpha": 1.0}
    ),
    "style_transfer": Preset(
        "ways that carry statistics only", {"method": "adain, adain_per_dim, style_dims", "alpha": "0.3, 0.6, 1"},
        {"layer": -2, "tokens": "all"},
    ),
    "blend_comparison": Preset(
        "the ways to bring two lengths together",
        {"method": "resample, truncate, append, adain", "layer": "-2, -6"}, {"tokens": "all", "alpha": 0.5},
    ),
    "img2img": Preset(
        "how much of the reference's own pixels is kept", {"denoise": "0.4, 0.6, 0.8, 1", "alpha": "0, 0.5"},
        {"method": "blend aligned"},
    ),
    "think": Preset(
        "with and without an empty think block after the prompt", {"think": "off, on", "alpha": "0.3, 0.7, 1"},
        {"method": "aligned", "layer": -6},
    ),
    # Ours.
    "methods": Preset(
        "the simple node's modes side by side",
        {
            "method": "blend aligned, append picture, blend and append, image delta, blend as published",
            "alpha": "0.3, 0.6, 1",
        },
    ),
    "aligned": Preset(
        "the aligned blend, layer by layer", {"alpha": "0.3, 0.5, 0.7, 1", "layer": "-2, -4, -6, -8"},
        {"method": "blend aligned"},
    ),
    "delta": Preset(
        "what the picture adds to each word; below 0 it pushes away",
        {"alpha": "-2, -1, 0.5, 1, 2", "layer": "-2, -6"}, {"method": "image delta"},
    ),
    "space": Preset(
        "the space it is mixed in", {"space": "dit, raw, slerp", "alpha": "0.3, 0.7"}, {"method": "aligned"}
    ),
    "describe": Preset(
        "Qwen3-VL's words after the prompt, with and without its states", {"describe": "off, on", "alpha": "0, 0.5"},
        {"method": "aligned"},
    ),
    "adapter": Preset(
        "a picture adapter's strength (needs --adapter)", {"adapter": "0, 0.2, 0.4, 0.6, 1, 1.5"}, {"alpha": 0.0}
    ),
    "downsample": Preset(
        "fewer picture tokens after the words", {"downsample": "1, 2, 4, 8"},
        {"method": "append", "tokens": "image_no_markers"},
    ),
}
