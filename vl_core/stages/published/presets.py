"""Published: the comparisons of its runner and scripts, by their names and with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from ...states.fields import Value
from .settings import PublishedSettings

LAYER, DENOISE, THINK = "layer", "denoise", "think"


@dataclass(frozen=True)
class PublishedRun:
    """One picture of a comparison.

    Attributes:
        layer: the hidden state that is read. denoise: how much of the reference's own pixels is painted over; 1 starts
            from noise. think: an empty think block after the text's prompt.
    """

    settings: PublishedSettings
    layer: int
    denoise: float = 1.0
    think: bool = False


@dataclass(frozen=True)
class PublishedPreset:
    """One comparison.

    Attributes:
        meaning: what it shows, for people.
        axes: name of a setting, ``layer``, ``denoise`` or ``think`` -> its values; the first varies slowest.
        base: what holds besides.
        baseline: whether the text alone is painted as well.
    """

    meaning: str
    axes: Mapping[str, tuple[Value, ...]]
    base: PublishedRun
    baseline: bool = True
    only: tuple[tuple[Value, ...], ...] = field(default=())  # of the grid, those that were painted; () for all

    def runs(self) -> tuple[PublishedRun, ...]:
        """Every picture, the text alone first if it is painted and on no axis; alpha 0 is painted once."""
        found = [replace(self.base, settings=self.base.settings.at(0.0))] if self.baseline else []
        for values in self.only or product(*self.axes.values()):
            chosen = dict(zip(self.axes, values, strict=True))
            besides = {name: chosen.pop(name) for name in (LAYER, DENOISE, THINK) if name in chosen}
            settings = replace(self.base.settings, **chosen)
            if settings.alpha > 0 or not self.baseline:
                found.append(replace(self.base, settings=settings, **besides))
        return tuple(found)


# The runner's defaults: everything the VL holds, stretched over the text, from the words' positions of layer -8.
RUNNER = PublishedRun(PublishedSettings(alpha=1.0), -8)
STYLE = PublishedRun(PublishedSettings(method="adain_per_dim", tokens="full"), -6, denoise=0.9)
BRIDGE = PublishedRun(PublishedSettings(tokens="full"), -6)
# At alpha 1 linear is the whole VL sequence: what scripts give to Z-Image without any mixing.
UNMIXED = PublishedRun(PublishedSettings(method="linear", alpha=1.0), -8)


def _of(run: PublishedRun, **settings: Value) -> PublishedRun:
    return replace(run, settings=replace(run.settings, **settings))


PRESETS: dict[str, PublishedPreset] = {
    # run_comparison
    "alpha": PublishedPreset("how strongly the VL is mixed in", {"alpha": (0.1, 0.3, 0.5, 0.7, 1.0)}, RUNNER),
    "layer": PublishedPreset("which hidden state, at alpha 1", {LAYER: (-2, -4, -8, -16, -24)}, RUNNER),
    "token": PublishedPreset(
        "which of the VL's tokens", {"tokens": ("full", "text_only", "image_only", "image_no_markers")}, RUNNER
    ),
    "normalization": PublishedPreset(
        "how image tokens get their scale", {"normalization": ("global", "per_dim", "hybrid")},
        _of(RUNNER, tokens="image_only"),
    ),
    "full": PublishedPreset(
        "alpha, layer and tokens together",
        {"alpha": (0.3, 0.5, 1.0), LAYER: (-2, -8, -16), "tokens": ("text_only", "image_only")}, RUNNER,
    ),
    "outlier": PublishedPreset(
        "what becomes of outlier dimensions of image tokens", {"outlier_masking": ("none", "zero", "clamp", "scale")},
        _of(RUNNER, tokens="full"),
    ),
    "vl_only_vs_qwen3": PublishedPreset(
        "whether the VL can stand in for the text encoder", {"alpha": (0.3, 1.0), "tokens": ("text_only", "full")},
        replace(RUNNER, layer=-6), only=((1.0, "text_only"), (1.0, "full"), (0.3, "full")),
    ),
    "style_transfer": PublishedPreset(
        "the VL's statistics per dimension, over the reference's pixels", {"alpha": (0.3, 0.5)}, STYLE, baseline=False
    ),
    "blend_comparison": PublishedPreset(
        "ways to mix, over the reference's pixels", {"method": ("adain_per_dim", "adain", "linear")}, STYLE,
        baseline=False,
    ),
    "strength_sweep": PublishedPreset(
        "how much of the reference's pixels is painted over", {DENOISE: (0.5, 0.7, 0.9)}, STYLE, baseline=False
    ),
    "think_comparison": PublishedPreset(
        "with and without an empty think block", {THINK: (False, True)}, STYLE, baseline=False
    ),
    # the scripts
    "blend_modes": PublishedPreset(
        "ways to mix", {"method": ("interpolate", "adain_per_dim", "adain", "linear")}, STYLE
    ),
    "adain": PublishedPreset(
        "whose statistics the text takes",
        {"method": ("adain", "adain_global", "adain_per_dim"), "alpha": (0.3, 0.5, 0.7, 1.0)}, BRIDGE,
    ),
    "style_delta": PublishedPreset(
        "what the picture has over a grey one, added", {"alpha": (0.1, 0.3, 0.5, 0.7, 1.0)},
        _of(BRIDGE, method="style_delta"),
    ),
    "bridge": PublishedPreset(
        "bridges between the two spaces", {"method": ("linear", "gram_style", "surgical_fix", "slerp")}, BRIDGE
    ),
    "gram_sweep": PublishedPreset(
        "towards the VL's Gram matrix", {"alpha": (0.05, 0.1, 0.15, 0.2, 0.3)}, _of(BRIDGE, method="gram_style")
    ),
    "gram_layers": PublishedPreset(
        "whose Gram matrix", {LAYER: (-2, -6, -8, -15)}, _of(BRIDGE, method="gram_style", alpha=0.15)
    ),
    "layers_and_normalization": PublishedPreset(
        "layers, at this very text's spread", {"normalization": ("text_std", "text_per_dim"),
                                               LAYER: (-2, -4, -8, -16, -24)}, UNMIXED,
        only=(
            *(("text_std", layer) for layer in (-2, -4, -8, -16, -24)),
            *(("text_per_dim", layer) for layer in (-2, -8, -16)),
        ),
    ),
    "scaling": PublishedPreset(
        "how large VL states are", {"scale_factor": (1.0, 1.5, 2.0, 3.0, 5.0)},
        replace(_of(UNMIXED, normalization="none"), layer=-2), baseline=False,
    ),
    "server_modes": PublishedPreset(
        "the server's other ways to mix", {"method": ("style_only", "graduated")}, BRIDGE
    ),
}
