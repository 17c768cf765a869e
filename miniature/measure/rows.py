"""Which settings of which methods the bench measures, a row each; :data:`~.methods.WAYS` has what a row's way does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vl_core import load_recipes

from .. import world

ADHERENCE_GOAL = 0.85
FAMILIES = ("published", "training_free", "adapter", "caption")
ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
TEXT_ONLY, CAPTION = "text only", "caption in words"


@dataclass(frozen=True)
class Method:
    """One row of the table. ``way`` names a function in :data:`WAYS`, ``setting`` its keywords.

    ``act`` is when it acts, in shares of the steps; words alone before and after.
    """

    name: str
    family: str
    way: str
    layer: int | None = None
    setting: dict[str, Any] = field(default_factory=dict)
    act: tuple[float, float] = (0.0, 1.0)

    @property
    def key(self) -> str:
        return key_of({"name": self.name, "layer": self.layer, "setting": self.setting})


def key_of(row: dict[str, Any]) -> str:
    """What tells a method's row in a report from the others."""
    return json.dumps([row["name"], row["layer"], row["setting"]], sort_keys=True)


APPENDED = {"method": "append", "tokens": "image_no_markers", "append_position": "before_tail"}


def _methods() -> tuple[Method, ...]:
    rows = [Method(CAPTION, "caption", "words"), Method("described by the VL", "caption", "description")]
    for alpha in (0.3, 0.5, 0.7, 1.0):
        rows.append(Method("described tokens", "training_free", "description", -2, {"alpha": alpha}))
    for strength in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        rows.append(Method("picture adapter", "adapter", "adapter", None, {"strength": strength}))
    for name in world.LOOK:
        rows.append(Method(f"picture adapter, {name} only", "adapter", "adapter", None, {"strength": 1.0, name: 1.0}))
    for layer in (-6, -2):
        for alpha in ALPHAS:
            setting = {"mode": "blend as published", "strength": alpha}
            rows.append(Method("published", "published", "recipe", layer, setting))
    for alpha in (0.1, 0.3, 0.5):
        # the same with the scale of this text encoder, its sink included, in place of the real one's 61
        setting = {"alpha": alpha, "tokens": "text", "method": "resample", "space": "raw", "sinks": "include",
                   "antialias": False, "scale": "global"}
        rows.append(Method("published, own scale", "published", "blend", -6, setting))
    for alpha in (0.3, 1.0):
        # the note's other variant: every token, the picture's included, squeezed onto the text's length
        setting = {"alpha": alpha, "method": "resample", "space": "raw", "sinks": "include", "antialias": False,
                   "scale": "global"}
        rows.append(Method("published, all tokens", "published", "blend", -2, setting))
    for layer in range(-8, 0):
        for alpha in ALPHAS if layer == -2 else (0.5, 0.7, 0.85, 1.0):
            setting = {"mode": "blend aligned", "strength": alpha}
            rows.append(Method("aligned", "training_free", "recipe", layer, setting))
    for layer in (-8, -4, -2):
        for strength in (1.0, 0.5, 0.25):
            setting = {"mode": "append picture", "strength": strength}
            rows.append(Method("append picture", "training_free", "recipe", layer, setting))
    for layer in (-6, -2):
        for weight in (0.5, 1.0, 1.5, 2.0):
            rows.append(Method("image delta", "training_free", "delta", layer, {"weight": weight}))
    for factor in (1, 2, 4):
        setting = {"alpha": 1.0, **APPENDED, "append_downsample": factor}
        rows.append(Method("append before the tail", "training_free", "blend", -2, setting))
    for alpha in (0.5, 0.7, 1.0):
        for name, setting in {
            "aligned, slerp": {"space": "slerp"},
            "aligned, sinks mixed": {"sinks": "include"},
            "aligned, per dimension": {"scale": "per_dim"},
            "aligned, outliers clamped": {"mask": "clamp"},
            "adain": {"method": "adain"},
            "adain per dimension": {"method": "adain_per_dim", "tokens": "image"},
            "style dimensions": {"method": "style_dims"},
            "resample, per dimension": {"method": "resample", "scale": "per_dim"},
        }.items():
            rows.append(Method(name, "training_free", "blend", -2, {"alpha": alpha, **setting}))
        for layers in ((-8, -6, -4, -2), (-8, -2)):
            rows.append(Method("layers mixed", "training_free", "layers", None, {"layers": layers, "alpha": alpha}))
        for layer in (-8, -4, -2):
            rows.append(Method("aligned, object kept", "training_free", "chosen words", layer, {"alpha": alpha}))
        setting = {"alpha": alpha}
        rows.append(Method("aligned and appended", "training_free", "aligned and appended", -4, setting))
        rows.append(Method("object kept, and appended", "training_free", "kept and appended", -4, setting))
    for layer in (-8, -4):
        mapped: dict[str, Any] = {"mapped_to": -2}  # a ridge on words alone, see Bench.space
        for name, way, settings in (
            ("image delta", "delta", [{"weight": weight} for weight in (0.75, 1.0)]),
            ("append before the tail", "blend", [{"alpha": 1.0, **APPENDED}]),
            ("aligned", "blend", [{"alpha": alpha} for alpha in (0.7, 1.0)]),
            ("aligned, object kept", "chosen words", [{"alpha": alpha} for alpha in (0.7, 1.0)]),
        ):
            name = f"{name}, through a space adapter"
            rows += [Method(name, "training_free", way, layer, {**setting, **mapped}) for setting in settings]
    for strength in (0.5, 1.0):
        setting = {"mode": "blend and append", "strength": strength}
        rows.append(Method("blend and append", "training_free", "recipe", -6, setting))
    for first, last in ((0.3, 1.0), (1.0, 0.3)):
        setting = {"alpha": first, "alpha_end": last}
        rows.append(Method("aligned, alpha along the tokens", "training_free", "blend", -4, setting))
    for start, end in ((0.0, 0.5), (0.5, 1.0)):
        setting = {"mode": "blend aligned", "strength": 0.7, "start": start, "end": end}
        rows.append(Method("aligned, part of the steps", "training_free", "recipe", -8, setting, (start, end)))
    for name, recipe in load_recipes()[0].items():
        rows.append(Method(
            f"recipe {name}", "training_free", "recipe file", recipe.settings.read_layer,
            {"recipe": name, "strength": 1.0}, recipe.settings.window,
        ))
    for combining in ("average", "norm average", "max weight per token", "add"):
        setting = {"combining": combining, "weights": (1.0, 1.0), "mode": "blend aligned", "strength": 0.7}
        rows.append(Method(f"two pictures, {combining}", "training_free", "pictures", -8, setting))
    for strength in (0.5, 1.0):
        setting = {"combining": "average", "weights": (1.0, 1.0), "mode": "append picture", "strength": strength}
        rows.append(Method("two pictures, appended", "training_free", "pictures", -2, setting))
    setting = {"combining": "subtract", "weights": (1.0, 1.0), "mode": "image delta", "strength": 1.0}
    rows.append(Method("two pictures, subtract", "training_free", "pictures", -2, setting))
    for combining in ("average", "append", "parts"):
        setting = {"combining": combining}
        rows.append(Method(f"two pictures, adapter {combining}", "adapter", "two adapted", None, setting))
    return tuple(rows)


METHODS = _methods()
