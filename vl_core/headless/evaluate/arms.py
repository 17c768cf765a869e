"""What competes: every way at several of its settings, and the research note's own comparisons."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from ...states.fields import Value
from ...states.vl_states import resolve_layer
from ...steering.desk import needed_layers
from ...steering.settings import OPEN_BLEND, Settings
from ...steering.sweep import Cell, make_plan
from ...steering.way import Given, Way, ways
from ..compare.study import PLAINLY, choose_axes

NOTE = "the note"
# Strengths and layers by way. A way that is not named is tried at half its strength and at 1, and at two layers.
TRIED: dict[str, dict[str, tuple[Value, ...]]] = {
    "words": {"strength": (0.5, 1.0, 1.5)},
    "picture adapter": {"strength": (0.5, 1.0, 1.5)},
    "blend and append": {"strength": (0.5, 1.0), "layer": (-2, -4, -6, -8)},
    "aligned blend": {"strength": (0.5, 0.85, 1.0), "layer": (-2, -4, -6, -8)},
    "appended tokens": {"strength": (0.5, 1.0), "layer": (-2, -4, -8)},
    "research: image delta": {"strength": (0.5, 1.0, 2.0), "layer": (-2, -6)},
    "research: as published": {"strength": (0.3, 0.7, 1.0), "layer": (-2, -6, -8)},
}
# What the note compares: its own presets, as `compare` has them. They leave out the layer that it recommends, and mask
# outliers at another one than it says they are at.
COMPARED: dict[str, dict[str, list[str]]] = {
    "alpha": {}, "layer": {"layer": ["-2", "-4", "-6", "-8", "-16", "-24"]}, "token": {}, "normalization": {},
    "outlier": {"layer": ["-2"]},
}


@dataclass(frozen=True)
class Arm:
    """One set of settings.

    Attributes:
        group: what it competes with: the settings of its way; or :data:`NOTE`, where nothing competes.
        about: which of the note's comparisons it belongs to.
    """

    settings: Settings
    group: str
    about: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        return Cell((), self.settings, 0, "").id

    @property
    def label(self) -> str:
        """What differs from other settings of its group, in words."""
        parts = [f"strength {self.settings.strength:g}"]
        used = self.settings.effective()
        if "layer" in used:
            parts.append(f"layer {self.settings.read_layer}")
        if used.get("published"):
            parts.append(str(used["published"]))
        return ", ".join(parts)


def ways_tried(given: Given, blocks: int, coming: Collection[str] = ()) -> list[Arm]:
    """Every way that can act with what is given, at its settings.

    Args:
        coming: ways that lack something which is made before they act.
        blocks: of Qwen3-VL: layers that it does not have are left out.
    """
    found = []
    for way in ways().values():
        if way.tries or way.name == OPEN_BLEND:  # the open blend stands for the note's arms
            continue
        if way.missing(given) and way.name not in coming:
            continue
        for values in product(*tried_of(way).values()):
            chosen: dict[str, Any] = dict(zip(tried_of(way), values, strict=True))
            settings = Settings(**chosen, way=way.name)
            if _fits(settings, given, blocks):
                found.append(Arm(settings, way.name))
    return _each_once(found)


def tried_of(way: Way) -> dict[str, tuple[Value, ...]]:
    """Which values of which settings are tried of a way."""
    if way.name in TRIED:
        return TRIED[way.name]
    strengths = tuple(one for one in (0.5, 1.0) if way.low <= one <= way.high) or (way.high,)
    return {"strength": strengths, **({"layer": (-2, -6)} if "layer" in way.uses else {})}


def note_compared(blocks: int) -> list[Arm]:
    """The note's comparisons by its own arithmetic; settings that several of them share are there once."""
    found = []
    for preset, given in COMPARED.items():
        axes, base, _ = choose_axes(preset, given)
        settings = {name: value for name, value in base.items() if name not in PLAINLY}
        for cell in make_plan(axes, settings).cells:
            if _fits(cell.settings, Given(), blocks):
                found.append(Arm(cell.settings, NOTE, (preset,)))
    return _each_once(found)


def together(ways_of: Sequence[Arm], notes: Sequence[Arm]) -> list[Arm]:
    """Both; a setting that a way tries and the note compares is the way's, and is told to be the note's too."""
    return _each_once([*ways_of, *notes])


def _each_once(arms: Sequence[Arm]) -> list[Arm]:
    """Settings of one effect once; of the note's all comparisons they belong to."""
    found: dict[str, Arm] = {}
    for arm in arms:
        known = found.get(arm.id)
        about = (*known.about, *arm.about) if known else arm.about
        found[arm.id] = Arm(arm.settings, known.group if known else arm.group, tuple(dict.fromkeys(about)))
    return list(found.values())


def _fits(settings: Settings, given: Given, blocks: int) -> bool:
    try:
        for layer in needed_layers([settings], given):
            resolve_layer(layer, blocks)
    except ValueError:
        return False
    return True
