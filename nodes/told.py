"""The first line of a report: what a node did, for people. Figures follow below it."""

from __future__ import annotations

from collections.abc import Iterable

from ..vl_core.adapters.picture_adapter import PictureAdapter
from ..vl_core.adapters.space_adapter import SpaceAdapter
from ..vl_core.reports.inspection import Inspection
from ..vl_core.reports.layer_report import SEEN_BY_DIT, LayerReport
from ..vl_core.states.counts import counted
from ..vl_core.steering.ways.adapter import WORTH_IT, worth_of

ENOUGH = 200  # pictures that a fit does well with (miniature/takes.json, "fits")
GOOD_FIT = 0.5  # held-out R² of a map between encoders
NORMALIZED = {
    "global": "Brought to the text encoder's overall scale.",
    "per_dim": "Every dimension brought to the text encoder's mean and spread.",
    "hybrid": "Between one factor for all and every dimension for itself.",
    "rms": "Every token brought to one size.",
    "none": "Left as it is.",
}


def read(pictures: int, prompt: str) -> str:
    """What Qwen3-VL was given."""
    shown = [counted(pictures, "picture")] if pictures else []
    words = ["your words"] if prompt.strip() else []
    return f"Qwen3-VL read {' and '.join([*shown, *words]) or 'an empty prompt'}."


def normalized(mode: str) -> str:
    return NORMALIZED[mode]


def tamed(mode: str, found: Iterable[int]) -> str:
    """What became of outlier dimensions, counted over the layers of all entries."""
    count = sum(found)
    if not count:
        return "Nothing stands out: nothing was changed."
    done = {"clamp": "clamped", "zero": "set to 0", "scale": "pulled back", "none": "found and left as they are"}[mode]
    return f"{counted(count, 'dimension')} stood out and {'was' if count == 1 else 'were'} {done}."


def blended(method: str, alpha: float, end: float, added: int) -> str:
    """What was mixed into the words, or put after them."""
    if method == "append":
        return f"{counted(added, 'token')} of the picture put after your words, which stay as they are."
    if alpha == 0 == end:
        return "Your words alone: strength 0."
    strength = f"{alpha:g}" if alpha == end else f"{alpha:g} to {end:g}"
    return f"Mixed into your words by {method} at strength {strength}."


def fitted(adapter: PictureAdapter) -> str:
    """What a fit is worth, by how well it tells pictures that it was not fitted on."""
    pictures = counted(adapter.report.pairs, "picture")
    if worth_of(adapter) >= WORTH_IT:
        return f"Fit is good: {pictures}. Choose the way automatic or picture adapter."
    if adapter.report.pairs < ENOUGH:
        return f"Fit is weak: {pictures}; about {ENOUGH} do."
    return f"Fit is weak: {pictures}, which tell little of other ones. Check that the words beside them fit."


def brought(spaces: Iterable[SpaceAdapter]) -> str:
    """What a map between two encoders is worth."""
    shares = [one.report.r2 for one in spaces if one.report.held_out]
    if not shares:
        return "Brought to the text encoder's states; nothing was left over to test it on."
    worth = "well" if min(shares) >= GOOD_FIT else "weakly: give it more prompts"
    return f"Brought to the text encoder's states, {worth}."


def looked(found: Iterable[Inspection]) -> str:
    """Whether something is wrong with what was inspected."""
    found = list(found)
    tokens = " and ".join(dict.fromkeys(counted(one.tokens, "token") for one in found))
    if any(one.non_finite for one in found):
        return f"{tokens}: broken, the sampler would paint black."
    outliers = sum(len(one.outliers) for one in found)
    if outliers:
        return f"{tokens}, {counted(outliers, 'dimension')} unlike the text encoder's."
    compared = any(one.ratio is not None for one in found)
    return f"{tokens}, {'much like the text encoder' + chr(39) + 's' if compared else 'nothing broken'}."


def likest(reports: Iterable[LayerReport]) -> str:
    """The layer that is best by most measures, over the words."""
    wins: dict[int, int] = {}
    measures = 0
    for one in reports:
        for metric in one.metrics():
            best = one.best(metric, "text", *SEEN_BY_DIT)
            measures += bool(best)
            for layer in best:
                wins[layer] = wins.get(layer, 0) + 1
    if not wins:
        return "Every layer looks the same."
    most = max(wins.values())
    layers = [layer for layer in wins if wins[layer] == most]
    named = f"Layer {layers[0]} is" if len(layers) == 1 else f"Layers {', '.join(map(str, layers))} are"
    return f"{named} the most like the text encoder: best by {most} of {counted(measures, 'measure')}."
